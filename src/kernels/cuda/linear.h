#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/op_params.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_choice.h"

namespace caravan::cuda {

/// y = activation(x W + bias). Every output is one chain: k in order in steps of 16, one float32
/// accumulator in the tensor cores (float32 weights: one FMA a k), then bias, then activation in
/// float32, then one rounding. No kernel splits k, so all of them give the same bits for a row,
/// whatever the number of rows.
struct LinearArgs {
  int64_t num_tokens = 0;
  int64_t in_features = 0;
  int64_t out_features = 0;
  DType dtype = DType::kF16;  // of x and weight: kF16, kBF16 or kF32
  const void* x = nullptr;    // [num_tokens, in_features]
  /// Rows from x on that may be read, at least num_tokens; whatever is in those beyond. A tensor
  /// copy that reaches outside its tensor is slow (H100, 4096 x 4096, tiles of 128 x 64: 28.6 us
  /// for 192 rows, 19.1 us for 256). 0: num_tokens.
  int64_t num_readable_rows = 0;
  const void* weight = nullptr;  // 16 bits: LinearLayout::kCore8x8; float32: kOutIn
  const float* bias = nullptr;   // [out_features] or null
  Activation activation = Activation::kNone;
  void* y = nullptr;            // [num_tokens, y_stride], the first out_features of a row written
  int64_t y_stride = 0;         // elements from one row of y to the next, >= out_features
  DType y_dtype = DType::kF16;  // dtype, or kF32 (logits)
};

/// Hopper, 16 bits, num_tokens <= kMaxStreamTokens, in_features % 8 == 0: weights streamed through
/// shared memory by bulk copies, one warp for 16 outputs, mma.sync.
inline constexpr int64_t kMaxStreamTokens = 64;
void launch_linear_stream(const LinearArgs& args, const LaunchContext& context);

/// Hopper, 16 bits, any num_tokens, in_features % 8 == 0: tensor copies and wgmma.
void launch_linear_wgmma(const LinearArgs& args, const LaunchContext& context);

/// sm_80 and newer, 16 bits, any num_tokens, in_features % 8 == 0: cp.async and mma.sync.
void launch_linear_mma(const LinearArgs& args, const LaunchContext& context);

/// Any device, dtype and size; one FMA chain over k. For float32 and odd sizes.
void launch_linear_simple(const LinearArgs& args, const LaunchContext& context);

/// Runs the kernel of choose_linear_kernel.
void launch_linear(const LinearArgs& args, const LaunchContext& context);

}  // namespace caravan::cuda
