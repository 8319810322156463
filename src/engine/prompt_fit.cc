#include "engine/prompt_fit.h"

#include <algorithm>

#include "core/error.h"

namespace caravan {

std::optional<Overflow> parse_overflow(std::string_view name) {
  if (name == "head") return Overflow::kHead;
  if (name == "tail") return Overflow::kTail;
  if (name == "middle") return Overflow::kMiddle;
  return std::nullopt;
}

TokenRange find_inner_tokens(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                             size_t num_text_bytes, size_t prefix_bytes, size_t suffix_bytes) {
  size_t num_bytes = 0;
  for (const int32_t id : ids) num_bytes += tokenizer.token_bytes(id).size();
  // A tokenizer with add_prefix_space puts one byte in front of the text.
  const size_t num_added = num_bytes - num_text_bytes;
  CARAVAN_CHECK_CODE(num_bytes >= num_text_bytes && num_added <= 1, kUnsupported,
                     "a text of {} bytes became tokens of {} bytes: this tokenizer changes what it "
                     "encodes, so prompts cannot be cut",
                     num_text_bytes, num_bytes);
  const size_t inner_begin = prefix_bytes == 0 ? 0 : prefix_bytes + num_added;
  const size_t inner_end = num_bytes - suffix_bytes;
  TokenRange inner{ids.size(), 0};
  size_t offset = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const size_t end = offset + tokenizer.token_bytes(ids[i]).size();
    if (offset >= inner_begin && end <= inner_end) {
      inner.first = std::min(inner.first, i);
      inner.last = i + 1;
    }
    offset = end;
  }
  inner.first = std::min(inner.first, inner.last);
  return inner;
}

void drop_tokens(std::vector<int32_t>& ids, TokenRange inner, int64_t num_dropped,
                 Overflow overflow) {
  const int64_t num_kept = inner.size() - num_dropped;
  auto first = static_cast<int64_t>(inner.first);  // of those that are left out
  if (overflow == Overflow::kTail) first += num_kept;
  if (overflow == Overflow::kMiddle) first += (num_kept + 1) / 2;
  ids.erase(ids.begin() + first, ids.begin() + first + num_dropped);
}

}  // namespace caravan
