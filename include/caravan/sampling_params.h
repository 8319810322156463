#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace caravan {

/// As a seed, -1 where it is written as a signed number: another one each time.
inline constexpr uint64_t kRandomSeed = ~uint64_t{0};

/// How one request chooses its tokens and when it ends. The defaults are greedy decoding.
struct SamplingParams {
  int64_t max_output_len = 128;     // tokens; at least 1, or 0 when only the prompt is scored
  int64_t min_output_len = 0;       // no end-of-text or stop token before so many
  float temperature = 0.0f;         // 0: greedy (argmax, the lowest id on a tie)
  int32_t top_k = 0;                // keep the k most likely tokens; 0: all
  float top_p = 1.0f;               // keep the fewest tokens whose probabilities reach p, in (0, 1]
  float min_p = 0.0f;               // keep tokens of at least min_p x the highest probability
  float repetition_penalty = 1.0f;  // > 0; Keskar et al. 2019: prompt and output tokens
  float presence_penalty = 0.0f;    // taken from the logit of a token that the output has
  float frequency_penalty = 0.0f;   // the same, times how often it has it
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id, what is added to its logit
  uint64_t seed = 0;        // same seed, prompt and settings: same tokens; or kRandomSeed
  bool ignore_eos = false;  // go on past the end-of-text token
  std::vector<int32_t> stop_token_ids;  // tokens that end the output
  std::vector<std::string> stop;        // text that ends the output; not part of it
  /// Log probabilities of the model itself (before penalties and temperature): -1 none, 0 that of
  /// the chosen token, k also the k most likely.
  int32_t num_logprobs = -1;
  int32_t num_prompt_logprobs = -1;  // the same for every prompt token but the first
};

}  // namespace caravan
