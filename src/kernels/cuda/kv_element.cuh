#pragma once

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

// Elements of a quantized KV cache: one byte each, times the scale of their head. The kernels
// widen them to the 16-bit type of the queries, which is exact (|int8| <= 127 and every e4m3 number
// fit into float16 and bfloat16), multiply as they do with a 16-bit cache, and apply the scales to
// the sums: K's to the scores, V's to the output.
//
// K of a head is interleaved, where head_dim % 16 == 0: byte 4 t + 2 u + h of 16 holds dimension
// 2 t + h + 8 u. So the four bytes that ldmatrix gives lane t of a quad are the four elements that
// the matrix instruction wants from it, and the order of the sums is that of a 16-bit cache.

namespace caravan::cuda {

/// An e4m3 number; int8_t is the other element type.
enum class Float8 : uint8_t {};

template <typename C>
inline constexpr bool kIsQuantized = sizeof(C) == 1;

/// Where dimension `d` of a head of K lies.
__host__ __device__ constexpr int64_t interleaved_column(int64_t d) {
  return (d & ~int64_t{15}) | (d & 6) << 1 | (d >> 2 & 2) | (d & 1);
}
__host__ __device__ constexpr bool is_k_interleaved(DType cache, int64_t head_dim) {
  return (cache == DType::kI8 || cache == DType::kF8E4M3) && head_dim % 16 == 0;
}

__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// Bytes kFirst and kSecond of `word` as a pair of T, exactly. An e4m3 NaN stays NaN where the
/// device converts it itself (float16 on sm_89 and newer) and reads as +-480 elsewhere.
template <typename T, typename C, int kFirst, int kSecond>
__device__ __forceinline__ uint32_t widen_bytes(uint32_t word) {
  constexpr bool kIsHalf = std::is_same_v<T, __half>;
  // Low byte of each half from the other operand of permute_bytes, or the high one.
  constexpr uint32_t kToLow = 0x4040u | kSecond << 8 | kFirst;
  constexpr uint32_t kToHigh = 0x0404u | kSecond << 12 | kFirst << 4;
  if constexpr (std::is_same_v<C, int8_t> && kIsHalf) {
    // 0x6400 + u is 1024 + u, and u = x + 128.
    const uint32_t biased = permute_bytes(word ^ 0x80808080u, 0x64646464u, kToLow);
    return fma_f16x2(biased, 0x3C003C00u, 0xE480E480u);
  } else if constexpr (std::is_same_v<C, int8_t>) {
    // 0x4300 + u is 128 + u for seven bits; the sign bit makes 0x4300, 128, into 256.
    const uint32_t bits = permute_bytes(word, 0x43434343u, kToLow);
    return fma_bf16x2(bits & 0xFF7FFF7Fu, 0x3F803F80u, (bits & 0x00800080u) | 0xC300C300u);
  } else if constexpr (kIsHalf) {
#if __CUDA_ARCH__ >= 890
    const uint32_t pair = permute_bytes(word, 0u, 0x4400u | kSecond << 4 | kFirst);
    uint32_t d;
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, low;\n}\n"
        : "=r"(d)
        : "r"(pair));
    return d;
#else
    // Exponent and mantissa in their places: 2^8 too small.
    const uint32_t bits = permute_bytes(word, 0u, kToHigh);
    return fma_f16x2((bits & 0x80008000u) | (bits >> 1 & 0x3F803F80u), 0x5C005C00u, 0x80008000u);
#endif
  } else {
    // 2^120 too small.
    const uint32_t bits = permute_bytes(word, 0u, kToHigh);
    return fma_bf16x2((bits & 0x80008000u) | (bits >> 4 & 0x07F007F0u), 0x7B807B80u, 0x80008000u);
  }
}

