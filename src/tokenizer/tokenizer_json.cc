#include "tokenizer/tokenizer_json.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "tokenizer/json_fields.h"

namespace caravan {

namespace json = boost::json;

namespace {

std::string_view view(const json::string_view& text) { return {text.data(), text.size()}; }

const json::value& required_field(const json::object& object, const char* key,
                                  const std::string& where) {
  const json::value* value = object.if_contains(key);
  CARAVAN_CHECK_CODE(value != nullptr, kCorrupt, "{}: the field \"{}\" is missing", where, key);
  return *value;
}

std::string_view string_field(const json::object& object, const char* key,
                              const std::string& where) {
  return expect_string(required_field(object, key, where), fmt::format("{}.{}", where, key));
}

struct Component {
  std::string type;
  const json::object* fields;
  std::string where;
};

// Appends the components of `value`, those of a Sequence in its place: its list has the name
// `list`. The depth is that of JSON, which is bounded.
void append_components(const json::value& value, const char* list, const std::string& where,
                       std::vector<Component>& components) {
  const json::object& fields = expect_object(value, where);
  const std::string type(string_field(fields, "type", where));
  if (type != "Sequence") {
    components.push_back({type, &fields, where});
    return;
  }
  check_keys(fields, {"type", list}, where);
  const std::string place = fmt::format("{}.{}", where, list);
  const json::array& parts = expect_array(required_field(fields, list, where), place);
  for (size_t i = 0; i < parts.size(); ++i) {
    append_components(parts[i], list, fmt::format("{}[{}]", place, i), components);
  }
}

std::vector<Component> read_components(const json::object& root, const char* name, const char* list,
                                       const std::string& where) {
  std::vector<Component> components;
  const json::value* value = find_field(root, name);
  if (value != nullptr) {
    append_components(*value, list, fmt::format("{}: {}", where, name), components);
  }
  return components;
}

[[noreturn]] void refuse(const std::string& where, std::string_view type, const char* wanted) {
  CARAVAN_FAIL(kUnsupported, "{}: got {}, only {} is supported", where, printable(type), wanted);
}

// Whether a Split gives the pieces that ByteLevel's own pattern gives. The pattern covers every
// character, so there is nothing between its matches that could be removed.
bool is_gpt2_split(const Component& split) {
  check_keys(*split.fields, {"type", "pattern", "behavior", "invert"}, split.where);
  const json::object& pattern = expect_object(required_field(*split.fields, "pattern", split.where),
                                              split.where + ".pattern");
  const json::value* regex = pattern.if_contains("Regex");
  if (regex == nullptr || pattern.size() != 1) return false;
  // As openai/gpt-2 writes it, and as tiktoken does.
  constexpr std::string_view kPatterns[] = {
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
      R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
      R"('(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s)"};
  const std::string_view text = expect_string(*regex, split.where + ".pattern.Regex");
  if (std::find(std::begin(kPatterns), std::end(kPatterns), text) == std::end(kPatterns)) {
    return false;
  }
  const std::string_view behavior = string_field(*split.fields, "behavior", split.where);
  const bool is_inverted = bool_field(*split.fields, "invert", false, split.where);
  return behavior == "Isolated" || (behavior == "Removed" && is_inverted);
}

void read_pre_tokenizer(const json::object& root, const std::string& where,
                        TokenizerJsonParts& parts) {
  const std::vector<Component> components =
      read_components(root, "pre_tokenizer", "pretokenizers", where);
  bool has_split = false;
  bool has_byte_level = false;
  for (const Component& c : components) {
    if (c.type == "Split" && !has_byte_level) {
      CARAVAN_CHECK_CODE(is_gpt2_split(c), kUnsupported,
                         "{}: got a Split that is not by GPT-2's own pattern, only ByteLevel is "
                         "supported",
                         c.where);
      has_split = true;
      continue;
    }
    if (c.type != "ByteLevel" || has_byte_level) refuse(c.where, c.type, "one ByteLevel");
    check_keys(*c.fields, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, c.where);
    parts.has_prefix_space = bool_field(*c.fields, "add_prefix_space", false, c.where);
    CARAVAN_CHECK_CODE(!has_split || !parts.has_prefix_space, kUnsupported,
                       "{}.add_prefix_space: got true after a Split, only false is supported",
                       c.where);
    parts.uses_split_pattern = has_split || bool_field(*c.fields, "use_regex", true, c.where);
    has_byte_level = true;
  }
  if (!has_byte_level) refuse(where + ": pre_tokenizer", "null", "ByteLevel");
  const json::value& whole = root.at("pre_tokenizer");
  parts.may_override_prefix_space =
      components.size() == 1 && components[0].fields == &whole.get_object();
}

// "cls": ["<s>", 0]
int32_t token_of_pair(const Component& component, const char* key) {
  const std::string place = fmt::format("{}.{}", component.where, key);
  const json::array& pair =
      expect_array(required_field(*component.fields, key, component.where), place);
  CARAVAN_CHECK_CODE(pair.size() == 2, kCorrupt, "{}: got an array of {}, expected token and id",
                     place, pair.size());
  return static_cast<int32_t>(std::min<int64_t>(expect_id(pair[1], place + "[1]"), INT32_MAX));
}

// The ids before and after the text, of a TemplateProcessing for one text.
void read_template(const Component& c, std::vector<int32_t>& before, std::vector<int32_t>& after) {
  check_keys(*c.fields, {"type", "single", "pair", "special_tokens"}, c.where);
  const std::string place = c.where + ".single";
  const json::array& pieces = expect_array(required_field(*c.fields, "single", c.where), place);
  bool has_text = false;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const std::string piece_place = fmt::format("{}[{}]", place, i);
    const json::object& piece = expect_object(pieces[i], piece_place);
    const bool is_text = piece.contains("Sequence");
    const char* kind = is_text ? "Sequence" : "SpecialToken";
    const std::string inner = fmt::format("{}.{}", piece_place, kind);
    const json::object& fields = expect_object(required_field(piece, kind, piece_place), inner);
    const std::string_view name = string_field(fields, "id", inner);
    if (is_text) {
      CARAVAN_CHECK_CODE(name == "A" && !has_text, kUnsupported,
                         "{}: TemplateProcessing: got the text {}, only one text A is supported",
                         inner, printable(name));
      has_text = true;
      continue;
    }
    const std::string tokens_place = c.where + ".special_tokens";
    const json::object& tokens =
        expect_object(required_field(*c.fields, "special_tokens", c.where), tokens_place);
    const json::value* token = tokens.if_contains(name);
    CARAVAN_CHECK_CODE(token != nullptr, kCorrupt, "{}: \"{}\" is not in {}", inner,
                       printable(name), tokens_place);
    const std::string token_place = fmt::format("{}[\"{}\"]", tokens_place, printable(name));
    const json::array& ids =
        expect_array(required_field(expect_object(*token, token_place), "ids", token_place),
                     token_place + ".ids");
    for (const json::value& id : ids) {
      const int64_t value = expect_id(id, token_place + ".ids");
      (has_text ? after : before)
          .push_back(static_cast<int32_t>(std::min<int64_t>(value, INT32_MAX)));
    }
  }
  CARAVAN_CHECK_CODE(has_text, kUnsupported,
                     "{}: TemplateProcessing without the text A is not supported", place);
}

void read_post_processor(const json::object& root, const std::string& where,
                         TokenizerJsonParts& parts) {
  for (const Component& c : read_components(root, "post_processor", "processors", where)) {
    std::vector<int32_t> before;
    std::vector<int32_t> after;
    if (c.type == "TemplateProcessing") {
      read_template(c, before, after);
    } else if (c.type == "BertProcessing" || c.type == "RobertaProcessing") {
      before.push_back(token_of_pair(c, "cls"));
      after.push_back(token_of_pair(c, "sep"));
    } else if (c.type != "ByteLevel") {
      refuse(c.where, c.type, "ByteLevel, TemplateProcessing, BertProcessing or RobertaProcessing");
    }
    parts.prompt_prefix.insert(parts.prompt_prefix.begin(), before.begin(), before.end());
    parts.prompt_suffix.insert(parts.prompt_suffix.end(), after.begin(), after.end());
  }
}

}  // namespace

