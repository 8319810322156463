#include "tokenizer/tokenizer.h"

#include <array>
#include <filesystem>
#include <utility>

#include "core/error.h"
#include "core/mapped_file.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer_loader.h"

namespace caravan {

namespace {

constexpr size_t kMaxFileBytes = size_t{64} << 20;

std::optional<std::string> read_if_there(const std::string& directory, const char* name) {
  const std::string path = directory + "/" + name;
  if (!path_exists(path)) return std::nullopt;
  return read_text_file(path, kMaxFileBytes);
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(LoadedTokenizer&& files)
      : loaded(std::move(files)), is_special(static_cast<size_t>(loaded.bpe.tokens().size())) {
    std::vector<AddedToken> ordinary;
    for (const AddedToken& token : loaded.added_tokens.tokens()) {
      is_special[static_cast<size_t>(token.id)] = token.is_special;
      if (!token.is_special) ordinary.push_back(token);
    }
    ordinary_added_tokens = AddedTokens(std::move(ordinary));
  }

  void check_id(int32_t id) const {
    CARAVAN_CHECK(id >= 0 && id < loaded.bpe.tokens().size(),
                  "token id {} is outside the vocabulary, which ends at {}", id,
                  loaded.bpe.tokens().size() - 1);
  }

  void encode_text(std::string_view text, const EncodeOptions& options, Bpe::Scratch& scratch,
                   std::vector<int32_t>& ids) const {
    constexpr size_t kProgressBytes = size_t{16} << 10;
    std::string prefixed;
    if (loaded.has_prefix_space && !text.empty() && text[0] != ' ') {
      prefixed.reserve(text.size() + 1);
      prefixed.append(" ").append(text);
      text = prefixed;
    }
    if (!loaded.uses_split_pattern) {
      if (!text.empty()) loaded.bpe.encode(text, scratch, ids);
      if (options.on_progress != nullptr) (*options.on_progress)(text.size());
      return;
    }
    size_t told = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = gpt2_piece_end(text, begin);
      loaded.bpe.encode(text.substr(begin, end - begin), scratch, ids);
      begin = end;
      if (begin - told >= kProgressBytes && options.on_progress != nullptr) {
        (*options.on_progress)(begin - std::exchange(told, begin));
      }
    }
    if (text.size() > told && options.on_progress != nullptr) {
      (*options.on_progress)(text.size() - told);
    }
  }

  LoadedTokenizer loaded;
  AddedTokens ordinary_added_tokens{{}};  // those that are not special
  std::vector<bool> is_special;           // [vocab_size]
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::from_directory(const std::string& directory) {
  TokenizerFiles files;
  files.directory = directory;
  files.tokenizer_config_json = read_if_there(directory, "tokenizer_config.json");
  files.tokenizer_json = read_if_there(directory, "tokenizer.json");
  if (!files.tokenizer_json) {
    files.vocab_json = read_if_there(directory, "vocab.json");
    files.merges_txt = read_if_there(directory, "merges.txt");
  }
  files.added_tokens_json = read_if_there(directory, "added_tokens.json");
  files.special_tokens_map_json = read_if_there(directory, "special_tokens_map.json");
  return from_files(files);
}

Tokenizer Tokenizer::from_files(const TokenizerFiles& files) {
  return Tokenizer(std::make_unique<Impl>(load_tokenizer(files)));
}

Tokenizer Tokenizer::without_text() {
  BpeOptions options;
  options.byte_ids.fill(-1);
  return Tokenizer(std::make_unique<Impl>(LoadedTokenizer{
      .bpe = Bpe(TokenTable(0), MergeTable(0), options), .added_tokens = AddedTokens({})}));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  CARAVAN_CHECK_CODE(vocab_size() > 0, kInternal, "text was given to a tokenizer without tokens");
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);  // English has about 4.4 bytes a token
  Bpe::Scratch scratch;
  const std::vector<int32_t>& prefix = impl_->loaded.prompt_prefix;
  const std::vector<int32_t>& suffix = impl_->loaded.prompt_suffix;
  if (options.add_special) ids.insert(ids.end(), prefix.begin(), prefix.end());
  const AddedTokens& added_tokens =
      options.parse_special ? impl_->loaded.added_tokens : impl_->ordinary_added_tokens;
  added_tokens.split(
      text, [&](std::string_view ordinary) { impl_->encode_text(ordinary, options, scratch, ids); },
      [&](int32_t id) { ids.push_back(id); });
  if (options.add_special) ids.insert(ids.end(), suffix.begin(), suffix.end());
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, DecodeOptions options) const {
  std::string text;
  for (const int32_t id : ids) {
    impl_->check_id(id);
    const std::string_view bytes = token_bytes(id);
    if (!options.skip_special || !is_special(id)) text.append(bytes);
  }
  return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id >= vocab_size()) return {};
  impl_->check_id(id);
  return impl_->loaded.bpe.tokens().bytes(id);
}

bool Tokenizer::is_special(int32_t id) const {
  if (id >= vocab_size()) return false;
  impl_->check_id(id);
  return impl_->is_special[static_cast<size_t>(id)];
}

int32_t Tokenizer::vocab_size() const { return impl_->loaded.bpe.tokens().size(); }

int32_t Tokenizer::token_id(std::string_view content) const {
  const AddedToken* added = impl_->loaded.added_tokens.find(content);
  return added != nullptr ? added->id : impl_->loaded.bpe.tokens().find(content);
}

std::optional<int32_t> Tokenizer::find_added(std::string_view text) const {
  std::optional<int32_t> first;
  impl_->loaded.added_tokens.split(
      text, [](std::string_view) {},
      [&](int32_t id) {
        if (!first) first = id;
      });
  return first;
}

const Tokenizer& TokenizerOrReason::value() const {
  if (!tokenizer) throw_error(code, reason);
  return *tokenizer;
}

TokenizerOrReason try_load_tokenizer(const std::string& directory) {
  TokenizerOrReason result;
  try {
    result.tokenizer = Tokenizer::from_directory(directory);
  } catch (const Error& error) {
    const bool is_reason = error.code() == ErrorCode::kNotFound ||
                           error.code() == ErrorCode::kCorrupt ||
                           error.code() == ErrorCode::kUnsupported;
    if (!is_reason) throw;
    result.code = error.code();
    result.reason = error.what();
  }
  return result;
}

}  // namespace caravan
