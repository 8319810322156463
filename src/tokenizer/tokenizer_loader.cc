#include "tokenizer/tokenizer_loader.h"

#include <algorithm>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "tokenizer/added_token_set.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/tokenizer_json.h"
#include "tokenizer/vocabulary_builder.h"

namespace caravan {

namespace json = boost::json;

namespace {

std::string_view view(const json::string_view& text) { return {text.data(), text.size()}; }

// One of the JSON files; an empty object when it is absent.
struct JsonFile {
  JsonFile(const TokenizerFiles& files, const std::optional<std::string>& text, const char* name)
      : where(files.directory + "/" + name), is_there(text.has_value()), value(json::object()) {
    if (is_there) value = parse_json(*text, where);
    expect_object(value, where);
  }
  const json::object& root() const { return value.get_object(); }
  std::optional<bool> flag(const char* key) const {
    const json::value* field = find_field(root(), key);
    if (field == nullptr) return std::nullopt;
    return expect_bool(*field, fmt::format("{}: {}", where, key));
  }

  std::string where;
  bool is_there;
  json::value value;
};

// transformers takes the class of a GPT-2 model when tokenizer_config.json names none.
bool is_gpt2_class(const JsonFile& config) {
  const json::value* name = find_field(config.root(), "tokenizer_class");
  return name == nullptr || *name == "GPT2Tokenizer" || *name == "GPT2TokenizerFast";
}

// ------------------------------------------------------------------------ tokens with a role

struct NamedToken {
  std::string role;
  AddedToken token;
  std::string where;
};

constexpr std::string_view kRoles[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};

// A token that is named as a string or written as an object.
AddedToken named_token(const json::value& value, const std::string& where) {
  if (value.is_object()) return read_added_token(value.get_object(), true, where);
  AddedToken token;
  token.content = expect_string(value, where);
  token.is_special = true;
  return token;
}

// The tokens that tokenizer_config.json and special_tokens_map.json name, in the order in which
// transformers gives ids to those that have none. What the map says goes before the config.
class NamedTokens {
 public:
  NamedTokens(const JsonFile& config, const JsonFile* map) : config_(config), map_(map) {
    for (const std::string_view role : kRoles) {
      const auto [file, value] = find(role);
      if (value == nullptr) continue;
      roles_there_.insert(std::string(role));
      if (!value->is_null()) add(role, *value, fmt::format("{}: {}", file->where, role));
    }
    for (const JsonFile* file : {&config_, map_}) {
      if (file != nullptr) add_roles_of_the_model(*file);
    }
    if (!add_list("extra_special_tokens")) add_list("additional_special_tokens");
  }

  const std::vector<NamedToken>& tokens() const { return tokens_; }
  bool contains(std::string_view content) const { return contents_.contains(content); }
  // Whether a file speaks of this role, if only to say null.
  bool has_role(std::string_view role) const { return roles_there_.contains(role); }

 private:
  std::pair<const JsonFile*, const json::value*> find(std::string_view key) const {
    for (const JsonFile* file : {map_, &config_}) {
      const json::value* value = file == nullptr ? nullptr : file->root().if_contains(key);
      if (value != nullptr) return {file, value};
    }
    return {nullptr, nullptr};
  }

  void add(std::string_view role, const json::value& value, const std::string& where) {
    tokens_.push_back({std::string(role), named_token(value, where), where});
    contents_.insert(tokens_.back().token.content);
  }

  // "speaker_token": "<speaker>" and other roles that only this model has.
  void add_roles_of_the_model(const JsonFile& file) {
    for (const auto& member : file.root()) {
      const std::string_view key = view(member.key());
      const bool is_role = key.ends_with("_token") && member.value().is_string() &&
                           std::find(std::begin(kRoles), std::end(kRoles), key) == std::end(kRoles);
      if (is_role) add(key, member.value(), fmt::format("{}: {}", file.where, printable(key)));
    }
  }

