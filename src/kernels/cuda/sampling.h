#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"

namespace caravan::cuda {

/// How the token of one row is chosen; the fields mean what they mean in SamplingParams.
struct RowSampling {
  float temperature = 0.0f;  // 0: greedy, the lowest id on a tie
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;
  float repetition_penalty = 1.0f;  // 1: history is not read
  uint64_t seed = 0;
  uint64_t counter = 0;       // history length: the draw is uniform_random(seed, counter)
  int32_t history_slot = -1;  // row of `seen` that holds the sequence's tokens; -1: none
  int32_t padding = 0;
};

/// In host_tokens: the row cannot be sampled.
constexpr int32_t kNoToken = -1;

struct SampleArgs {
  int64_t num_rows = 0;
  int64_t vocab_size = 0;
  int64_t logits_stride = 0;          // elements from one row to the next, >= vocab_size
  const float* logits = nullptr;      // [num_rows, logits_stride]
  const RowSampling* rows = nullptr;  // [num_rows], device; null: is_greedy, no seen
  bool is_greedy = false;             // host's promise that every row is plain argmax
  uint32_t* seen = nullptr;           // [slots][ceil(vocab_size / 32)] bits: tokens of a sequence;
                                      // the chosen token's bit is set. null: nobody uses a penalty
  int32_t* tokens = nullptr;          // [num_rows], device: the chosen ids
  int32_t* host_tokens = nullptr;     // [num_rows], mapped pinned memory, or null
};
/// Same choice as Sampler::sample (src/sampling) up to rounding of the probabilities: repetition
/// penalty, temperature, top-k, top-p, one draw. A row with a NaN, +infinity or nothing above
/// -infinity gives token 0 and host token kNoToken. A row's token does not depend on the other
/// rows. Requires: vocab_size <= 2^19.
void launch_sample(const SampleArgs& args, const LaunchContext& context);

/// Sets the bits of `ids`, in device or mapped host memory, in row `slot` of seen (clear_first:
/// after clearing the row).
void launch_mark_seen(uint32_t* seen, int64_t slot, int64_t vocab_size, const int32_t* ids,
                      int64_t count, bool clear_first, const LaunchContext& context);

}  // namespace caravan::cuda
