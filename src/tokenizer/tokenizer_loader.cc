#include "tokenizer/tokenizer_loader.h"

#include <algorithm>
#include <map>

#include "core/error.h"
#include "core/json.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/vocabulary_builder.h"

namespace caravan {

namespace json = boost::json;

namespace {

std::string_view view(const json::string_view& text) { return {text.data(), text.size()}; }

// What tokenizer_config.json says about ids.
struct TokenizerConfig {
  std::optional<bool> has_prefix_space;
  std::string where;
  json::value root;  // an object, empty without the file
};

TokenizerConfig read_tokenizer_config(const TokenizerFiles& files) {
  TokenizerConfig config;
  config.where = files.directory + "/tokenizer_config.json";
  config.root = json::object();
  if (!files.tokenizer_config_json) return config;
  config.root = parse_json(*files.tokenizer_config_json, config.where);
  const std::string where = config.where + ": ";
  const json::object& root = expect_object(config.root, config.where);
  if (const json::value* value = find_field(root, "add_prefix_space")) {
    config.has_prefix_space = expect_bool(*value, where + "add_prefix_space");
  }
  for (const char* key : {"add_bos_token", "add_eos_token"}) {
    const json::value* value = find_field(root, key);
    CARAVAN_CHECK_CODE(value == nullptr || !expect_bool(*value, where + key), kUnsupported,
                       "{}{}: got true, only false is supported (write the token in the text)",
                       where, key);
  }
  return config;
}

// The flags that an added token has wherever it is written as an object.
AddedToken read_added_token(const json::object& object, bool is_special, const std::string& where) {
  check_keys(
      object,
      {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"},
      where);
  const json::value* content = object.if_contains("content");
  CARAVAN_CHECK_CODE(content != nullptr, kCorrupt, "{}: the field \"content\" is missing", where);
  AddedToken token;
  token.content = expect_string(*content, where + ".content");
  token.is_special = bool_field(object, "special", is_special, where);
  token.strips_left = bool_field(object, "lstrip", false, where);
  token.strips_right = bool_field(object, "rstrip", false, where);
  token.is_normalized = bool_field(object, "normalized", !token.is_special, where);
  CARAVAN_CHECK_CODE(!bool_field(object, "single_word", false, where), kUnsupported,
                     "{}.single_word: got true, only false is supported", where);
  return token;
}

// ---------------------------------------------------------------- tokenizer.json

// The name in the field "type" of a component such as "pre_tokenizer"; "null" without one.
std::string component_type(const json::object& root, const char* name, const std::string& where) {
  const json::value* value = find_field(root, name);
  if (value == nullptr) return "null";
  const std::string place = fmt::format("{}: {}", where, name);
  const json::object& component = expect_object(*value, place);
  const json::value* type = component.if_contains("type");
  CARAVAN_CHECK_CODE(type != nullptr, kCorrupt, "{}: the field \"type\" is missing", place);
  return std::string(expect_string(*type, place + ".type"));
}

void check_components(const json::object& root, const std::string& where) {
  struct Component {
    const char* name;
    bool may_be_null;
    bool may_be_byte_level;
    const char* wanted;
  };
  constexpr Component kComponents[] = {
      {"normalizer", true, false, "null"},
      {"pre_tokenizer", false, true, "ByteLevel"},
      {"post_processor", true, true, "ByteLevel or null"},
      {"decoder", false, true, "ByteLevel"},
  };
  for (const Component& component : kComponents) {
    const std::string type = component_type(root, component.name, where);
    const bool is_good = (type == "null" && component.may_be_null) ||
                         (type == "ByteLevel" && component.may_be_byte_level);
    CARAVAN_CHECK_CODE(is_good, kUnsupported, "{}: {}: got {}, only {} is supported", where,
                       component.name, printable(type), component.wanted);
  }
}

void check_bpe_options(const json::object& model, const std::string& where) {
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
  for (const char* key : {"byte_fallback", "ignore_merges"}) {
    CARAVAN_CHECK_CODE(!bool_field(model, key, false, where), kUnsupported,
                       "{}.{}: got true, only false is supported", where, key);
  }
}

const json::value& required_field(const json::object& object, const char* key,
                                  const std::string& where) {
  const json::value* value = object.if_contains(key);
  CARAVAN_CHECK_CODE(value != nullptr, kCorrupt, "{}: the field \"{}\" is missing", where, key);
  return *value;
}

void read_added_tokens(const json::object& root, const std::string& where,
                       VocabularyBuilder& builder) {
  const json::value* list = find_field(root, "added_tokens");
  if (list == nullptr) return;
  std::map<std::string, size_t> seen;
  const json::array& tokens = expect_array(*list, where + ": added_tokens");
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string place = fmt::format("{}: added_tokens[{}]", where, i);
    const json::object& object = expect_object(tokens[i], place);
    AddedToken token = read_added_token(object, false, place);
    const auto [it, is_new] = seen.emplace(token.content, i);
    CARAVAN_CHECK_CODE(is_new, kCorrupt, "{}: \"{}\" is listed twice, first as added_tokens[{}]",
                       place, printable(token.content), it->second);
    builder.add_token(std::move(token), required_field(object, "id", place), place + ".id");
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

LoadedTokenizer load_tokenizer_json(const TokenizerFiles& files) {
  const std::string where = files.directory + "/tokenizer.json";
  const json::value document = parse_json(*files.tokenizer_json, where);
  const json::object& root = expect_object(document, where);
  // Truncation and padding are options of a call, not of the tokenizer: they are not applied here.
  check_keys(root,
             {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
              "post_processor", "decoder", "model"},
             where);
  if (const json::value* version = find_field(root, "version")) {
    const std::string_view text = expect_string(*version, where + ": version");
    CARAVAN_CHECK_CODE(text == "1.0", kUnsupported, "{}: version: got \"{}\", expected \"1.0\"",
                       where, printable(text));
  }
  check_components(root, where);
  const std::string pre_where = where + ": pre_tokenizer";
  const json::object& pre_tokenizer = root.at("pre_tokenizer").get_object();
  check_keys(pre_tokenizer, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, pre_where);

  const std::string model_where = where + ": model";
  const json::object& model = expect_object(required_field(root, "model", where), model_where);
  check_bpe_options(model, model_where);
  const json::object& vocab =
      expect_object(required_field(model, "vocab", model_where), model_where + ".vocab");
  const json::array& merges =
      expect_array(required_field(model, "merges", model_where), model_where + ".merges");

  VocabularyBuilder builder(vocab, model_where + ".vocab");
  read_added_tokens(root, where, builder);
  builder.finish_tokens(merges.size());
  read_json_merges(merges, model_where + ".merges", builder);

  // transformers lets tokenizer_config.json overrule the pre-tokenizer's own field.
  const TokenizerConfig config = read_tokenizer_config(files);
  const bool own_prefix_space = bool_field(pre_tokenizer, "add_prefix_space", false, pre_where);
  return {builder.build_bpe(), AddedTokens(builder.take_added_tokens()),
          config.has_prefix_space.value_or(own_prefix_space),
          bool_field(pre_tokenizer, "use_regex", true, pre_where)};
}

// ------------------------------------------------- vocab.json, merges.txt and the files with them

// Added tokens gathered from several files, which may name the same token.
class AddedTokenSet {
 public:
  explicit AddedTokenSet(const VocabularyBuilder& builder) : builder_(builder) {}

  void add(AddedToken token, const json::value& id, const std::string& where) {
    const std::string content = token.content;
    const auto [it, is_new] = entries_.try_emplace(content, Entry{std::move(token), id, where});
    const Entry& known = it->second;
    CARAVAN_CHECK_CODE(
        is_new || known.id == id, kCorrupt, "{}: \"{}\" has {} as its id, but {} at {}", where,
        printable(known.token.content), describe(id), describe(known.id), known.where);
  }

  // A token that some field names as special: known already, or a token of the vocabulary.
  void mark_special(AddedToken token, const std::string& where) {
    const auto it = entries_.find(token.content);
    if (it != entries_.end()) {
      it->second.token.is_special = true;
      it->second.token.is_normalized = false;
      return;
    }
    const json::value* id = builder_.vocab_id(token.content);
    CARAVAN_CHECK_CODE(id != nullptr, kCorrupt,
                       "{}: \"{}\" is neither in vocab.json nor an added token", where,
                       printable(token.content));
    add(std::move(token), *id, where);
  }

  bool empty() const { return entries_.empty(); }
  void move_to(VocabularyBuilder& builder) {
    for (auto& [content, entry] : entries_) {
      builder.add_token(std::move(entry.token), entry.id, entry.where);
    }
  }

 private:
  struct Entry {
    AddedToken token;
    json::value id;
    std::string where;
  };
  const VocabularyBuilder& builder_;
  std::map<std::string, Entry> entries_;
};

AddedToken plain_added_token(std::string_view content, bool is_special) {
  AddedToken token;
  token.content = content;
  token.is_special = is_special;
  token.is_normalized = !is_special;
  return token;
}

constexpr const char* kSpecialFields[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};

void mark_special_value(const json::value& value, const std::string& where, AddedTokenSet& tokens) {
  if (value.is_object()) {
    tokens.mark_special(read_added_token(value.get_object(), true, where), where);
  } else {
    tokens.mark_special(plain_added_token(expect_string(value, where), true), where);
  }
}

// The special tokens that special_tokens_map.json or tokenizer_config.json names.
void read_special_tokens(const json::object& root, const std::string& where,
                         AddedTokenSet& tokens) {
  for (const char* key : kSpecialFields) {
    const json::value* value = find_field(root, key);
    if (value != nullptr) mark_special_value(*value, fmt::format("{}: {}", where, key), tokens);
  }
  const std::string place = where + ": additional_special_tokens";
  if (const json::value* list = find_field(root, "additional_special_tokens")) {
    const json::array& values = expect_array(*list, place);
    for (size_t i = 0; i < values.size(); ++i) {
      mark_special_value(values[i], fmt::format("{}[{}]", place, i), tokens);
    }
  }
}

// "added_tokens_decoder": {"50256": {"content": "<|endoftext|>", ...}, ...}
void read_added_tokens_decoder(const TokenizerConfig& config, AddedTokenSet& tokens) {
  const json::value* decoder = find_field(config.root.get_object(), "added_tokens_decoder");
  if (decoder == nullptr) return;
  const std::string where = config.where + ": added_tokens_decoder";
  for (const auto& member : expect_object(*decoder, where)) {
    const std::string_view key = view(member.key());
    const std::string place = fmt::format("{}[\"{}\"]", where, printable(key));
    const bool is_number =
        !key.empty() && key.size() <= 9 &&
        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    CARAVAN_CHECK_CODE(is_number, kCorrupt, "{}: the key is not an id", place);
    const int64_t id = std::stoll(std::string(key));
    tokens.add(read_added_token(expect_object(member.value(), place), false, place), id, place);
  }
}

void read_vocab_added_tokens(const TokenizerFiles& files, const TokenizerConfig& config,
                             VocabularyBuilder& builder) {
  AddedTokenSet tokens(builder);
  // First the form that knows the most about each token.
  read_added_tokens_decoder(config, tokens);
  if (files.added_tokens_json) {
    const std::string where = files.directory + "/added_tokens.json";
    const json::value root = parse_json(*files.added_tokens_json, where);
    for (const auto& member : expect_object(root, where)) {
      const std::string place = fmt::format("{}[\"{}\"]", where, printable(view(member.key())));
      tokens.add(plain_added_token(view(member.key()), false), member.value(), place);
    }
  }
  if (files.special_tokens_map_json) {
    const std::string where = files.directory + "/special_tokens_map.json";
    const json::value root = parse_json(*files.special_tokens_map_json, where);
    read_special_tokens(expect_object(root, where), where, tokens);
  } else {
    read_special_tokens(config.root.get_object(), config.where, tokens);
  }
  // What GPT2Tokenizer of transformers assumes when no file says anything.
  constexpr std::string_view kDefaultSpecial = "<|endoftext|>";
  if (tokens.empty() && builder.vocab_id(kDefaultSpecial) != nullptr) {
    tokens.mark_special(plain_added_token(kDefaultSpecial, true), "");
  }
  tokens.move_to(builder);
}

void read_merges_txt(std::string_view text, const std::string& where, VocabularyBuilder& builder) {
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    ++line_number;
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line_number == 1 && line.starts_with("#version")) continue;
    const auto place = [&] { return fmt::format("{}: line {}", where, line_number); };
    std::string_view left;
    std::string_view right;
    CARAVAN_CHECK_CODE(split_merge(line, left, right), kCorrupt,
                       "{}: got \"{}\", expected two tokens with one space between them", place(),
                       printable(line));
    builder.add_merge(left, right, place);
  }
}

LoadedTokenizer load_vocab_and_merges(const TokenizerFiles& files) {
  const std::string where = files.directory + "/vocab.json";
  const json::value document = parse_json(*files.vocab_json, where);
  VocabularyBuilder builder(expect_object(document, where), where);
  const TokenizerConfig config = read_tokenizer_config(files);
  read_vocab_added_tokens(files, config, builder);
  const std::string& merges = *files.merges_txt;
  builder.finish_tokens(static_cast<size_t>(std::count(merges.begin(), merges.end(), '\n')) + 1);
  read_merges_txt(merges, files.directory + "/merges.txt", builder);
  return {builder.build_bpe(), AddedTokens(builder.take_added_tokens()),
          config.has_prefix_space.value_or(false)};
}

}  // namespace

LoadedTokenizer load_tokenizer(const TokenizerFiles& files) {
  if (files.tokenizer_json) return load_tokenizer_json(files);
  CARAVAN_CHECK_CODE(files.vocab_json || files.merges_txt, kNotFound,
                     "{}: no tokenizer: expected tokenizer.json, or vocab.json and merges.txt",
                     files.directory);
  CARAVAN_CHECK_CODE(files.vocab_json, kNotFound, "{}: merges.txt is there, but no vocab.json",
                     files.directory);
  CARAVAN_CHECK_CODE(files.merges_txt, kNotFound, "{}: vocab.json is there, but no merges.txt",
                     files.directory);
  return load_vocab_and_merges(files);
}

}  // namespace caravan
