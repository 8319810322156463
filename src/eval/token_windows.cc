#include "eval/token_windows.h"

#include <algorithm>

#include "core/error.h"

namespace caravan {

std::vector<TokenWindow> sliding_windows(int64_t document, int64_t num_tokens, int64_t window,
                                         int64_t stride) {
  CARAVAN_CHECK(window >= 2 && stride >= 1 && stride <= window,
                "windows of {} tokens with stride {}: expected at least 2 tokens and a stride from "
                "1 to the window",
                window, stride);
  std::vector<TokenWindow> windows;
  int64_t last_end = 0;
  for (int64_t begin = 0; last_end < num_tokens; begin += stride) {
    const int64_t end = std::min(begin + window, num_tokens);
    const TokenWindow w{document, begin, end, std::max(last_end, begin + 1), end};
    if (w.num_targets() > 0) windows.push_back(w);
    last_end = end;
  }
  return windows;
}

std::vector<TokenWindow> rolling_windows(int64_t document, int64_t num_tokens, int64_t window) {
  CARAVAN_CHECK(window >= 1, "windows of {} tokens: expected at least 1", window);
  std::vector<TokenWindow> windows;
  for (int64_t target = 1; target < num_tokens; target += window) {
    const int64_t target_end = std::min(target + window, num_tokens);
    windows.push_back({document, std::max<int64_t>(0, target_end - 1 - window), target_end - 1,
                       target, target_end});
  }
  return windows;
}

}  // namespace caravan
