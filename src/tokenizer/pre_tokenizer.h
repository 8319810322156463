#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace caravan {

/// What GPT-2's split pattern distinguishes: \p{L}, \p{N}, \s (White_Space) and the rest.
enum class CharClass : uint8_t { kOther, kLetter, kNumber, kSpace };

/// Class of a code point below 0x110000, by the Unicode version of Hugging Face `tokenizers` (see
/// tools/gen_char_class.py).
CharClass char_class(uint32_t code_point);

/// End of the piece that starts at `begin` (less than text.size()) when `text` is split by
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// Ill-formed UTF-8 counts as characters of class kOther. Pieces are never empty.
/// Source: openai/gpt-2 src/encoder.py.
size_t gpt2_piece_end(std::string_view text, size_t begin);

/// Length of the white space at the start and at the end of `text`.
size_t leading_space(std::string_view text);
size_t trailing_space(std::string_view text);

/// Whether `text` starts or ends with a character of a word: \w of Unicode, by the version of
/// `tokenizers`.
bool starts_with_word(std::string_view text);
bool ends_with_word(std::string_view text);

}  // namespace caravan
