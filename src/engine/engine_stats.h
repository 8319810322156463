#pragma once

#include <cstdint>

namespace caravan {

/// Figures of one moment; counters since the start.
struct EngineStats {
  int64_t num_running = 0;
  int64_t num_waiting = 0;
  int64_t block_size = 0;  // tokens
  int64_t num_blocks = 0;
  int64_t num_free_blocks = 0;    // nobody needs them; their contents may still serve as a prefix
  int64_t prefix_queries = 0;     // prompt tokens looked up
  int64_t prefix_hits = 0;        // of those, found
  int64_t num_prompt_tokens = 0;  // of requests that were admitted
  int64_t num_generated_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t num_steps = 0;
};

}  // namespace caravan