/// 16 elements of a row as two 16-byte chunks of T: dimensions 0 to 7 and 8 to 15.
template <typename T, typename C, bool kIsInterleaved>
__device__ __forceinline__ void widen_chunk(const uint4& elements, uint4& first, uint4& second) {
  const uint32_t words[4] = {elements.x, elements.y, elements.z, elements.w};
  uint32_t pairs[2][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = widen_bytes<T, C, 0, 1>(words[i]);
    const uint32_t high = widen_bytes<T, C, 2, 3>(words[i]);
    if constexpr (kIsInterleaved) {
      pairs[0][i] = low;
      pairs[1][i] = high;
    } else {
      pairs[i / 2][i % 2 * 2] = low;
      pairs[i / 2][i % 2 * 2 + 1] = high;
    }
  }
  first = {pairs[0][0], pairs[0][1], pairs[0][2], pairs[0][3]};
  second = {pairs[1][0], pairs[1][1], pairs[1][2], pairs[1][3]};
}

__device__ __forceinline__ float element_to_float(int8_t v) { return static_cast<float>(v); }
__device__ __forceinline__ float element_to_float(Float8 v) {
  const uint32_t bits = static_cast<uint32_t>(v);
  const uint32_t magnitude = bits & 0x7Fu;
  const float value = __fmul_rn(__uint_as_float(magnitude << 20), 0x1p120f);
  const uint32_t unsigned_bits = magnitude == 0x7Fu ? 0x7FC00000u : __float_as_uint(value);
  return __uint_as_float(unsigned_bits | (bits & 0x80u) << 24);
}
__device__ __forceinline__ float element_to_float(float v) { return v; }
__device__ __forceinline__ float element_to_float(__half v) { return to_float(v); }
__device__ __forceinline__ float element_to_float(__nv_bfloat16 v) { return to_float(v); }

/// Rounded to nearest even and clamped to +-127 (NaN to -127) or +-448 (NaN stays).
template <typename C>
__device__ __forceinline__ uint32_t quantize(float v);
template <>
__device__ __forceinline__ uint32_t quantize<int8_t>(float v) {
  return static_cast<uint32_t>(__float2int_rn(fminf(fmaxf(v, -127.0f), 127.0f))) & 0xFFu;
}
template <>
__device__ __forceinline__ uint32_t quantize<Float8>(float v) {
  const uint32_t bits = __float_as_uint(v);
  const uint32_t sign = bits >> 24 & 0x80u;
  uint32_t x = bits & 0x7FFFFFFFu;
  if (x > 0x7F800000u) return sign | 0x7Fu;
  if (x >= 0x43E00000u) return sign | 0x7Eu;  // 448 and more
  if (x < 0x3C800000u) {                      // subnormal: multiples of 2^-9
    // Adding 1.5 * 2^14 leaves multiples of 2^-9, rounded to nearest even.
    return sign | (__float_as_uint(__fadd_rn(__uint_as_float(x), 24576.0f)) & 0xFu);
  }
  x += 0x7FFFFu + (x >> 20 & 1u) - (120u << 23);
  return sign | min(x >> 20, 0x7Eu);
}

/// 16 values from an address aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ void load_values(float (&values)[16], const T* source) {
  constexpr int kPerVector = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < 16 / kPerVector; ++i) {
    const uint4 vector = reinterpret_cast<const uint4*>(source)[i];
    const T* elements = reinterpret_cast<const T*>(&vector);
#pragma unroll
    for (int j = 0; j < kPerVector; ++j) values[i * kPerVector + j] = to_float(elements[j]);
  }
}

/// 16 values of qkv (aligned to 16 bytes) as elements: x * (1 / scale), rounded.
template <typename T, typename C, bool kIsInterleaved>
__device__ __forceinline__ uint4 quantize_chunk(const T* source, float reciprocal) {
  float values[16];
  load_values<T>(values, source);
  uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    uint32_t word = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const int d = kIsInterleaved ? 2 * w + b % 2 + b / 2 * 8 : 4 * w + b;
      word |= quantize<C>(__fmul_rn(values[d], reciprocal)) << (8 * b);
    }
    words[w] = word;
  }
  return {words[0], words[1], words[2], words[3]};
}

}  // namespace caravan::cuda
