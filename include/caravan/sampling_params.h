#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace caravan {

/// How one request chooses its tokens and when it ends. The defaults are greedy decoding.
struct SamplingParams {
  int64_t max_output_len = 128;     // tokens, at least 1
  float temperature = 0.0f;         // 0: greedy (argmax, the lowest id on a tie)
  int32_t top_k = 0;                // keep the k most likely tokens; 0: all
  float top_p = 1.0f;               // keep the fewest tokens whose probabilities reach p, in (0, 1]
  float repetition_penalty = 1.0f;  // > 0; Keskar et al. 2019: prompt and output tokens
  uint64_t seed = 0;                // same seed, prompt and settings: same tokens
  bool ignore_eos = false;          // go on past the end-of-text token
  std::vector<std::string> stop;    // text that ends the output; not part of it
};

}  // namespace caravan
