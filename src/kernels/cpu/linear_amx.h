#pragma once

#include "kernels/cpu/gemm_plan.h"
#include "kernels/cpu/linear_epilogue.h"

namespace caravan::cpu {

// Linear layers with bfloat16 weights on AMX tiles. Every output element is one float accumulator
// in a tile, walked over k in steps of 32 (one TDPBF16PS); rows of a tile do not see each other, so
// a row's result does not depend on which rows it is computed with. Activations are rounded to
// bfloat16. `Tiles` are the tile registers: AmxTiles, or an emulation in the tests:
//   Tiles(int rows)                        configures tiles of `rows` rows for A and C
//   zero<C>(), load<T>(from, stride), multiply<C, A, B>(), store<C>(to, stride)

/// Rows of a tile and the k of one step.
inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileDepth = 32;
inline constexpr int64_t kTileElements = kTileRows * kTileDepth;
/// Depth of a block of k: the B block, 512 x 32 bfloat16, fills two thirds of L1 while A streams
/// from L2.
inline constexpr int64_t kAmxDepthBlock = 512;
/// Most panels that share one pass over a packed block of rows.
inline constexpr int64_t kAmxPanelGroup = 8;

/// Scratch memory: packed rows, shared, then the accumulators of one group for each thread.
static inline int64_t amx_packed_bytes(int64_t num_rows, int64_t in_features) {
  return align_up(min_of(num_rows, kChunkRows), kTileRows) * align_up(in_features, kTileDepth) *
         int64_t{sizeof(BFloat16)};
}
static inline int64_t amx_thread_bytes(int64_t num_rows) {
  return kAmxPanelGroup * align_up(min_of(num_rows, kChunkRows), 2 * kTileRows) * kPanel *
         int64_t{sizeof(float)};
}
static inline int64_t amx_scratch_bytes(int64_t num_rows, int64_t in_features, int num_threads) {
  return amx_packed_bytes(num_rows, in_features) + num_threads * amx_thread_bytes(num_rows);
}

/// One A tile: to[r][0..32) = x[r][k..k+32) as bfloat16; zeros past in_features and from row
/// `rows` to row tile_rows. x: [rows][in_features].
template <class V>
inline void pack_tile(const float* x, int64_t in_features, int64_t rows, int64_t k,
                      int64_t tile_rows, BFloat16* to) {
  for (int64_t r = 0; r < tile_rows; ++r) {
    for (int64_t i = 0; i < kTileDepth; i += 16) {
      const int count = static_cast<int>(max_of(0, min_of(16, in_features - k - i)));
      const V values = r < rows ? V::load(x + r * in_features + k + i, count) : V::zero();
      values.store(to + r * kTileDepth + i);
    }
  }
}

/// Up to 16 rows: memory-bound. The threads take panels from one queue and stream them once, with
/// tiles of no more rows than there are tokens.
template <class V, class Tiles>
void linear_amx_few_rows(const LinearParams& p, const CpuContext& context) {
  // Two tiles of B, 2 KiB, are one step; four steps ahead covers the latency of memory.
  constexpr int64_t kPrefetchBytes = 8192;
  constexpr int64_t kStepBytes = kTileDepth * kPanel * int64_t{sizeof(BFloat16)};
  const int64_t rows = p.num_tokens;
  const int64_t in = p.weight.in_features;
  const int64_t num_steps = div_up(in, kTileDepth);
  const int64_t num_panels = div_up(p.weight.out_features, kPanel);
  const int64_t panel_bytes = num_steps * kStepBytes;
  const char* weight = static_cast<const char*>(p.weight.data);
  BFloat16* packed = reinterpret_cast<BFloat16*>(context.scratch);
  const int64_t chunk =
      max_of(1, min_of(65536 / panel_bytes, num_panels / (4 * int64_t{context.num_threads})));
  const bool parallel = context.num_threads > 1 && num_panels * panel_bytes >= 131072;
#pragma omp parallel num_threads(context.num_threads) if (parallel)
  {
    // A tile of these rows: [rows][32], steps one after the other.
    const int64_t tile_elements = rows * kTileDepth;
#pragma omp for schedule(static)
    for (int64_t step = 0; step < num_steps; ++step) {
      pack_tile<V>(p.x, in, rows, step * kTileDepth, rows, packed + step * tile_elements);
    }
    Tiles tiles(static_cast<int>(rows));
    alignas(64) float c[kTileRows * kPanel];
#pragma omp for schedule(dynamic, chunk) nowait
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const char* b = weight + panel * panel_bytes;
      tiles.template zero<0>();
      tiles.template zero<1>();
      for (int64_t step = 0; step < num_steps; ++step, b += kStepBytes) {
        for (int64_t i = 0; i < kStepBytes; i += 64) {
          __builtin_prefetch(b + kPrefetchBytes + i, 0, 3);
        }
        tiles.template load<4>(packed + step * tile_elements, 64);
        tiles.template load<6>(b, 128);
        tiles.template load<7>(b + 64, 128);
        tiles.template multiply<0, 4, 6>();
        tiles.template multiply<1, 4, 7>();
      }
      tiles.template store<0>(c, kPanel * 4);
      tiles.template store<1>(c + 16, kPanel * 4);
      finish_tile<V>(p, 0, rows, panel * kPanel, c);
    }
  }
}

