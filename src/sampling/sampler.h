#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "caravan/sampling_params.h"

namespace caravan {

/// Counter-based random number in [0, 1) with 53 bits: a pure function of its two keys, so that a
/// request draws the same numbers whatever runs beside it. Source: SplitMix64, Steele et al. 2014.
double uniform_random(uint64_t seed, uint64_t counter);

/// Errors: kInvalidArgument naming the field, got and wanted.
void validate(const SamplingParams& params);

/// Chooses the next token of one sequence. Keeps scratch memory, so use one for a thread.
class Sampler {
 public:
  /// logits: [vocab_size], unchanged. history: prompt and output so far. Order of the steps as in
  /// transformers: repetition penalty, temperature, top-k, top-p; then one draw at
  /// (params.seed, history.size()).
  int32_t sample(std::span<const float> logits, const SamplingParams& params,
                 std::span<const int32_t> history);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  std::vector<float> logits_;
  std::vector<uint8_t> seen_;
  std::vector<Candidate> candidates_;
  std::vector<double> cumulative_;
};

/// The most likely token; the lowest id on a tie.
int32_t argmax(std::span<const float> logits);

}  // namespace caravan
