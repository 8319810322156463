#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace caravan {

/// GPT-2 byte-level BPE. Immutable after loading; every method is thread safe.
class Tokenizer {
 public:
  /// Reads tokenizer.json, or else vocab.json + merges.txt + added_tokens.json (+ special_tokens_map.json,
  /// tokenizer_config.json). Errors: kNotFound when neither form is there; kCorrupt and kUnsupported
  /// with one line naming the file, the place, what was found and what was expected.
  static Tokenizer from_directory(const std::string& directory);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  struct EncodeOptions {
    /// false: text that looks like a special or added token ("<|endoftext|>") is ordinary text.
    bool parse_special = false;
  };
  /// Any bytes; invalid UTF-8 is encoded byte by byte, so that decode(encode(t)) == t always.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options) const;
  std::vector<int32_t> encode(std::string_view text) const { return encode(text, EncodeOptions()); }

  struct DecodeOptions {
    bool skip_special = false;
  };
  /// The exact bytes of the tokens; may be invalid UTF-8 (see Detokenizer for streams).
  /// Errors: kInvalidArgument for an id outside the vocabulary.
  std::string decode(const std::vector<int32_t>& ids, DecodeOptions options) const;
  std::string decode(const std::vector<int32_t>& ids) const { return decode(ids, DecodeOptions()); }

  /// Bytes of one token. Errors: kInvalidArgument.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  /// Largest id + 1, added tokens included.
  int32_t vocab_size() const;
  /// Id of a token by its content ("<|endoftext|>"), or -1.
  int32_t token_id(std::string_view content) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace caravan