/// c (+)= A B for one block of k, kPairs of A tiles (32 rows when 2) by one panel.
/// a: [kPairs] runs of num_steps tiles, a_stride elements apart; b: the panel's block;
/// c: [16 kPairs][kPanel].
template <int kPairs, class Tiles>
[[gnu::always_inline]] inline void multiply_tiles(Tiles& tiles, int64_t num_steps,
                                                  const BFloat16* a, int64_t a_stride,
                                                  const BFloat16* b, float* c, bool fresh) {
  constexpr int64_t kRowBytes = kPanel * int64_t{sizeof(float)};
  float* c1 = c + kTileRows * kPanel;
  if (fresh) {
    tiles.template zero<0>();
    tiles.template zero<1>();
    if constexpr (kPairs == 2) {
      tiles.template zero<2>();
      tiles.template zero<3>();
    }
  } else {
    tiles.template load<0>(c, kRowBytes);
    tiles.template load<1>(c + 16, kRowBytes);
    if constexpr (kPairs == 2) {
      tiles.template load<2>(c1, kRowBytes);
      tiles.template load<3>(c1 + 16, kRowBytes);
    }
  }
  for (int64_t step = 0; step < num_steps; ++step) {
    tiles.template load<6>(b, 128);
    tiles.template load<4>(a, 64);
    tiles.template load<7>(b + 32, 128);
    tiles.template multiply<0, 4, 6>();
    tiles.template multiply<1, 4, 7>();
    if constexpr (kPairs == 2) {
      tiles.template load<5>(a + a_stride, 64);
      tiles.template multiply<2, 5, 6>();
      tiles.template multiply<3, 5, 7>();
    }
    a += kTileElements;
    b += kTileDepth * kPanel;
  }
  tiles.template store<0>(c, kRowBytes);
  tiles.template store<1>(c + 16, kRowBytes);
  if constexpr (kPairs == 2) {
    tiles.template store<2>(c1, kRowBytes);
    tiles.template store<3>(c1 + 16, kRowBytes);
  }
}

