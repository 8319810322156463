#include "tokenizer/utf8.h"

namespace caravan {

namespace {

constexpr uint32_t kReplacement = 0xFFFD;

struct LeadByte {
  uint32_t num_bytes;      // of the whole character; 0: cannot start one
  uint8_t second_min = 0;  // range of the second byte
  uint8_t second_max = 0;
};

LeadByte classify_lead(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

}  // namespace

Utf8Char decode_utf8(std::string_view text, size_t position) {
  using State = Utf8Char::State;
  const auto byte_at = [&](size_t i) { return static_cast<uint8_t>(text[position + i]); };
  const uint8_t first = byte_at(0);
  const LeadByte lead = classify_lead(first);
  if (lead.num_bytes == 1) return {first, 1, State::kValid};
  if (lead.num_bytes == 0) return {kReplacement, 1, State::kIllFormed};
  uint32_t code_point = first & (0xFFu >> (lead.num_bytes + 1));
  for (uint32_t i = 1; i < lead.num_bytes; ++i) {
    if (position + i == text.size()) return {kReplacement, i, State::kTruncated};
    const uint8_t byte = byte_at(i);
    const uint8_t min = i == 1 ? lead.second_min : 0x80;
    const uint8_t max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return {kReplacement, i, State::kIllFormed};
    code_point = (code_point << 6) | (byte & 0x3F);
  }
  return {code_point, lead.num_bytes, State::kValid};
}

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = decode_utf8(text, i);
    if (c.state != Utf8Char::State::kValid) return false;
    i += c.num_bytes;
  }
  return true;
}

void append_utf8(uint32_t code_point, std::string& out) {
  const auto continuation = [&](int shift) {
    out.push_back(static_cast<char>(0x80 | ((code_point >> shift) & 0x3F)));
  };
  if (code_point < 0x80) {
    out.push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out.push_back(static_cast<char>(0xC0 | (code_point >> 6)));
    continuation(0);
  } else if (code_point < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | (code_point >> 12)));
    continuation(6);
    continuation(0);
  } else {
    out.push_back(static_cast<char>(0xF0 | (code_point >> 18)));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

size_t append_sanitized_utf8(std::string_view bytes, bool is_end, std::string& out) {
  size_t position = 0;
  while (position < bytes.size()) {
    const Utf8Char c = decode_utf8(bytes, position);
    if (c.state == Utf8Char::State::kTruncated && !is_end) break;
    if (c.state == Utf8Char::State::kValid) {
      out.append(bytes, position, c.num_bytes);
    } else {
      append_utf8(kReplacement, out);
    }
    position += c.num_bytes;
  }
  return position;
}

}  // namespace caravan