TokenizerJsonParts read_tokenizer_json_parts(const json::object& root, const std::string& where) {
  // Truncation and padding are options of a call, not of the tokenizer.
  check_keys(root,
             {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
              "post_processor", "decoder", "model"},
             where);
  if (const json::value* version = find_field(root, "version")) {
    const std::string_view text = expect_string(*version, where + ": version");
    CARAVAN_CHECK_CODE(text == "1.0", kUnsupported, "{}: version: got \"{}\", expected \"1.0\"",
                       where, printable(text));
  }
  for (const char* option : {"truncation", "padding"}) {
    if (find_field(root, option) != nullptr) log_info("{}: {}: not applied", where, option);
  }
  for (const Component& c : read_components(root, "normalizer", "normalizers", where)) {
    refuse(c.where, c.type, "null");
  }
  TokenizerJsonParts parts;
  read_pre_tokenizer(root, where, parts);
  read_post_processor(root, where, parts);
  const std::vector<Component> decoders = read_components(root, "decoder", "decoders", where);
  if (decoders.empty()) refuse(where + ": decoder", "null", "ByteLevel");
  for (const Component& c : decoders) {
    // ByteLevel makes one text of all tokens, which leaves nothing to fuse.
    const bool is_first = &c == &decoders.front();
    if (c.type != (is_first ? "ByteLevel" : "Fuse")) refuse(c.where, c.type, "ByteLevel");
  }
  return parts;
}

