#pragma once

#include <cstddef>

#include "kernels/cpu/cpu_kernels.h"

namespace caravan {

// What this machine can do at best, measured here and now: figures mean something only as ratios to
// these, taken in the same run. Each takes about a second and returns the best of many tries.

/// Sequential reads of `num_bytes` (1 GiB or more, so that no cache holds it) by all `threads`,
/// with the best of several prefetch distances.
double measure_read_gb_per_s(int threads, size_t num_bytes);

/// Copies `num_bytes` with all `threads`, past the caches; bytes read plus bytes written.
double measure_copy_gb_per_s(int threads, size_t num_bytes);

/// Register-resident float32 FMA with the registers of `isa` (kAvx2; kAvx512 also for kAmx), in
/// GFLOP/s, an FMA counted as two. 0 when the instruction set is not available.
double measure_fma_gflops(CpuIsa isa, int threads);

/// Register-resident TDPBF16PS, four accumulators, in GFLOP/s. 0 without AMX.
double measure_amx_bf16_gflops(int threads);

}  // namespace caravan
