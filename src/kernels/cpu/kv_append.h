#pragma once

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/element_types.h"

namespace caravan::cpu {

/// from[0..width), times the reciprocal of a scale where E is quantized.
template <class V, class E>
inline V scaled(const float* from, int width, float reciprocal) {
  const V values = V::load(from, width);
  if constexpr (kIsQuantized<E>) return values * V::broadcast(reciprocal);
  return values;
}

/// to[i * stride] = from[i] for i < count, rounded to E.
template <class V, class E>
inline void scatter(const float* from, int64_t count, float reciprocal, E* to, int64_t stride) {
  for (int64_t i = 0; i < count; i += 16) {
    const int width = static_cast<int>(min_of(16, count - i));
    E lanes[16];
    scaled<V, E>(from + i, width, reciprocal).store(lanes);
    for (int lane = 0; lane < width; ++lane) to[(i + lane) * stride] = lanes[lane];
  }
}

template <class V, class E>
void append_kv_of(const AppendKvParams& p, const CpuContext& context) {
  const KvLayer& c = p.cache;
  const int64_t hidden = c.num_heads * c.head_dim;
  const bool parallel = context.num_threads > 1 && p.num_tokens * hidden >= 32768;
  // Heads are split over the threads, tokens are not: the tokens of a block share cache lines of K.
#pragma omp parallel for schedule(static) num_threads(context.num_threads) if (parallel)
  for (int64_t h = 0; h < c.num_heads; ++h) {
    const float k_reciprocal = kIsQuantized<E> ? 1.0f / c.k_scale[h] : 1.0f;
    const float v_reciprocal = kIsQuantized<E> ? 1.0f / c.v_scale[h] : 1.0f;
    for (int64_t t = 0; t < p.num_tokens; ++t) {
      const int64_t slot = p.slot_mapping[t];
      const int64_t block = (slot / c.block_size * c.num_heads + h) * c.head_dim * c.block_size;
      const int64_t offset = slot % c.block_size;
      const float* k = p.qkv + t * 3 * hidden + hidden + h * c.head_dim;
      const float* v = k + hidden;
      scatter<V>(k, c.head_dim, k_reciprocal, static_cast<E*>(c.k) + block + offset, c.block_size);
      E* to = static_cast<E*>(c.v) + block + offset * c.head_dim;
      for (int64_t d = 0; d < c.head_dim; d += 16) {
        const int width = static_cast<int>(min_of(16, c.head_dim - d));
        scaled<V, E>(v + d, width, v_reciprocal).store(to + d, width);
      }
    }
  }
}

template <class V>
void append_kv(const AppendKvParams& p, const CpuContext& context) {
  switch (p.cache.dtype) {
    case DType::kF16:
      return append_kv_of<V, Half>(p, context);
    case DType::kBF16:
      return append_kv_of<V, BFloat16>(p, context);
    case DType::kI8:
      return append_kv_of<V, Int8>(p, context);
    case DType::kF8E4M3:
      return append_kv_of<V, Float8>(p, context);
    default:
      return append_kv_of<V, float>(p, context);
  }
}

}  // namespace caravan::cpu
