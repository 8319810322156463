#include "tokenizer/byte_alphabet.h"

#include <array>

#include "tokenizer/utf8.h"

namespace caravan {

namespace {

constexpr uint32_t kAlphabetEnd = 0x144;

constexpr bool stands_for_itself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
}

struct Alphabet {
  std::array<uint16_t, 256> code_points{};
  std::array<int16_t, kAlphabetEnd> bytes{};  // -1: not in the alphabet
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (auto& byte : alphabet.bytes) byte = -1;
  uint16_t next = 0x100;
  for (uint16_t byte = 0; byte < 256; ++byte) {
    const uint16_t code_point = stands_for_itself(byte) ? byte : next++;
    alphabet.code_points[byte] = code_point;
    alphabet.bytes[code_point] = static_cast<int16_t>(byte);
  }
  return alphabet;
}
constexpr Alphabet kAlphabet = make_alphabet();
static_assert(kAlphabet.code_points[' '] == 0x120);
static_assert(kAlphabet.bytes[kAlphabetEnd - 1] == 0xAD);

}  // namespace

std::optional<uint32_t> append_token_bytes(std::string_view written, std::string& out) {
  for (size_t position = 0; position < written.size();) {
    // Most characters are ASCII: no decoder for them, loading a vocabulary is full of them.
    const auto first = static_cast<uint8_t>(written[position]);
    const Utf8Char c =
        first < 0x80 ? Utf8Char{first, 1, Utf8Char::State::kValid} : decode_utf8(written, position);
    if (c.code_point >= kAlphabetEnd || kAlphabet.bytes[c.code_point] < 0) return c.code_point;
    out.push_back(static_cast<char>(kAlphabet.bytes[c.code_point]));
    position += c.num_bytes;
  }
  return std::nullopt;
}

std::string written_form(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) {
    append_utf8(kAlphabet.code_points[static_cast<uint8_t>(byte)], out);
  }
  return out;
}

}  // namespace caravan
