#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "kernels/cuda/launch.h"

namespace caravan::cuda {

/// x += delta + delta_bias (when delta is given); y = (x - mean) / sqrt(variance + epsilon) *
/// weight + bias, row by row. Sums in float32, variance from the deviations (two-pass) or Welford;
/// one row's arithmetic depends on hidden_size, the dtypes, whether there is a delta and whether
/// the pointers are aligned to 16 bytes (faster when they are), never on the number of rows. x of
/// 16 bits is rounded before its mean is taken: y is the LayerNorm of what x holds afterwards.
/// NaN and infinities stay in their row. Errors: kInvalidArgument for hidden_size < 1, kUnsupported
/// for other dtypes. Source: Ba et al. 2016, eq. 4.
struct LayerNormArgs {
  int64_t num_tokens = 0;
  int64_t hidden_size = 0;            // 1 to 16384 and more, odd ones too
  void* x = nullptr;                  // [num_tokens, hidden_size] of x_dtype; written with delta
  DType x_dtype = DType::kF32;        // kF32, kF16 or kBF16
  const void* delta = nullptr;        // [num_tokens, hidden_size] of y_dtype, or null
  const float* delta_bias = nullptr;  // [hidden_size] or null
  const float* weight = nullptr;      // [hidden_size]
  const float* bias = nullptr;        // [hidden_size]
  float epsilon = 1e-5f;
  void* y = nullptr;            // [num_tokens, hidden_size] of y_dtype; may be x without delta
  DType y_dtype = DType::kF16;  // x_dtype, or 16 bits with x_dtype kF32
};
void launch_layer_norm(const LayerNormArgs& args, const LaunchContext& context);

/// The steps of docs/kernels/layer_norm.md, for the bench: 16-bit x and y, no delta.
enum class LayerNormStep : uint8_t { kScalar, kVectorized, kRegisters, kFinal };
const char* layer_norm_step_name(LayerNormStep step);
void launch_layer_norm_step(LayerNormStep step, const LayerNormArgs& args,
                            const LaunchContext& context);

}  // namespace caravan::cuda
