#include "tests/conformance/emulated_amx.h"

#include "kernels/cpu/linear_amx.h"
#include "kernels/cpu/simd_avx2.inl"

namespace caravan {

namespace {

/// Tile registers in memory. A multiplication follows TDPBF16PS of Intel's instruction set
/// reference: a row and column of the result gains the sum of two chains from zero, one of the even
/// and one of the odd elements, each of FMAs; denormals count as zero.
class EmulatedTiles {
 public:
  explicit EmulatedTiles(int rows) {
    for (int tile = 0; tile < 8; ++tile) rows_[tile] = tile < 6 ? rows : 16;
  }

  template <int kTile>
  void zero() {
    __builtin_memset(data_[kTile], 0, sizeof(data_[kTile]));
  }
  template <int kTile>
  void load(const void* from, int64_t stride) {
    zero<kTile>();
    for (int r = 0; r < rows_[kTile]; ++r) {
      __builtin_memcpy(data_[kTile][r], static_cast<const char*>(from) + r * stride, 64);
    }
  }
  template <int kTile>
  void load_streamed(const void* from, int64_t stride) {
    load<kTile>(from, stride);
  }
  template <int kTile>
  void store(void* to, int64_t stride) const {
    for (int r = 0; r < rows_[kTile]; ++r) {
      __builtin_memcpy(static_cast<char*>(to) + r * stride, data_[kTile][r], 64);
    }
  }
  template <int kC, int kA, int kB>
  void multiply() {
    for (int r = 0; r < rows_[kC]; ++r) {
      for (int n = 0; n < 16; ++n) {
        float chains[2] = {0, 0};
        for (int k = 0; k < 16; ++k) {
          for (int odd = 0; odd < 2; ++odd) {
            const float a = half_of(data_[kA][r][k], odd);
            const float b = half_of(data_[kB][k][n], odd);
            chains[odd] = flushed(__builtin_fmaf(a, b, chains[odd]));
          }
        }
        float c;
        __builtin_memcpy(&c, &data_[kC][r][n], 4);
        c = flushed(flushed(c) + flushed(chains[0] + chains[1]));
        __builtin_memcpy(&data_[kC][r][n], &c, 4);
      }
    }
  }

 private:
  static float flushed(float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
  }
  static float half_of(uint32_t pair, int odd) {
    const uint32_t bits = odd == 1 ? pair & 0xffff0000u : pair << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return flushed(value);
  }

  int rows_[8];
  uint32_t data_[8][16][16];
};

}  // namespace

void emulated_amx_linear(const LinearParams& p, const CpuContext& context) {
  cpu::linear_amx<cpu::F32x16, EmulatedTiles>(p, context);
}

size_t emulated_amx_scratch_bytes(const CpuScratchSpec& spec) {
  return static_cast<size_t>(
      cpu::amx_scratch_bytes(spec.max_num_tokens, spec.max_in_features, spec.num_threads));
}

}  // namespace caravan
