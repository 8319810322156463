#include "kernels/cpu/isa_kernels.h"
// The vector type comes first: the templates below are instantiated with it.
#include "kernels/cpu/simd_avx512.inl"
#include "kernels/cpu/vector_kernels.h"

namespace caravan {

const CpuKernels& avx512_kernels() { return cpu::kVectorKernels<cpu::F32x16>; }

}  // namespace caravan