  // An array, or an object whose values are the tokens. Returns false for none.
  bool add_list(const char* key) {
    const auto [file, value] = find(key);
    if (value == nullptr || value->is_null()) return false;
    const std::string where = fmt::format("{}: {}", file->where, key);
    if (value->is_object()) {
      for (const auto& member : value->get_object()) {
        add(key, member.value(), fmt::format("{}[\"{}\"]", where, printable(view(member.key()))));
      }
      return !value->get_object().empty();
    }
    const json::array& values = expect_array(*value, where);
    for (size_t i = 0; i < values.size(); ++i) add(key, values[i], fmt::format("{}[{}]", where, i));
    return !values.empty();
  }

  const JsonFile& config_;
  const JsonFile* map_;
  std::vector<NamedToken> tokens_;
  std::set<std::string, std::less<>> contents_;
  std::set<std::string, std::less<>> roles_there_;
};

// -------------------------------------------------------------------------- added tokens

// "added_tokens_decoder": {"50256": {"content": "<|endoftext|>", ...}, ...}
void read_added_tokens_decoder(const json::value& decoder, const std::string& where,
                               AddedTokenSet& tokens) {
  for (const auto& member : expect_object(decoder, where)) {
    const std::string_view key = view(member.key());
    const std::string place = fmt::format("{}[\"{}\"]", where, printable(key));
    const bool is_number =
        !key.empty() && key.size() <= 9 &&
        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    CARAVAN_CHECK_CODE(is_number, kCorrupt, "{}: the key is not an id", place);
    tokens.add(read_added_token(expect_object(member.value(), place), false, place),
               std::stoll(std::string(key)), place, AddedTokenSet::IfKnown::kReplace);
  }
}

// {"<pad>": 50257, ...}. Where tokenizer_config.json has an added_tokens_decoder, transformers
// takes no new tokens from this file.
void read_added_tokens_json(const JsonFile& file, bool is_read, const NamedTokens& named,
                            AddedTokenSet& tokens, const VocabularyBuilder& builder) {
  size_t num_ignored = 0;
  std::string first_ignored;
  for (const auto& member : file.root()) {
    const std::string_view content = view(member.key());
    const std::string place = fmt::format("{}[\"{}\"]", file.where, printable(content));
    const int64_t id = expect_id(member.value(), place);
    const bool is_known = tokens.contains(content) || builder.vocab_id(content) != nullptr;
    if (!is_read && !is_known) {
      if (++num_ignored == 1) first_ignored = place;
      continue;
    }
    AddedToken token;
    token.content = content;
    token.is_special = named.contains(content);
    token.is_normalized = !token.is_special;
    tokens.add(std::move(token), id, place, AddedTokenSet::IfKnown::kKeep);
  }
  if (num_ignored == 0) return;
  log_warning(
      "{}{}: ignored, as in transformers: added_tokens_decoder of tokenizer_config.json does "
      "not list it",
      first_ignored, num_ignored == 1 ? "" : fmt::format(" and {} others", num_ignored - 1));
}

// Gathers the added tokens of all files beside tokenizer.json, whose own are in `tokens` already.
// Source: transformers 5.24, PreTrainedTokenizerBase._from_pretrained and TokenizersBackend.
void read_side_files(const TokenizerFiles& files, const JsonFile& config,
                     const VocabularyBuilder& builder, AddedTokenSet& tokens) {
  const json::value* decoder = find_field(config.root(), "added_tokens_decoder");
  if (decoder != nullptr) {
    read_added_tokens_decoder(*decoder, config.where + ": added_tokens_decoder", tokens);
  }
  const JsonFile added(files, files.added_tokens_json, "added_tokens.json");
  const JsonFile map(files, files.special_tokens_map_json, "special_tokens_map.json");
  const NamedTokens named(config, decoder == nullptr ? &map : nullptr);
  read_added_tokens_json(added, decoder == nullptr, named, tokens, builder);
  for (const NamedToken& n : named.tokens()) tokens.name_special(n.token, n.role, n.where);
  if (!is_gpt2_class(config)) return;
  for (const char* role : {"bos_token", "eos_token", "unk_token"}) {
    if (!named.has_role(role)) tokens.name_default("<|endoftext|>", role);
  }
}

// ------------------------------------------------------------------------------ the two forms

LoadedTokenizer load_tokenizer_json(const TokenizerFiles& files) {
  const JsonFile file(files, files.tokenizer_json, "tokenizer.json");
  TokenizerJsonParts parts = read_tokenizer_json_parts(file.root(), file.where);
  const auto field = [](const json::object& object, const char* key,
                        const std::string& where) -> const json::value& {
    const json::value* value = object.if_contains(key);
    CARAVAN_CHECK_CODE(value != nullptr, kCorrupt, "{}: the field \"{}\" is missing", where, key);
    return *value;
  };
  const std::string model_where = file.where + ": model";
  const json::object& model = expect_object(field(file.root(), "model", file.where), model_where);
  const BpeFields bpe_fields = read_bpe_fields(model, model_where);
  const json::object& vocab =
      expect_object(field(model, "vocab", model_where), model_where + ".vocab");
  const json::array& merges =
      expect_array(field(model, "merges", model_where), model_where + ".merges");

  const JsonFile config(files, files.tokenizer_config_json, "tokenizer_config.json");
  VocabularyBuilder builder(vocab, model_where + ".vocab");
  AddedTokenSet tokens(builder);
  read_json_added_tokens(file.root(), file.where, tokens);
  read_side_files(files, config, builder, tokens);
  tokens.move_to_builder();
  builder.finish_tokens(merges.size(), bpe_fields);
  read_json_merges(merges, model_where + ".merges", builder);

  const std::optional<bool> prefix_space = config.flag("add_prefix_space");
  if (config.is_there && is_gpt2_class(config) && parts.may_override_prefix_space) {
    parts.has_prefix_space = prefix_space.value_or(false);
  }
  const bool adds_nothing = parts.prompt_prefix.empty() && parts.prompt_suffix.empty();
  for (const char* key : {"add_bos_token", "add_eos_token"}) {
    if (!config.flag(key).value_or(false) || !adds_nothing) continue;
    log_warning(
        "{}: {}: ignored, as in transformers: the post_processor of tokenizer.json decides "
        "and adds nothing",
        config.where, key);
  }
  return {.bpe = builder.build_bpe(),
          .added_tokens = AddedTokens(builder.take_added_tokens()),
          .has_prefix_space = parts.has_prefix_space,
          .uses_split_pattern = parts.uses_split_pattern,
          .prompt_prefix = std::move(parts.prompt_prefix),
          .prompt_suffix = std::move(parts.prompt_suffix)};
}

void read_merges_txt(std::string_view text, const std::string& where, VocabularyBuilder& builder) {
  text = skip_byte_order_mark(text);
  constexpr const char* kBlanks = " \t\r";
  const size_t text_end = text.find_last_not_of(" \t\r\n") + 1;  // 0 for none
  size_t line_number = 0;
  for (size_t begin = 0; begin < text_end;) {
    ++line_number;
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.starts_with("#version")) continue;
    line = line.substr(0, line.find_last_not_of(kBlanks) + 1);
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
  const JsonFile vocab(files, files.vocab_json, "vocab.json");
  const JsonFile config(files, files.tokenizer_config_json, "tokenizer_config.json");
  VocabularyBuilder builder(vocab.root(), vocab.where);
  AddedTokenSet tokens(builder);
  read_side_files(files, config, builder, tokens);
  const std::string bos = tokens.token_of("bos_token");
  const std::string eos = tokens.token_of("eos_token");
  tokens.move_to_builder();
  const std::string& merges = *files.merges_txt;
  builder.finish_tokens(static_cast<size_t>(std::count(merges.begin(), merges.end(), '\n')) + 1,
                        {});
  read_merges_txt(merges, files.directory + "/merges.txt", builder);

  LoadedTokenizer loaded{.bpe = builder.build_bpe(),
                         .added_tokens = AddedTokens(builder.take_added_tokens()),
                         .has_prefix_space = config.flag("add_prefix_space").value_or(false)};
  const auto ids_of = [&](const char* flag, const std::string& content) {
    if (!config.flag(flag).value_or(false) || content.empty()) return std::vector<int32_t>{};
    return std::vector<int32_t>{loaded.added_tokens.find(content)->id};
  };
  loaded.prompt_prefix = ids_of("add_bos_token", bos);
  loaded.prompt_suffix = ids_of("add_eos_token", eos);
  return loaded;
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
