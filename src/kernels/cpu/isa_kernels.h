#pragma once

#include "kernels/cpu/cpu_kernels.h"

namespace caravan {

// One table for each instruction set, each compiled in its own file for that instruction set alone.

const CpuKernels& avx2_kernels();
const CpuKernels& avx512_kernels();
/// AVX-512's kernels, but for linear layers with bfloat16 weights.
const CpuKernels& amx_kernels();

}  // namespace caravan
