#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "caravan/llm.h"
#include "caravan/logprobs.h"
#include "caravan/sampling_params.h"

namespace caravan {

/// One request on its way through the engine: its tokens, its cache blocks, how far it is.
struct Sequence {
  int64_t id = 0;
  SamplingParams params;
  int32_t priority = 0;            // lower goes first
  std::vector<int32_t> token_ids;  // prompt, then output; negative while on its way (Batch)
  int64_t num_prompt_tokens = 0;
  int64_t num_computed = 0;  // tokens whose K and V are in the cache
  std::vector<int32_t> block_table;
  int64_t slot = -1;  // place among the running ones, in [0, max_batch_size)
  FinishReason finish_reason = FinishReason::kNone;
  std::vector<int32_t> banned;      // with min_output_len: what would end the output
  std::vector<ScoredToken> scored;  // the output's tokens, when their log probabilities are wanted
  std::vector<ScoredToken> prompt_scored;  // the same of the prompt; its first has none
  int64_t num_cached_tokens = 0;           // of the prompt, spared by the prefix cache

  using Clock = std::chrono::steady_clock;
  Clock::time_point arrival;
  Clock::time_point first_step;
  Clock::time_point first_token;
  Clock::time_point last_token;

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  /// All its tokens are there or on their way.
  bool is_complete() const { return num_output_tokens() >= params.max_output_len; }
  /// Tokens that it may reach: what its cache blocks are reserved for.
  int64_t max_num_tokens() const { return num_prompt_tokens + params.max_output_len; }
};

}  // namespace caravan
