#pragma once

#include <cstdint>
#include <string>

#include "tokenizer/tokenizer.h"

namespace caravan {

/// Turns a stream of token ids into text, never emitting part of a UTF-8 character: bytes of an
/// unfinished character wait for the next token. Bytes that can no longer become valid UTF-8 are
/// emitted as U+FFFD (one for each maximal ill-formed subpart, Unicode 15 section 3.9).
class Detokenizer {
 public:
  /// The tokenizer must outlive this object.
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  /// Text that became complete with this token; often the token itself, sometimes empty.
  std::string push(int32_t id);
  /// What is left at the end of the stream: U+FFFD for an unfinished character, or "".
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace caravan
