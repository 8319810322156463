#include "eval/token_windows.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace caravan {
namespace {

/// How often each token of a document of n is scored; checks that every window is well-formed.
std::vector<int> times_scored(const std::vector<TokenWindow>& windows, int64_t n, int64_t window) {
  std::vector<int> times(static_cast<size_t>(n), 0);
  for (const TokenWindow& w : windows) {
    EXPECT_EQ(w.document, 3);
    EXPECT_GE(w.begin, 0);
    EXPECT_LE(w.end, n);
    EXPECT_LE(w.num_tokens(), window);
    EXPECT_GT(w.num_targets(), 0);
    EXPECT_GE(w.first_row(), 0);
    EXPECT_LE(w.end_row(), w.num_tokens());
    for (int64_t t = w.target_begin; t < w.target_end; ++t) ++times[static_cast<size_t>(t)];
  }
  return times;
}

TEST(SlidingWindows, ScoreEachTokenOnceWithTheContextTheyPromise) {
  for (const int64_t window : {2, 3, 7, 16}) {
    for (int64_t stride = 1; stride <= window; ++stride) {
      for (int64_t n = 0; n <= 40; ++n) {
        SCOPED_TRACE(testing::Message()
                     << n << " tokens, window " << window << ", stride " << stride);
        const auto windows = sliding_windows(3, n, window, stride);
        const std::vector<int> times = times_scored(windows, n, window);
        for (int64_t t = 0; t < n; ++t) {
          // Disjoint windows cannot score their own first token.
          const bool is_scored = stride < window ? t > 0 : t % window != 0;
          EXPECT_EQ(times[static_cast<size_t>(t)], is_scored ? 1 : 0) << "token " << t;
        }
        for (const TokenWindow& w : windows) {
          EXPECT_EQ(w.begin % stride, 0);
          if (w.begin > 0 && stride < window) {
            EXPECT_GE(w.target_begin - w.begin, window - stride);
          }
        }
      }
    }
  }
}

TEST(SlidingWindows, KnownWindows) {
  const std::vector<TokenWindow> disjoint = {{0, 0, 4, 1, 4}, {0, 4, 8, 5, 8}, {0, 8, 10, 9, 10}};
  EXPECT_EQ(sliding_windows(0, 10, 4, 4), disjoint);
  EXPECT_EQ(sliding_windows(0, 9, 4, 4).size(), 2u);  // one token alone predicts nothing
  const std::vector<TokenWindow> overlapping = {{0, 0, 4, 1, 4}, {0, 2, 6, 4, 6}, {0, 4, 7, 6, 7}};
  EXPECT_EQ(sliding_windows(0, 7, 4, 2), overlapping);
  // The golden perplexity of camel-nano: 286,221 tokens in windows of 1,024 score 285,941.
  int64_t num_scored = 0;
  for (const TokenWindow& w : sliding_windows(0, 286221, 1024, 1024)) num_scored += w.num_targets();
  EXPECT_EQ(num_scored, 285941);
}

TEST(SlidingWindows, RefuseSizesThatScoreNothing) {
  EXPECT_THROW(sliding_windows(0, 10, 1, 1), Error);
  EXPECT_THROW(sliding_windows(0, 10, 4, 0), Error);
  EXPECT_THROW(sliding_windows(0, 10, 4, 5), Error);
  EXPECT_THROW(rolling_windows(0, 10, 0), Error);
}

TEST(RollingWindows, ScoreEachTokenButTheFirstOnce) {
  for (const int64_t window : {1, 2, 3, 7, 16}) {
    for (int64_t n = 0; n <= 40; ++n) {
      SCOPED_TRACE(testing::Message() << n << " tokens, window " << window);
      const auto windows = rolling_windows(3, n, window);
      const std::vector<int> times = times_scored(windows, n, window);
      for (int64_t t = 0; t < n; ++t) EXPECT_EQ(times[static_cast<size_t>(t)], t > 0 ? 1 : 0);
      for (const TokenWindow& w : windows) {
        EXPECT_EQ(w.num_tokens(), std::min(window, w.target_end - 1));  // a full context
      }
    }
  }
}

TEST(RollingWindows, AreThoseOfTheEvaluationHarness) {
  // get_rolling_token_windows(tokens 1..9, prefix_token 0, max_seq_len 4, context_len 1) gives
  // ([0,1,2,3], [1,2,3,4]), ([4,5,6,7], [5,6,7,8]), ([5,6,7,8], [9]).
  const std::vector<TokenWindow> wanted = {{0, 0, 4, 1, 5}, {0, 4, 8, 5, 9}, {0, 5, 9, 9, 10}};
  EXPECT_EQ(rolling_windows(0, 10, 4), wanted);
}

}  // namespace
}  // namespace caravan
