#include <algorithm>
#include <type_traits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv_element.cuh"
#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {
namespace {

constexpr int kAppendThreads = 256;
constexpr int64_t kMaxAppendTokens = 65535;  // of a launch: gridDim.y

struct AppendKvParams {
  const void* qkv;
  const int64_t* slot_mapping;
  void* k;
  void* v;
  int64_t block_size;
  int64_t num_heads;
  int64_t head_units;  // Units of one head
  DType dtype;
};

// Prefill masks the score of a later token, not its V: its weight is 0, and 0 times NaN or Inf is
// NaN, so V of one token would reach rows that do not see it. Such an element of V is stored as
// zero, and the elements of K at its place as NaN: the rows that see the token are NaN, the others
// know nothing of it.

/// All ones in each element of `word` that is not finite. Two elements of 16 bits or one of 32.
__device__ __forceinline__ uint32_t non_finite_mask(uint32_t word, DType dtype) {
  if (dtype == DType::kF32) return (word & 0x7F800000u) == 0x7F800000u ? 0xFFFFFFFFu : 0u;
  const uint32_t exponent = dtype == DType::kF16 ? 0x7C00u : 0x7F80u;
  return ((word & exponent) == exponent ? 0xFFFFu : 0u) |
         ((word >> 16 & exponent) == exponent ? 0xFFFF0000u : 0u);
}
__device__ __forceinline__ uint4 non_finite_mask(const uint4& unit, DType dtype) {
  return {non_finite_mask(unit.x, dtype), non_finite_mask(unit.y, dtype),
          non_finite_mask(unit.z, dtype), non_finite_mask(unit.w, dtype)};
}
__device__ __forceinline__ uint4 without(const uint4& unit, const uint4& mask) {
  return {unit.x & ~mask.x, unit.y & ~mask.y, unit.z & ~mask.z, unit.w & ~mask.w};
}
__device__ __forceinline__ bool is_any(const uint4& mask) {
  return (mask.x | mask.y | mask.z | mask.w) != 0;
}
__device__ __forceinline__ uint32_t without(uint32_t unit, uint32_t mask) { return unit & ~mask; }
__device__ __forceinline__ bool is_any(uint32_t mask) { return mask != 0; }

/// NaN in every element, of each dtype.
constexpr uint32_t kNaNWord = 0x7FFF7FFFu;
__device__ __forceinline__ void set_nan(uint4& unit) {
  unit = {kNaNWord, kNaNWord, kNaNWord, kNaNWord};
}
__device__ __forceinline__ void set_nan(uint32_t& unit) { unit = kNaNWord; }
__device__ __forceinline__ void set_nan(uint16_t& unit) { unit = static_cast<uint16_t>(kNaNWord); }

/// Unit: what one thread copies, 16 bytes or one element. Block (part of a row, token).
template <typename Unit>
__global__ void __launch_bounds__(kAppendThreads) append_kv_kernel(const AppendKvParams params) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.y;
  const int64_t slot = params.slot_mapping[token];
  const int64_t row_units = params.num_heads * params.head_units;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kAppendThreads + threadIdx.x;
  if (slot < 0 || index >= 2 * row_units) return;
  const bool is_v = index >= row_units;
  const int64_t in_row = is_v ? index - row_units : index;
  const int64_t head = in_row / params.head_units;
  const int64_t block = slot / params.block_size;
  const int64_t offset = slot - block * params.block_size;
  Unit* cache = static_cast<Unit*>(is_v ? params.v : params.k);
  const Unit* row = static_cast<const Unit*>(params.qkv) + (token * 3 + 1) * row_units;
  Unit unit = row[index];
  const auto mask = non_finite_mask(row[row_units + in_row], params.dtype);
  if (is_any(mask)) {
    if (is_v) {
      unit = without(unit, mask);
    } else {
      set_nan(unit);
    }
  }
  cache[((block * params.num_heads + head) * params.block_size + offset) * params.head_units +
        in_row - head * params.head_units] = unit;
}

