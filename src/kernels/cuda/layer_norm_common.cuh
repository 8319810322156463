#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/layer_norm.h"
#include "kernels/cuda/ptx.cuh"

// What the product kernel and the steps that lead to it share.

namespace caravan::cuda {

struct LayerNormKernelParams {
  int64_t num_tokens;
  int64_t hidden_size;
  void* x;
  const void* delta;
  const float* delta_bias;
  const float* weight;
  const float* bias;
  void* y;
  float epsilon;
  float inverse_hidden_size;
  bool is_streaming;  // more than L2 holds: what is written goes out first
};

inline LayerNormKernelParams layer_norm_kernel_params(const LayerNormArgs& args) {
  const float inverse = 1.0f / static_cast<float>(args.hidden_size);
  return {args.num_tokens, args.hidden_size, args.x,    args.delta,
          args.delta_bias, args.weight,      args.bias, args.y,
          args.epsilon,    inverse,          false};
}

__device__ __forceinline__ uint4 load_no_allocate(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 load_no_allocate(const uint2* p) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

/// kWidth values of T as they lie in memory, moved in accesses of up to 16 bytes.
template <typename T, int kWidth>
struct Vector {
  static constexpr int kBytes = kWidth * static_cast<int>(sizeof(T));
  using Word = std::conditional_t<
      kBytes % 16 == 0, uint4,
      std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;
  static constexpr int kNumWords = kBytes / static_cast<int>(sizeof(Word));
  Word words[kNumWords];

  /// kOnce: for what is read once, 8 or 16 bytes at a time; leaves L1 to the weights.
  template <bool kOnce = false>
  static __device__ __forceinline__ Vector load(const T* p) {
    const Word* from = reinterpret_cast<const Word*>(p);
    Vector v;
#pragma unroll
    for (int i = 0; i < kNumWords; ++i) {
      if constexpr (kOnce) {
        v.words[i] = load_no_allocate(from + i);
      } else {
        v.words[i] = from[i];
      }
    }
    return v;
  }
  /// Through the read-only path: for weights alone.
  static __device__ __forceinline__ Vector load_weight(const T* p) {
    Vector v;
#pragma unroll
    for (int i = 0; i < kNumWords; ++i) v.words[i] = __ldg(reinterpret_cast<const Word*>(p) + i);
    return v;
  }
  __device__ __forceinline__ void store(T* p) const {
#pragma unroll
    for (int i = 0; i < kNumWords; ++i) reinterpret_cast<Word*>(p)[i] = words[i];
  }
  __device__ __forceinline__ void store(T* p, bool is_streaming) const {
    if (!is_streaming) return store(p);
#pragma unroll
    for (int i = 0; i < kNumWords; ++i) __stcs(reinterpret_cast<Word*>(p) + i, words[i]);
  }
  __device__ __forceinline__ float get(int i) const {
    return to_float(reinterpret_cast<const T*>(words)[i]);
  }
  static __device__ __forceinline__ Vector pack(const float (&values)[kWidth]) {
    Vector v;
    if constexpr (sizeof(T) == 2 && kWidth > 1) {
      uint32_t* pairs = reinterpret_cast<uint32_t*>(v.words);
#pragma unroll
      for (int i = 0; i < kWidth; i += 2) pairs[i / 2] = pack_pair<T>(values[i], values[i + 1]);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) reinterpret_cast<T*>(v.words)[i] = from_float<T>(values[i]);
    }
    return v;
  }
};

// The arithmetic of a row is spelled out (fmaf, __fmul_rn), so that no instantiation contracts it
// differently from another.

/// Halves against halves: three dependent additions for eight values.
template <int kWidth>
__device__ __forceinline__ float tree_sum(const float (&values)[kWidth]) {
  float sums[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sums[i] = values[i];
#pragma unroll
  for (int half = kWidth / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

/// Sum of squares, even and odd places apart.
template <int kWidth>
__device__ __forceinline__ float square_sum(const float (&values)[kWidth]) {
  float even = __fmul_rn(values[0], values[0]);
  if constexpr (kWidth == 1) return even;
  float odd = __fmul_rn(values[kWidth > 1], values[kWidth > 1]);
#pragma unroll
  for (int i = 2; i < kWidth; i += 2) {
    even = fmaf(values[i], values[i], even);
    odd = fmaf(values[i + 1], values[i + 1], odd);
  }
  return even + odd;
}

/// The warps' parts of a row's two sums. Two arrays, so that one barrier a sum is enough: a part is
/// written again only after the barrier of the other sum, when everybody has read it.
struct RowScratch {
  alignas(16) float sums[32];
  alignas(16) float squares[32];
};

/// row_sum adds parts in fours: those of warps that do not exist are zero. A barrier of row_sum
/// makes them visible.
__device__ __forceinline__ void init_scratch(RowScratch& scratch) {
  if (threadIdx.x < 32 && threadIdx.x >= blockDim.x / 32) {
    scratch.sums[threadIdx.x] = 0.0f;
    scratch.squares[threadIdx.x] = 0.0f;
  }
}

/// The sum over threadIdx.x, the same bits in every thread. Requires blockDim.x % 32 == 0 and,
/// where that is not 32, blockDim.y == 1.
__device__ __forceinline__ float row_sum(float value, float (&parts)[32]) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  }
  const int num_warps = static_cast<int>(blockDim.x / 32);
  if (num_warps == 1) return value;
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (int w = 0; w < num_warps; w += 4) {
    const float4 four = *reinterpret_cast<const float4*>(parts + w);
    total += (four.x + four.y) + (four.z + four.w);
  }
  return total;
}

/// sum / hidden_size with its rounding error corrected (a row of equal values has that mean), in a
/// quarter of a division's latency.
__device__ __forceinline__ float row_mean(float sum, const LayerNormKernelParams& p) {
  const float mean = __fmul_rn(sum, p.inverse_hidden_size);
  const float rest = fmaf(-mean, static_cast<float>(p.hidden_size), sum);
  return fmaf(rest, p.inverse_hidden_size, mean);
}
__device__ __forceinline__ float row_scale(float squares, const LayerNormKernelParams& p) {
  return rsqrtf(fmaf(squares, p.inverse_hidden_size, p.epsilon));
}
__device__ __forceinline__ float normalise(float deviation, float scale, float weight, float bias) {
  return fmaf(__fmul_rn(deviation, scale), weight, bias);
}

}  // namespace caravan::cuda
