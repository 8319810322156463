#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace caravan {

/// One step of a UTF-8 decoder.
struct Utf8Char {
  enum class State : uint8_t {
    kValid,
    kIllFormed,  // no byte that could follow makes it valid
    kTruncated,  // a valid beginning that the end of the text cuts off
  };
  uint32_t code_point;  // U+FFFD unless valid
  uint32_t num_bytes;   // of the character, or of the maximal ill-formed subpart; at least 1
  State state;
};

/// Decodes the character at `position`, which must be less than text.size(). Surrogates, overlong
/// forms and values above U+10FFFF are ill-formed. Source: Unicode 15, table 3-7 and section 3.9,
/// "U+FFFD Substitution of Maximal Subparts".
Utf8Char decode_utf8(std::string_view text, size_t position);

/// Whether all of it is valid.
bool is_utf8(std::string_view text);

/// Appends the UTF-8 form of a code point; the caller keeps it below 0x110000 and no surrogate.
void append_utf8(uint32_t code_point, std::string& out);

/// Appends `bytes` to `out` with each maximal ill-formed subpart as U+FFFD. Without `is_end` it
/// stops before a truncated character at the end. Returns how many bytes of the input it used.
size_t append_sanitized_utf8(std::string_view bytes, bool is_end, std::string& out);

}  // namespace caravan
