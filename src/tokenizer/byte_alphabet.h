#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace caravan {

/// GPT-2 writes each byte of a token as one printable character: 0x21-0x7E, 0xA1-0xAC and
/// 0xAE-0xFF stand for themselves, the other 68 bytes are U+0100 to U+0143 in order (" " is
/// "\u0120"). Source: openai/gpt-2 src/encoder.py, bytes_to_unicode().

/// Appends the bytes that `written` stands for and returns nothing; or returns the first character
/// outside the alphabet (U+FFFD for ill-formed UTF-8), leaving part of the bytes in `out`.
std::optional<uint32_t> append_token_bytes(std::string_view written, std::string& out);

/// How a vocabulary writes these bytes.
std::string written_form(std::string_view bytes);

}  // namespace caravan
