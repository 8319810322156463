#pragma once

#include <cstddef>

#include "kernels/cpu/cpu_kernels.h"

namespace caravan {

/// Linear layers with bfloat16 weights on emulated AMX tiles, with the blocking and packing of the
/// real kernel. Requires: cpu_isa_available(CpuIsa::kAvx2).
void emulated_amx_linear(const LinearParams& p, const CpuContext& context);
size_t emulated_amx_scratch_bytes(const CpuScratchSpec& spec);

}  // namespace caravan
