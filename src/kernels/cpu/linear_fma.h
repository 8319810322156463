#pragma once

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/gemm_plan.h"
#include "kernels/cpu/linear_epilogue.h"

namespace caravan::cpu {

// Linear layers by fused multiply-add. Every output element is one float accumulator that walks k
// in order, one FMA each, whatever the number of rows, the blocking or the vector width; between
// blocks of k it waits in memory, which changes nothing.

/// How a panel of element type E is stored: kPanel32Pairs for BFloat16, kPanel32 for the others.
/// In both, k (an even k for pairs) begins at element k * kPanel.
template <class E>
inline constexpr bool kIsPairs = false;
template <>
inline constexpr bool kIsPairs<BFloat16> = true;

template <class E>
[[gnu::always_inline]] inline int64_t panel_stride(int64_t in_features) {
  return (kIsPairs<E> ? align_up(in_features, 32) : in_features) * kPanel;
}

/// c[r][0..16 kVecs) (+)= sum over k < depth of a[k][r] * w(k, .); c starts from zero if `fresh`.
/// a: [depth][kRows]; w: a panel from some k on; c: [kRows][kPanel].
template <class V, class E, int kRows, int kVecs, class Prefetch>
[[gnu::noinline]] void micro_kernel(int64_t depth, const float* a, const E* w, float* c, bool fresh,
                                    Prefetch& prefetches) {
  Prefetch prefetch = prefetches;  // in registers
  V acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kVecs; ++j) {
      acc[r][j] = fresh ? V::zero() : V::load(c + r * kPanel + j * 16);
    }
  }
  const auto step = [&](const V(&values)[kVecs]) __attribute__((always_inline)) {
    prefetch.step();
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V x = V::broadcast(a[r]);
#pragma GCC unroll 2
      for (int j = 0; j < kVecs; ++j) acc[r][j] = fma(x, values[j], acc[r][j]);
    }
    a += kRows;
  };
  if constexpr (kIsPairs<E>) {
    for (int64_t k = 0; k + 2 <= depth; k += 2) {
      V even[kVecs];
      V odd[kVecs];
#pragma GCC unroll 2
      for (int j = 0; j < kVecs; ++j) V::load_pairs(w + j * 32, even[j], odd[j]);
      step(even);
      step(odd);
      w += 2 * kPanel;
    }
    if (depth % 2 == 1) {
      V even[kVecs];
      V odd[kVecs];
#pragma GCC unroll 2
      for (int j = 0; j < kVecs; ++j) V::load_pairs(w + j * 32, even[j], odd[j]);
      step(even);
    }
  } else {
    for (int64_t k = 0; k < depth; ++k) {
      V values[kVecs];
#pragma GCC unroll 2
      for (int j = 0; j < kVecs; ++j) values[j] = V::load(w + j * 16);
      step(values);
      w += kPanel;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kVecs; ++j) acc[r][j].store(c + r * kPanel + j * 16);
  }
  prefetches = prefetch;
}

/// The micro-kernel over all columns of a panel for `rows` <= V::kTileRows rows: at once, or in two
/// passes where the rows leave registers for only one vector.
template <class V, class E, class Prefetch, int kRows = V::kTileRows>
[[gnu::always_inline]] inline void multiply_panel(int64_t rows, int64_t depth, const float* a,
                                                  const E* w, float* c, bool fresh,
                                                  Prefetch& prefetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return multiply_panel<V, E, Prefetch, kRows - 1>(rows, depth, a, w, c, fresh, prefetch);
    }
  }
  constexpr int64_t kHalf = kIsPairs<E> ? 32 : 16;  // elements of w from one vector to the next
  if constexpr (kRows <= V::kWideRows) {
    micro_kernel<V, E, kRows, 2>(depth, a, w, c, fresh, prefetch);
  } else {
    micro_kernel<V, E, kRows, 1>(depth, a, w, c, fresh, prefetch);
    micro_kernel<V, E, kRows, 1>(depth, a, w + kHalf, c + 16, fresh, prefetch);
  }
}

