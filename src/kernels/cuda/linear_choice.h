#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace caravan::cuda {

enum class LinearKernel : uint8_t { kStream, kWgmma, kMma, kSimple };
/// Which of them runs: a pure function of the weight's shape, the dtype, the device and the number
/// of rows. The kernels of one weight on one device share their bits (kSimple never mixes).
LinearKernel choose_linear_kernel(int64_t num_tokens, int64_t in_features, int64_t out_features,
                                  DType dtype, int compute_capability);

}  // namespace caravan::cuda
