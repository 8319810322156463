#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace caravan {

/// Contents of a tokenizer's files, each of them as it is on disk, or absent.
struct TokenizerFiles {
  std::string directory;  // for messages: "<directory>/vocab.json: ..."
  std::optional<std::string> tokenizer_json;
  std::optional<std::string> vocab_json;
  std::optional<std::string> merges_txt;
  std::optional<std::string> added_tokens_json;
  std::optional<std::string> special_tokens_map_json;
  std::optional<std::string> tokenizer_config_json;
};

/// GPT-2 byte-level BPE. Immutable after loading; every method is thread safe.
class Tokenizer {
 public:
  /// Reads tokenizer.json, or else vocab.json + merges.txt (+ added_tokens.json and
  /// special_tokens_map.json); of tokenizer_config.json what changes ids. Files of at most 64 MiB.
  /// Errors: kNotFound when neither form is there; kCorrupt and kUnsupported with one line naming
  /// the file, the place, what was found and what was expected.
  static Tokenizer from_directory(const std::string& directory);
  /// The same from memory.
  static Tokenizer from_files(const TokenizerFiles& files);
  /// One without a token: every id has no text. For models that run on ids; encode() is an error.
  static Tokenizer without_text();

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  struct EncodeOptions {
    /// false: text that looks like a special or added token ("<|endoftext|>") is ordinary text.
    bool parse_special = false;
    /// true: with the tokens that the tokenizer puts around a prompt (bos_token where the files ask
    /// for it), as transformers does unless add_special_tokens is false. Mostly there are none.
    bool add_special = false;
    /// Called as the work goes on, with the bytes since its last call; may throw to end it. Null:
    /// nobody asks.
    const std::function<void(size_t num_bytes)>* on_progress = nullptr;
  };
  /// Any bytes; ill-formed UTF-8 is encoded byte by byte, so that decode(encode(t)) == t, unless
  /// the tokenizer adds a space before the text (add_prefix_space) or an added token takes the
  /// space around it (lstrip, rstrip). Time: n log n for n bytes, whatever they are.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options) const;
  std::vector<int32_t> encode(std::string_view text) const { return encode(text, EncodeOptions()); }

  struct DecodeOptions {
    bool skip_special = false;
  };
  /// The exact bytes of the tokens; may be invalid UTF-8 (see Detokenizer for streams).
  /// Errors: kInvalidArgument for an id outside the vocabulary.
  std::string decode(const std::vector<int32_t>& ids, DecodeOptions options) const;
  std::string decode(const std::vector<int32_t>& ids) const { return decode(ids, DecodeOptions()); }

  /// Bytes of one token. Of an id above the vocabulary, which a model with more rows than tokens
  /// can choose: none, and it is not special. Errors: kInvalidArgument for an id below 0.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  /// Largest id + 1, added tokens included.
  int32_t vocab_size() const;
  /// Id of a token by its bytes (" the", "<|endoftext|>"), or -1.
  int32_t token_id(std::string_view content) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The tokenizer of a model directory, or why there is none. A model runs without one: on token
/// ids.
struct TokenizerOrReason {
  std::optional<Tokenizer> tokenizer;
  ErrorCode code = ErrorCode::kNotFound;  // of the reason
  std::string reason;                     // one line that names the file; empty with a tokenizer

  explicit operator bool() const { return tokenizer.has_value(); }
  /// The tokenizer, for a caller that cannot do without. Errors: the reason, with its code.
  const Tokenizer& value() const;
};

/// Reads a model directory's tokenizer. Files that are not there, broken, or of a kind that Caravan
/// does not know are a reason, not an exception. Errors: kIo alone.
TokenizerOrReason try_load_tokenizer(const std::string& directory);

}  // namespace caravan
