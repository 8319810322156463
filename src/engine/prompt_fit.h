#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace caravan {

/// Which tokens of a prompt that is too long are left out: the first, the last, or those between.
enum class Overflow : uint8_t { kHead, kTail, kMiddle };
std::optional<Overflow> parse_overflow(std::string_view name);

/// Token ids in [first, last).
struct TokenRange {
  size_t first = 0;
  size_t last = 0;
  int64_t size() const { return static_cast<int64_t>(last - first); }
};

/// The tokens of an encoding that lie between the first prefix_bytes and the last suffix_bytes of
/// the text; a token with a byte of either is not among them. num_text_bytes: of the whole text.
/// Errors: kUnsupported when the tokenizer changes what it encodes.
TokenRange find_inner_tokens(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                             size_t num_text_bytes, size_t prefix_bytes, size_t suffix_bytes);

/// Leaves num_dropped tokens of `inner` out. kMiddle drops from the middle of them, the larger half
/// (by one) staying in front. Requires: 0 <= num_dropped <= inner.size().
void drop_tokens(std::vector<int32_t>& ids, TokenRange inner, int64_t num_dropped,
                 Overflow overflow);

}  // namespace caravan