/// to: [depth][kPanel] floats from a panel block of E.
template <class V, class E>
void widen_block(const E* w, int64_t depth, float* to) {
  if constexpr (kIsPairs<E>) {
    for (int64_t k = 0; k < depth; k += 2, w += 2 * kPanel, to += 2 * kPanel) {
      for (int64_t j = 0; j < 2; ++j) {
        V even;
        V odd;
        V::load_pairs(w + j * 32, even, odd);
        even.store(to + j * 16);
        if (k + 1 < depth) odd.store(to + kPanel + j * 16);
      }
    }
  } else {
    for (int64_t i = 0; i < depth * kPanel; i += 16) V::load(w + i).store(to + i);
  }
}

/// to[k][r] = x[r][first_k + k] for k < depth, r < rows; x: [rows][in_features].
static inline void pack_rows(const float* x, int64_t in_features, int64_t rows, int64_t first_k,
                             int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t r = 0; r < rows; ++r) to[k * rows + r] = x[r * in_features + first_k + k];
  }
}

/// Up to V::kTileRows rows: memory-bound. The threads take panels from one queue and stream them
/// once; 16-bit weights are widened in registers.
template <class V, class E>
void linear_few_rows(const LinearParams& p, const CpuContext& context) {
  // 4 KiB ahead cover the latency of memory at about 14 GB/s a thread.
  using Prefetch = StreamPrefetch<kPanel * int64_t{sizeof(E)}, 4096>;
  constexpr int64_t kBlock = 128;
  using HalfPrefetch =
      StreamPrefetch<kPanel * int64_t{sizeof(E)} / 2, kBlock * kPanel * int64_t{sizeof(E)}>;
  const int64_t rows = p.num_tokens;
  const int64_t in = p.weight.in_features;
  const int64_t stride = panel_stride<E>(in);
  const int64_t num_panels = div_up(p.weight.out_features, kPanel);
  const E* weight = static_cast<const E*>(p.weight.data);
  float* packed = reinterpret_cast<float*>(context.scratch);
  const float* a = rows == 1 ? p.x : packed;
  // About 64 KiB at a time, but no fewer than four turns for each thread.
  const int64_t chunk = max_of(1, min_of(65536 / (stride * int64_t{sizeof(E)}),
                                         num_panels / (4 * int64_t{context.num_threads})));
  const bool parallel = context.num_threads > 1 && num_panels * stride * rows >= 65536;
#pragma omp parallel num_threads(context.num_threads) if (parallel)
  {
    if (rows > 1) {
#pragma omp for schedule(static)
      for (int64_t k = 0; k < in; k += 256) {
        pack_rows(p.x, in, rows, k, min_of(256, in - k), packed + k * rows);
      }
    }
    alignas(64) float c[V::kTileRows * kPanel];
#pragma omp for schedule(dynamic, chunk) nowait
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const E* w = weight + panel * stride;
      if (rows <= V::kWideRows) {
        Prefetch prefetch(w);
        multiply_panel<V, E>(rows, in, a, w, c, true, prefetch);
      } else {
        // The second pass over a block of k finds it in L1; prefetches are spread over both.
        for (int64_t k = 0; k < in; k += kBlock) {
          HalfPrefetch prefetch(w + k * kPanel);
          multiply_panel<V, E>(rows, min_of(kBlock, in - k), a + k * rows, w + k * kPanel, c,
                               k == 0, prefetch);
        }
      }
      finish_tile<V>(p, 0, rows, panel * kPanel, c);
    }
  }
}

