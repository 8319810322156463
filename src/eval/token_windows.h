#pragma once

#include <cstdint>
#include <vector>

namespace caravan {

/// A part of a tokenized document that the model reads at once, from position 0 of an empty cache,
/// and the tokens of it that are scored. Positions are indices into the document's tokens.
struct TokenWindow {
  int64_t document = 0;
  int64_t begin = 0;  // tokens [begin, end) are fed
  int64_t end = 0;
  int64_t target_begin = 0;  // tokens [target_begin, target_end) are scored
  int64_t target_end = 0;    // at most end + 1: row t - 1 - begin predicts token t

  int64_t num_tokens() const { return end - begin; }
  int64_t num_targets() const { return target_end - target_begin; }
  /// Rows [first_row, end_row) of the window's logits predict the targets.
  int64_t first_row() const { return target_begin - 1 - begin; }
  int64_t end_row() const { return target_end - 1 - begin; }
  bool operator==(const TokenWindow&) const = default;
};

/// Windows of `window` tokens that begin every `stride` tokens; of each only what the windows
/// before it did not hold is scored. stride == window: disjoint, and the first token of each window
/// is not scored, for nothing precedes it there. stride < window: every token but the document's
/// first is scored, each but those of the first window with at least window - stride tokens of
/// context. No windows for fewer than 2 tokens. Requires: 2 <= window, 1 <= stride <= window.
/// Source: Hugging Face, "Perplexity of fixed-length models".
std::vector<TokenWindow> sliding_windows(int64_t document, int64_t num_tokens, int64_t window,
                                         int64_t stride);

/// Windows of `window` tokens, each scoring the `window` tokens after its first: every token of the
/// document but its first is scored, so a document that begins with a token put before the text is
/// scored whole. The last window reaches back for a full context.
/// No windows for fewer than 2 tokens. Requires: window >= 1.
/// Source: lm-evaluation-harness, loglikelihood_rolling with context_len 1.
std::vector<TokenWindow> rolling_windows(int64_t document, int64_t num_tokens, int64_t window);

}  // namespace caravan
