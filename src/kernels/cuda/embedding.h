#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "kernels/cuda/launch.h"

namespace caravan::cuda {

/// out[t] = wte[id(t)] + wpe[positions[t]] in float32; id(t) = token_ids[t], or, when that is
/// negative, sampled[-1 - token_ids[t]]: the token that the step before this one chose for its row.
/// An id outside of the vocabulary gives a row of NaN and reads nothing; positions are not checked.
struct EmbeddingArgs {
  int64_t num_tokens = 0;
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  const int32_t* token_ids = nullptr;  // [num_tokens]
  const int32_t* sampled = nullptr;  // tokens of the last step; may be null when no id is negative
  const int32_t* positions = nullptr;  // [num_tokens]
  const void* wte = nullptr;           // as LinearArgs::weight with out_features = vocab_size
  const void* wpe = nullptr;           // [num_positions, hidden_size] of dtype
  DType dtype = DType::kF16;           // of wte and wpe
  float* out = nullptr;                // [num_tokens, hidden_size]
};
void launch_embedding(const EmbeddingArgs& args, const LaunchContext& context);

/// out[i] = x[rows[i]]: rows of row_bytes bytes.
struct GatherRowsArgs {
  int64_t num_rows = 0;
  int64_t row_bytes = 0;
  const int32_t* rows = nullptr;  // [num_rows]
  const void* x = nullptr;
  void* out = nullptr;
};
void launch_gather_rows(const GatherRowsArgs& args, const LaunchContext& context);

/// dst = src by a kernel, which takes less time inside a recorded step than a copy engine's start;
/// src may be mapped host memory. Both aligned to 16 bytes, num_bytes rounded up to 16.
void launch_copy(const void* src, void* dst, int64_t num_bytes, const LaunchContext& context);

/// Packs W from a row-major [out, in] (is_in_out: [in, out]) array into LinearLayout::kCore8x8 (16
/// bits) or kOutIn (float32) on the device, padding zeroed; src_dtype kF32, kF16 or kBF16 is
/// rounded to dst_dtype. Requires: dst aligned to 16 bytes.
struct PackWeightArgs {
  int64_t in_features = 0;
  int64_t out_features = 0;
  bool is_in_out = false;
  const void* src = nullptr;
  DType src_dtype = DType::kF32;
  void* dst = nullptr;
  DType dst_dtype = DType::kF16;
};
void launch_pack_weight(const PackWeightArgs& args, const LaunchContext& context);

/// data[i] = mean + scale * a uniform random number in [-1, 1), a function of seed and i alone,
/// rounded to dtype (int8 and float8_e4m3fn: clamped to +-127 and +-448). Requires: data aligned to
/// 16 bytes.
void launch_fill_random(void* data, DType dtype, int64_t count, float mean, float scale,
                        uint64_t seed, const LaunchContext& context);

}  // namespace caravan::cuda
