#include "kernels/cpu/amx_tiles.inl"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/linear_amx.h"
#include "kernels/cpu/simd_avx512.inl"

namespace caravan {

namespace {

size_t scratch_bytes(const CpuScratchSpec& spec) {
  const size_t tile_bytes = static_cast<size_t>(
      cpu::amx_scratch_bytes(spec.max_num_tokens, spec.max_in_features, spec.num_threads));
  const size_t vector_bytes = avx512_kernels().scratch_bytes(spec);
  return tile_bytes > vector_bytes ? tile_bytes : vector_bytes;
}

void linear(const LinearParams& p, const CpuContext& context) {
  if (p.weight.dtype != DType::kBF16) return avx512_kernels().linear(p, context);
  cpu::linear_amx<cpu::F32x16, cpu::AmxTiles>(p, context);
}

}  // namespace

const CpuKernels& amx_kernels() {
  static const CpuKernels kernels = [] {
    CpuKernels table = avx512_kernels();
    table.scratch_bytes = scratch_bytes;
    table.linear = linear;
    return table;
  }();
  return kernels;
}

}  // namespace caravan