/// Many rows: compute-bound. Blocked like linear_chunk() of linear_fma.h.
template <class V, class Tiles>
void linear_amx_chunk(const LinearParams& p, int64_t first_row, int64_t num_rows,
                      const CpuContext& context) {
  const int64_t in = p.weight.in_features;
  const int64_t depth = align_up(in, kTileDepth);
  const int64_t panel_stride = depth * kPanel;
  const int64_t num_panels = div_up(p.weight.out_features, kPanel);
  const int64_t num_tiles = div_up(num_rows, kTileRows);
  const int64_t num_pairs = div_up(num_tiles, 2);
  const BFloat16* weight = static_cast<const BFloat16*>(p.weight.data);
  const GemmPlan plan = plan_gemm(num_panels, num_pairs, kAmxPanelGroup, context.num_threads);
  BFloat16* packed = reinterpret_cast<BFloat16*>(context.scratch);
  std::byte* thread_scratch = context.scratch + amx_packed_bytes(num_rows, in);
  const int64_t thread_bytes = amx_thread_bytes(num_rows);
#pragma omp parallel num_threads(context.num_threads)
  {
    // A block of k of all rows is contiguous: [block of k][tile][step][16][32].
#pragma omp for schedule(static) collapse(2)
    for (int64_t k = 0; k < depth; k += kAmxDepthBlock) {
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        const int64_t block_depth = min_of(kAmxDepthBlock, depth - k);
        const int64_t row = tile * kTileRows;
        BFloat16* to = packed + (k * num_tiles + tile * block_depth) * kTileRows;
        for (int64_t i = 0; i < block_depth; i += kTileDepth, to += kTileElements) {
          pack_tile<V>(p.x + (first_row + row) * in, in, min_of(kTileRows, num_rows - row), k + i,
                       kTileRows, to);
        }
      }
    }
    Tiles tiles(static_cast<int>(kTileRows));
    float* sums = reinterpret_cast<float*>(thread_scratch + thread_number() * thread_bytes);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < plan.num_items(); ++item) {
      const GemmItem work = plan.item(item);
      for (int64_t k = 0; k < depth; k += kAmxDepthBlock) {
        const int64_t block_depth = min_of(kAmxDepthBlock, depth - k);
        const int64_t num_steps = block_depth / kTileDepth;
        const int64_t a_stride = block_depth * kTileRows;
        for (int64_t panel = work.first_panel; panel < work.last_panel; ++panel) {
          const BFloat16* b = weight + panel * panel_stride + k * kPanel;
          const bool is_last_panel = panel + 1 == work.last_panel;
          const bool is_last_block = k + block_depth == depth;
          BlockPrefetch next(
              is_last_panel ? weight + work.first_panel * panel_stride + (k + block_depth) * kPanel
                            : b + panel_stride,
              is_last_panel && is_last_block ? 0
                                             : kAmxDepthBlock * kPanel * int64_t{sizeof(BFloat16)},
              work.last_tile - work.first_tile);
          for (int64_t pair = work.first_tile; pair < work.last_tile; ++pair) {
            const int64_t row = pair * 2 * kTileRows;
            const BFloat16* a = packed + k * num_tiles * kTileRows + pair * 2 * a_stride;
            float* c =
                sums + ((panel - work.first_panel) * num_pairs + pair) * 2 * kTileRows * kPanel;
            next.step();
            if (pair * 2 + 1 < num_tiles) {
              multiply_tiles<2>(tiles, num_steps, a, a_stride, b, c, k == 0);
            } else {
              multiply_tiles<1>(tiles, num_steps, a, a_stride, b, c, k == 0);
            }
            if (is_last_block) {
              finish_tile<V>(p, first_row + row, min_of(2 * kTileRows, num_rows - row),
                             panel * kPanel, c);
            }
          }
        }
      }
    }
  }
}

/// Requires: weight.dtype is kBF16.
template <class V, class Tiles>
void linear_amx(const LinearParams& p, const CpuContext& context) {
  check_scratch(amx_scratch_bytes(p.num_tokens, p.weight.in_features, context.num_threads),
                context);
  if (p.num_tokens == 0) return;
  if (p.num_tokens <= kTileRows) return linear_amx_few_rows<V, Tiles>(p, context);
  const int64_t num_chunks = div_up(p.num_tokens, kChunkRows);
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t row = part_begin(p.num_tokens, num_chunks, chunk);
    linear_amx_chunk<V, Tiles>(p, row, part_begin(p.num_tokens, num_chunks, chunk + 1) - row,
                               context);
  }
}

}  // namespace caravan::cpu
