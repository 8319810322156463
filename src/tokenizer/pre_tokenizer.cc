#include "tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "tokenizer/utf8.h"

namespace caravan {

namespace {

#include "tokenizer/char_class_tables.inc"

struct CharRange {
  uint32_t first;
  uint32_t last;
};

#include "tokenizer/word_char_table.inc"

bool is_word_char(uint32_t code_point) {
  const CharRange* range =
      std::partition_point(std::begin(kWordRanges), std::end(kWordRanges),
                           [&](const CharRange& r) { return r.last < code_point; });
  return range != std::end(kWordRanges) && range->first <= code_point;
}

// Where the last character of a text that is not empty starts, if it is valid UTF-8; else at one of
// its last bytes.
size_t last_char_begin(std::string_view text) {
  size_t start = text.size() - 1;
  while (start > 0 && text.size() - start < 4 &&
         (static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) {
    --start;
  }
  return start;
}

constexpr uint8_t kMultiByte = 4;  // in kByteClass: look at the whole character

constexpr std::array<uint8_t, 256> make_byte_class() {
  std::array<uint8_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    table[i] =
        i < 0x80 ? (kClassBlocks[kClassBlockIndex[0]][i / 4] >> (i % 4 * 2)) & 3 : kMultiByte;
  }
  return table;
}
constexpr std::array<uint8_t, 256> kByteClass = make_byte_class();

uint8_t byte_class(std::string_view text, size_t position) {
  return kByteClass[static_cast<uint8_t>(text[position])];
}

struct ClassifiedChar {
  CharClass char_class;
  size_t num_bytes;
};

ClassifiedChar classify(std::string_view text, size_t position) {
  const uint8_t quick = byte_class(text, position);
  if (quick != kMultiByte) return {static_cast<CharClass>(quick), 1};
  const Utf8Char c = decode_utf8(text, position);
  const bool is_valid = c.state == Utf8Char::State::kValid;
  return {is_valid ? char_class(c.code_point) : CharClass::kOther, c.num_bytes};
}

size_t run_end(std::string_view text, size_t position, CharClass wanted) {
  while (position < text.size()) {
    const ClassifiedChar c = classify(text, position);
    if (c.char_class != wanted) break;
    position += c.num_bytes;
  }
  return position;
}

// Length of 's 't 're 've 'm 'll 'd at an apostrophe, or 0.
size_t contraction_length(std::string_view text, size_t begin) {
  if (begin + 1 >= text.size()) return 0;
  const char first = text[begin + 1];
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if (begin + 2 >= text.size()) return 0;
  const char second = text[begin + 2];
  const bool is_pair =
      ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
  return is_pair ? 3 : 0;
}

// \s+(?!\S)|\s+ : the run leaves its last character to the next piece, unless the text ends there
// or it is the only one.
size_t space_piece_end(std::string_view text, size_t begin) {
  size_t last = begin;
  size_t end = begin;
  while (end < text.size()) {
    const ClassifiedChar c = classify(text, end);
    if (c.char_class != CharClass::kSpace) break;
    last = end;
    end += c.num_bytes;
  }
  return end == text.size() || last == begin ? end : last;
}

}  // namespace

CharClass char_class(uint32_t code_point) {
  const uint32_t in_block = code_point % 128;
  const uint8_t four = kClassBlocks[kClassBlockIndex[code_point / 128]][in_block / 4];
  return static_cast<CharClass>((four >> (in_block % 4 * 2)) & 3);
}

size_t gpt2_piece_end(std::string_view text, size_t begin) {
  if (text[begin] == '\'') {
    const size_t length = contraction_length(text, begin);
    if (length > 0) return begin + length;
  }
  ClassifiedChar c = classify(text, begin);
  size_t position = begin;
  if (text[begin] == ' ' && begin + 1 < text.size()) {
    const ClassifiedChar next = classify(text, begin + 1);
    if (next.char_class != CharClass::kSpace) {
      c = next;
      position = begin + 1;
    }
  }
  if (c.char_class == CharClass::kSpace) return space_piece_end(text, begin);
  return run_end(text, position + c.num_bytes, c.char_class);
}

size_t leading_space(std::string_view text) { return run_end(text, 0, CharClass::kSpace); }

size_t trailing_space(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    const size_t start = last_char_begin(text.substr(0, begin));
    const ClassifiedChar c = classify(text, start);
    if (c.char_class != CharClass::kSpace || start + c.num_bytes != begin) break;
    begin = start;
  }
  return text.size() - begin;
}

bool starts_with_word(std::string_view text) {
  if (text.empty()) return false;
  const Utf8Char c = decode_utf8(text, 0);
  return c.state == Utf8Char::State::kValid && is_word_char(c.code_point);
}

bool ends_with_word(std::string_view text) {
  if (text.empty()) return false;
  const size_t start = last_char_begin(text);
  const Utf8Char c = decode_utf8(text, start);
  return c.state == Utf8Char::State::kValid && start + c.num_bytes == text.size() &&
         is_word_char(c.code_point);
}

}  // namespace caravan