template <typename Unit>
void launch_units(const AppendKvArgs& args, const LaunchContext& context) {
  AppendKvParams params{};
  params.qkv = args.qkv;
  params.slot_mapping = args.slot_mapping;
  params.k = args.cache.k;
  params.v = args.cache.v;
  params.block_size = args.cache.block_size;
  params.num_heads = args.cache.num_heads;
  params.dtype = args.cache.dtype;
  params.head_units = args.cache.head_dim * static_cast<int64_t>(dtype_size(args.cache.dtype)) /
                      static_cast<int64_t>(sizeof(Unit));
  const int64_t row_units = 2 * params.num_heads * params.head_units;
  for (int64_t first = 0; first < args.num_tokens; first += kMaxAppendTokens) {
    const int64_t count = std::min(kMaxAppendTokens, args.num_tokens - first);
    params.qkv =
        static_cast<const Unit*>(args.qkv) + first * 3 * params.num_heads * params.head_units;
    params.slot_mapping = args.slot_mapping + first;
    launch(context, append_kv_kernel<Unit>,
           dim3(static_cast<unsigned>((row_units + kAppendThreads - 1) / kAppendThreads),
                static_cast<unsigned>(count)),
           dim3(kAppendThreads), 0, params);
  }
}

struct QuantizedAppendParams {
  const void* qkv;
  const int64_t* slot_mapping;
  void* k;
  void* v;
  const float* k_scale;
  const float* v_scale;
  int64_t block_size;
  int64_t num_heads;
  int64_t head_dim;
};

/// Whether one of the values that a thread stores is NaN. Inf is clamped, and int8 has no NaN.
template <typename T, bool kIsVector>
__device__ __forceinline__ bool has_nan(const T* source) {
  if constexpr (kIsVector) {
    float values[16];
    load_values<T>(values, source);
    bool found = false;
#pragma unroll
    for (const float value : values) found |= isnan(value);
    return found;
  } else {
    return isnan(to_float(*source));
  }
}

/// A thread quantizes 16 elements of a head (head_dim % 16 == 0) or one. Block (part of a row,
/// token).
template <typename T, typename C, bool kIsVector>
__global__ void __launch_bounds__(kAppendThreads)
    append_quantized_kv_kernel(const QuantizedAppendParams params) {
  constexpr int kWidth = kIsVector ? 16 : 1;
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.y;
  const int64_t slot = params.slot_mapping[token];
  const int64_t hidden = params.num_heads * params.head_dim;
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kAppendThreads + threadIdx.x) * kWidth;
  if (slot < 0 || index >= 2 * hidden) return;
  const bool is_v = index >= hidden;
  const int64_t in_row = is_v ? index - hidden : index;
  const int64_t head = in_row / params.head_dim;
  const int64_t block = slot / params.block_size;
  const int64_t offset = slot - block * params.block_size;
  const float reciprocal = __frcp_rn((is_v ? params.v_scale : params.k_scale)[head]);
  const T* source = static_cast<const T*>(params.qkv) + (token * 3 + 1) * hidden + index;
  C* target = static_cast<C*>(is_v ? params.v : params.k) +
              ((block * params.num_heads + head) * params.block_size + offset) * params.head_dim +
              in_row - head * params.head_dim;
  uint4 elements{};
  if constexpr (kIsVector) {
    elements = is_v ? quantize_chunk<T, C, false>(source, reciprocal)
                    : quantize_chunk<T, C, true>(source, reciprocal);
  } else {
    elements.x = quantize<C>(__fmul_rn(to_float(*source), reciprocal));
  }
  if constexpr (std::is_same_v<C, Float8>) {
    if (has_nan<T, kIsVector>(is_v ? source : source + hidden)) {
      const auto mend = [is_v](uint32_t word) {
        if (!is_v) return 0x7F7F7F7Fu;
        uint32_t kept = 0;
        for (int shift = 0; shift < 32; shift += 8) {
          const uint32_t byte = word >> shift & 0xFFu;
          if ((byte & 0x7Fu) != 0x7Fu) kept |= byte << shift;
        }
        return kept;
      };
      elements = {mend(elements.x), mend(elements.y), mend(elements.z), mend(elements.w)};
    }
  }
  if constexpr (kIsVector) {
    *reinterpret_cast<uint4*>(target) = elements;
  } else {
    *reinterpret_cast<uint8_t*>(target) = static_cast<uint8_t>(elements.x);
  }
}