/// Many rows: compute-bound. A block of k of all rows of the chunk is multiplied with the panels of
/// a group one after the other; accumulators rest in scratch between blocks of k.
template <class V, class E>
void linear_chunk(const LinearParams& p, int64_t first_row, int64_t num_rows,
                  const CpuContext& context) {
  constexpr int64_t kPasses = V::kTileRows <= V::kWideRows ? 1 : 2;
  const int64_t in = p.weight.in_features;
  const int64_t stride = panel_stride<E>(in);
  const int64_t num_panels = div_up(p.weight.out_features, kPanel);
  const int64_t num_tiles = div_up(num_rows, V::kTileRows);
  const int64_t num_blocks = div_up(in, kDepthBlock);
  const E* weight = static_cast<const E*>(p.weight.data);
  const GemmPlan plan = plan_gemm(num_panels, num_tiles, kPanelGroup, context.num_threads, 3);
  float* packed = reinterpret_cast<float*>(context.scratch);
  std::byte* thread_scratch = context.scratch + fma_packed_bytes(num_rows, in);
  const int64_t thread_bytes = fma_thread_bytes(num_rows);
#pragma omp parallel num_threads(context.num_threads)
  {
#pragma omp for schedule(static) collapse(2)
    for (int64_t block = 0; block < num_blocks; ++block) {
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        const int64_t k = block * kDepthBlock;
        const int64_t depth = min_of(kDepthBlock, in - k);
        const int64_t row = part_begin(num_rows, num_tiles, tile);
        const int64_t rows = part_begin(num_rows, num_tiles, tile + 1) - row;
        pack_rows(p.x + (first_row + row) * in, in, rows, k, depth,
                  packed + k * num_rows + row * depth);
      }
    }
    float* widened = reinterpret_cast<float*>(thread_scratch + thread_number() * thread_bytes);
    float* sums = widened + kDepthBlock * kPanel;
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < plan.num_items(); ++item) {
      const GemmItem work = plan.item(item);
      for (int64_t k = 0; k < in; k += kDepthBlock) {
        const int64_t depth = min_of(kDepthBlock, in - k);
        const float* packed_block = packed + k * num_rows;
        for (int64_t panel = work.first_panel; panel < work.last_panel; ++panel) {
          const E* w = weight + panel * stride + k * kPanel;
          const float* b;
          if constexpr (sizeof(E) == sizeof(float)) {
            b = w;
          } else {
            widen_block<V, E>(w, depth, widened);
            b = widened;
          }
          // The block that this thread needs next comes into L2 while this one is used.
          const bool is_last = panel + 1 == work.last_panel;
          const int64_t next_k = is_last ? k + depth : k;
          PacedPrefetch next(
              weight + (is_last ? work.first_panel : panel + 1) * stride + next_k * kPanel,
              min_of(kDepthBlock, in - next_k) * kPanel * int64_t{sizeof(E)},
              (work.last_tile - work.first_tile) * depth * kPasses);
          for (int64_t tile = work.first_tile; tile < work.last_tile; ++tile) {
            const int64_t row = part_begin(num_rows, num_tiles, tile);
            const int64_t rows = part_begin(num_rows, num_tiles, tile + 1) - row;
            float* c = sums + (row + (panel - work.first_panel) * num_rows) * kPanel;
            multiply_panel<V, float>(rows, depth, packed_block + row * depth, b, c, k == 0, next);
            if (k + depth == in) finish_tile<V>(p, first_row + row, rows, panel * kPanel, c);
          }
        }
      }
    }
  }
}

template <class V, class E>
void linear_of(const LinearParams& p, const CpuContext& context) {
  if (p.num_tokens <= V::kTileRows) return linear_few_rows<V, E>(p, context);
  const int64_t num_chunks = div_up(p.num_tokens, kChunkRows);
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t row = part_begin(p.num_tokens, num_chunks, chunk);
    linear_chunk<V, E>(p, row, part_begin(p.num_tokens, num_chunks, chunk + 1) - row, context);
  }
}

template <class V>
void linear(const LinearParams& p, const CpuContext& context) {
  check_scratch(fma_scratch_bytes(p.num_tokens, p.weight.in_features, context.num_threads),
                context);
  if (p.num_tokens == 0) return;
  switch (p.weight.dtype) {
    case DType::kF16:
      return linear_of<V, Half>(p, context);
    case DType::kBF16:
      return linear_of<V, BFloat16>(p, context);
    default:
      return linear_of<V, float>(p, context);
  }
}

}  // namespace caravan::cpu
