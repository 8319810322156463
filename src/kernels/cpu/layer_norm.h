#pragma once

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/element_types.h"

namespace caravan::cpu {

/// Applies `f(i, count, lane)` to vectors of a row of n floats: i is the first element, count its
/// elements (16 but for the last), lane = (i / 16) % 4 the accumulator that it belongs to.
template <class F>
[[gnu::always_inline]] inline void for_vectors(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    f(i, 16, 0);
    f(i + 16, 16, 1);
    f(i + 32, 16, 2);
    f(i + 48, 16, 3);
  }
  for (int lane = 0; i < n; i += 16, ++lane) f(i, static_cast<int>(min_of(16, n - i)), lane);
}

/// One row. The sums run in four vectors of sixteen lanes, whatever the instruction set.
template <class V>
inline void layer_norm_row(const LayerNormParams& p, const float* x, float* y) {
  const int64_t n = p.hidden_size;
  const auto total = [](const V(&sums)[4]) {
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
  };
  V sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  for_vectors(n, [&](int64_t i, int count, int lane) {
    sums[lane] = sums[lane] + (count == 16 ? V::load(x + i) : V::load(x + i, count));
  });
  const V mean = V::broadcast(total(sums) / static_cast<float>(n));

  V squares[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  for_vectors(n, [&](int64_t i, int count, int lane) {
    const V centred = count == 16 ? V::load(x + i) - mean
                                  : first_lanes(count, V::load(x + i, count) - mean, V::zero());
    squares[lane] = fma(centred, centred, squares[lane]);
  });
  const float variance = total(squares) / static_cast<float>(n);
  const V scale = V::broadcast(1.0f / __builtin_sqrtf(variance + p.epsilon));

  for_vectors(n, [&](int64_t i, int count, int) {
    if (count == 16) {
      fma((V::load(x + i) - mean) * scale, V::load(p.weight + i), V::load(p.bias + i)).store(y + i);
    } else {
      fma((V::load(x + i, count) - mean) * scale, V::load(p.weight + i, count),
          V::load(p.bias + i, count))
          .store(y + i, count);
    }
  });
}

template <class V>
void layer_norm(const LayerNormParams& p, const CpuContext& context) {
  // Below about 16 Ki elements starting the threads costs more than they save.
  const bool parallel = context.num_threads > 1 && p.num_tokens * p.hidden_size >= 16384;
#pragma omp parallel for schedule(static) num_threads(context.num_threads) if (parallel)
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    layer_norm_row<V>(p, p.x + t * p.hidden_size, p.y + t * p.hidden_size);
  }
}

}  // namespace caravan::cpu
