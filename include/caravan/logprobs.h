#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace caravan {

/// Of the model itself: log softmax of its logits, before penalties and temperature.
struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;  // natural logarithm
  int32_t rank = 0;   // 1: the most likely
};

/// One token of an output or a prompt, with what was asked about it.
struct ScoredToken {
  int32_t token_id = 0;
  std::optional<TokenLogprob> logprob;     // unset when not asked for, or the first of a prompt
  std::vector<TokenLogprob> top_logprobs;  // most likely first, the lower id on a tie
};

}  // namespace caravan