template <typename T, typename C>
void launch_quantized(const AppendKvArgs& args, const LaunchContext& context) {
  QuantizedAppendParams params{nullptr,
                               nullptr,
                               args.cache.k,
                               args.cache.v,
                               args.cache.k_scale,
                               args.cache.v_scale,
                               args.cache.block_size,
                               args.cache.num_heads,
                               args.cache.head_dim};
  const int64_t hidden = params.num_heads * params.head_dim;
  const bool is_vector = params.head_dim % 16 == 0;
  const int64_t row_threads = 2 * hidden / (is_vector ? 16 : 1);
  for (int64_t first = 0; first < args.num_tokens; first += kMaxAppendTokens) {
    params.qkv = static_cast<const T*>(args.qkv) + first * 3 * hidden;
    params.slot_mapping = args.slot_mapping + first;
    launch(context,
           is_vector ? append_quantized_kv_kernel<T, C, true>
                     : append_quantized_kv_kernel<T, C, false>,
           dim3(static_cast<unsigned>((row_threads + kAppendThreads - 1) / kAppendThreads),
                static_cast<unsigned>(std::min(kMaxAppendTokens, args.num_tokens - first))),
           dim3(kAppendThreads), 0, params);
  }
}

template <typename C>
void launch_quantized_dtype(const AppendKvArgs& args, const LaunchContext& context) {
  switch (args.dtype) {
    case DType::kF32:
      return launch_quantized<float, C>(args, context);
    case DType::kF16:
      return launch_quantized<__half, C>(args, context);
    case DType::kBF16:
      return launch_quantized<__nv_bfloat16, C>(args, context);
    default:
      throw_unsupported("append_kv: f16, bf16 or f32 needed, got " +
                        std::string(dtype_name(args.dtype)));
  }
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

void check_kv_scales(const KvCacheArgs& cache, const char* op) {
  const bool is_quantized = cache.dtype == DType::kI8 || cache.dtype == DType::kF8E4M3;
  if (is_quantized && (cache.k_scale == nullptr || cache.v_scale == nullptr)) {
    throw_invalid(std::string(op) + ": a cache of " + dtype_name(cache.dtype) +
                  " needs k_scale and v_scale, got none");
  }
}

void launch_append_kv(const AppendKvArgs& args, const LaunchContext& context) {
  check_kv_scales(args.cache, "append_kv");
  const bool is_16_aligned =
      is_aligned(args.qkv) && is_aligned(args.cache.k) && is_aligned(args.cache.v);
  if (args.cache.dtype == DType::kI8 || args.cache.dtype == DType::kF8E4M3) {
    if (!is_16_aligned) throw_invalid("append_kv: qkv, k and v must be aligned to 16 bytes");
    if (args.cache.dtype == DType::kI8) return launch_quantized_dtype<int8_t>(args, context);
    return launch_quantized_dtype<Float8>(args, context);
  }
  const size_t element = dtype_size(args.cache.dtype);
  if (args.dtype != args.cache.dtype || (element != 2 && element != 4)) {
    throw_unsupported(
        "append_kv: f16, bf16 or f32 and a cache of the same, int8 or float8_e4m3fn "
        "needed, got " +
        std::string(dtype_name(args.dtype)) + " and " + dtype_name(args.cache.dtype));
  }
  if (is_16_aligned && args.cache.head_dim * static_cast<int64_t>(element) % 16 == 0) {
    launch_units<uint4>(args, context);
  } else if (element == 4) {
    launch_units<uint32_t>(args, context);
  } else {
    launch_units<uint16_t>(args, context);
  }
}

}  // namespace caravan::cuda
