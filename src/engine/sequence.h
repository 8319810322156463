#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "caravan/llm.h"
#include "caravan/logprobs.h"
#include "caravan/sampling_params.h"
#include "engine/block_hash.h"

namespace caravan {

/// One request on its way through the engine: its tokens, its cache blocks, how far it is.
struct Sequence {
  int64_t id = 0;
  SamplingParams params;
  int32_t priority = 0;            // lower goes first
  BlockHash root;                  // of its chain of blocks, see BlockManager::root()
  bool needs_host = false;         // StepRunner::needs_host(params)
  std::vector<int32_t> token_ids;  // prompt, then output; negative while on its way (Batch)
  int64_t num_prompt_tokens = 0;
  FinishReason finish_reason = FinishReason::kNone;
  std::vector<int32_t> banned;      // with min_output_len: what would end the output
  std::vector<ScoredToken> scored;  // the output's tokens, when their log probabilities are wanted
  std::vector<ScoredToken> prompt_scored;  // the same of the prompt; its first has none
  int64_t num_cached_tokens = 0;           // of the prompt, spared by the prefix cache

  // The scheduler's.
  int64_t order = 0;         // the least goes first, then the least id
  int64_t num_computed = 0;  // tokens whose K and V are in the cache, or will be when steps that
                             // are in flight have ended
  std::vector<int32_t> block_table;
  std::vector<BlockHash> block_hashes;  // of its full blocks, as far as they were needed
  int64_t num_remembered = 0;           // blocks of the table that the prefix cache was told of
  int64_t slot = -1;  // place among the running ones, in [0, max_batch_size); -1: it waits
  bool has_device_state = false;  // the device saw its tokens in this slot (is_first_output)
  int64_t num_preemptions = 0;

  using Clock = std::chrono::steady_clock;
  Clock::time_point arrival;
  Clock::time_point first_step;
  Clock::time_point first_token;
  Clock::time_point last_token;

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  /// Tokens that are not on their way: only the last ones can be.
  int64_t num_known_tokens() const {
    int64_t count = num_tokens();
    while (count > 0 && token_ids[static_cast<size_t>(count - 1)] < 0) --count;
    return count;
  }
  /// Tokens that steps are still to be given. The last token of all is never fed back.
  int64_t num_missing() const {
    return std::min(num_tokens(), max_num_tokens() - (params.max_output_len > 0 ? 1 : 0)) -
           num_computed;
  }
  /// Tokens that it may reach.
  int64_t max_num_tokens() const { return num_prompt_tokens + params.max_output_len; }
  /// Prompt tokens are still to be scored.
  bool wants_prompt_scores() const {
    return params.num_prompt_logprobs >= 0 &&
           static_cast<int64_t>(prompt_scored.size()) < num_prompt_tokens;
  }
};

/// Of one that was cancelled, or whose numbers were not finite, the times up to now.
RequestTimings timings_of(const Sequence& sequence);

}  // namespace caravan