BpeFields read_bpe_fields(const json::object& model, const std::string& where) {
  check_keys(model,
             {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
              "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"},
             where);
  if (const json::value* type = find_field(model, "type")) {
    const std::string_view name = expect_string(*type, where + ".type");
    CARAVAN_CHECK_CODE(name == "BPE", kUnsupported, "{}.type: got {}, only BPE is supported", where,
                       printable(name));
  }
  if (const json::value* dropout = find_field(model, "dropout")) {
    CARAVAN_CHECK_CODE(*dropout == json::value(0) || *dropout == json::value(0.0), kUnsupported,
                       "{}.dropout: got {}, only null and 0 are supported", where,
                       describe(*dropout));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json::value* value = find_field(model, key);
    if (value == nullptr) continue;
    const std::string_view text = expect_string(*value, fmt::format("{}.{}", where, key));
    CARAVAN_CHECK_CODE(text.empty(), kUnsupported, "{}.{}: got \"{}\", only \"\" is supported",
                       where, key, printable(text));
  }
  BpeFields fields;
  if (const json::value* unk = find_field(model, "unk_token")) {
    fields.unk_token = expect_string(*unk, where + ".unk_token");
  }
  fields.fuses_unk = bool_field(model, "fuse_unk", false, where);
  fields.has_byte_fallback = bool_field(model, "byte_fallback", false, where);
  fields.ignores_merges = bool_field(model, "ignore_merges", false, where);
  return fields;
}

void read_json_added_tokens(const json::object& root, const std::string& where,
                            AddedTokenSet& tokens) {
  const json::value* list = find_field(root, "added_tokens");
  if (list == nullptr) return;
  const json::array& array = expect_array(*list, where + ": added_tokens");
  for (size_t i = 0; i < array.size(); ++i) {
    const std::string place = fmt::format("{}: added_tokens[{}]", where, i);
    const json::object& object = expect_object(array[i], place);
    const int64_t id = expect_id(required_field(object, "id", place), place + ".id");
    // Of two that are written for one token, `tokenizers` takes the last.
    tokens.add(read_added_token(object, false, place), id, place, AddedTokenSet::IfKnown::kReplace);
  }
}

void read_json_merges(const json::array& merges, const std::string& where,
                      VocabularyBuilder& builder) {
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto place = [&] { return fmt::format("{}[{}]", where, i); };
    const json::value& merge = merges[i];
    std::string_view left;
    std::string_view right;
    if (merge.is_string()) {
      const std::string_view text = view(merge.get_string());
      CARAVAN_CHECK_CODE(split_merge(text, left, right), kCorrupt,
                         "{}: got \"{}\", expected two tokens with one space between them", place(),
                         printable(text));
    } else {
      const json::array& pair = expect_array(merge, place());
      CARAVAN_CHECK_CODE(pair.size() == 2, kCorrupt, "{}: got an array of {}, expected two tokens",
                         place(), pair.size());
      left = expect_string(pair[0], place() + "[0]");
      right = expect_string(pair[1], place() + "[1]");
    }
    builder.add_merge(left, right, place);
  }
}

}  // namespace caravan
