#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "caravan/sampling_params.h"

namespace caravan {

/// Counter-based random number in [0, 1) with 53 bits: a pure function of its two keys, so that a
/// request draws the same numbers whatever runs beside it. Source: SplitMix64, Steele et al. 2014.
double uniform_random(uint64_t seed, uint64_t counter);

/// A seed of its own for kRandomSeed, below 2^63; any other as it is.
uint64_t resolve_seed(uint64_t seed);

/// Most tokens that num_logprobs and num_prompt_logprobs may ask for.
constexpr int32_t kMaxLogprobs = 1000;

/// Errors: kInvalidArgument naming the field, got and wanted. Token ids must be below vocab_size.
void validate(const SamplingParams& params, int64_t vocab_size);

/// True when the row can be sampled: no NaN, no +infinity and something above -infinity.
bool is_finite(std::span<const float> logits);

/// Chooses the next token of one sequence. Keeps scratch memory, so use one for a thread.
///
/// The steps, each on the result of the one before, in vLLM's order:
///   1. `banned` become -infinity; logit_bias is added
///   2. repetition penalty, for tokens of prompt and output (Keskar et al. 2019)
///   3. frequency penalty x occurrences, then presence penalty, for tokens of the output (OpenAI)
///   4. temperature 0: the most likely token, the lowest id on a tie; otherwise division by it
///   5. min-p: logits of at least the highest one + ln(min_p)
///   6. top-k, then top-p: the fewest of the rest, most likely first, whose share reaches top_p
///   7. one draw at (seed, tokens so far)
/// transformers has min-p after top-p; the rest is the same there. A logit that overflows to
/// +infinity on the way is chosen.
class Sampler {
 public:
  static constexpr int32_t kNotFinite = -1;

  /// logits: [vocab_size], unchanged. history: prompt and output so far, of which the first
  /// num_prompt_tokens are the prompt. Returns kNotFinite unless is_finite(logits), and when every
  /// token is banned.
  int32_t sample(std::span<const float> logits, const SamplingParams& params,
                 std::span<const int32_t> history, int64_t num_prompt_tokens = 0,
                 std::span<const int32_t> banned = {});

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  std::span<const float> adjusted(std::span<const float> logits, const SamplingParams& params,
                                  std::span<const int32_t> history, int64_t num_prompt_tokens,
                                  std::span<const int32_t> banned);
  void find_candidates(std::span<const float> logits, const SamplingParams& params);
  void sort_candidates();

  std::vector<float> logits_;
  std::vector<int32_t> counts_;  // [vocab_size], all zero between calls
  std::vector<Candidate> candidates_;
  std::vector<Candidate> sorted_;
  std::vector<double> cumulative_;
};

/// The most likely token; the lowest id on a tie.
int32_t argmax(std::span<const float> logits);

}  // namespace caravan
