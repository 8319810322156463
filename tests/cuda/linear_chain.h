#pragma once

#include "kernels/cuda/linear.h"

namespace caravan::cuda {

/// The bits that every 16-bit linear kernel must give: mma.sync m16n8k16 over k in order, one warp
/// for 16 rows and 8 outputs, then bias, activation and one rounding. Slow and plain.
/// Requires: in_features % 8 == 0, weight in LinearLayout::kCore8x8, y of args.dtype or kF32.
void chain_linear(const LinearArgs& args, const LaunchContext& context);

/// y[i] = activate_16bit(x[i]) rounded to dtype (kF16, kBF16), or activate_f32(x[i]) (kF32).
void activate_array(const float* x, void* y, DType dtype, Activation activation, int64_t count,
                    const LaunchContext& context);

}  // namespace caravan::cuda
