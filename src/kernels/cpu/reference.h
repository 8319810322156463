#pragma once

#include "kernels/cpu/cpu_kernels.h"

namespace caravan {

/// The oracle: each operator in its plainest form, double accumulation, any weight layout, one row
/// and one element at a time. Every other kernel is compared with it.
const CpuKernels& reference_kernels();

}  // namespace caravan
