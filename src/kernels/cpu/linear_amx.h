#pragma once

#include "kernels/cpu/gemm_plan.h"
#include "kernels/cpu/linear_epilogue.h"

namespace caravan::cpu {

// Linear layers with bfloat16 weights on AMX tiles. Every output element is one float accumulator
// in a tile, walked over k in steps of 32 (one TDPBF16PS); rows of a tile do not see each other, so
// a row's result does not depend on which rows it is computed with. Activations are rounded to
// bfloat16. `Tiles` are the tile registers: AmxTiles, or an emulation in the tests:
//   Tiles(int rows)                        configures tiles of `rows` rows for A and C
//   zero<C>(), load<T>(from, stride), load_streamed<T>(from, stride), multiply<C, A, B>(),
//   store<C>(to, stride)

/// Rows of a tile and the k of one step.
inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileDepth = 32;
inline constexpr int64_t kTileElements = kTileRows * kTileDepth;
/// Rows that are multiplied at a time, two tiles.
inline constexpr int64_t kPairRows = 2 * kTileRows;
/// Depth of a block of k: a panel's block, 512 x 32 bfloat16, stays in L1 while rows stream past it
/// from L2. Measured, all in L2: 72 % of the peak with 256, 79 % with 384, 83 % with 512.
inline constexpr int64_t kAmxDepthBlock = 512;
/// Most panels that share one pass over a packed block of rows: their accumulators, 512 x 32 x 8
/// floats, fill a quarter of L2. 4 and 16 panels were slower.
inline constexpr int64_t kAmxPanelGroup = 8;
/// Packed rows of no more than this stay in L2, so that turns may be short.
inline constexpr int64_t kAmxSmallBytes = 1 << 20;

/// Scratch memory: packed rows, shared, then the accumulators of one group for each thread.
static inline int64_t amx_packed_bytes(int64_t num_rows, int64_t in_features) {
  return align_up(min_of(num_rows, kChunkRows), kTileRows) * align_up(in_features, kTileDepth) *
         int64_t{sizeof(BFloat16)};
}
static inline int64_t amx_thread_bytes(int64_t num_rows) {
  return kAmxPanelGroup * align_up(min_of(num_rows, kChunkRows), kPairRows) * kPanel *
         int64_t{sizeof(float)};
}
static inline int64_t amx_scratch_bytes(int64_t num_rows, int64_t in_features, int num_threads) {
  return amx_packed_bytes(num_rows, in_features) + num_threads * amx_thread_bytes(num_rows);
}

/// One row of A tiles: to[i / 32 * tile_stride + i % 32] = x[i] as bfloat16 for i < count, zeros up
/// to `depth`, a multiple of 32.
template <class V>
inline void pack_row(const float* x, int64_t count, int64_t depth, int64_t tile_stride,
                     BFloat16* to) {
  for (int64_t i = 0; i < depth; i += kTileDepth, to += tile_stride) {
    for (int64_t j = 0; j < kTileDepth; j += 16) {
      const int64_t left = count - i - j;
      const V values =
          left >= 16 ? V::load(x + i + j) : V::load(x + i + j, static_cast<int>(max_of(0, left)));
      values.store(to + j);
    }
  }
}

/// One block of k of `rows` rows as A tiles: to[step][tile][16][32], zeros for rows that do not
/// exist. x: [rows][in_features], from the block's first k on, of which `count` exist.
template <class V>
inline void pack_block(const float* x, int64_t in_features, int64_t rows, int64_t num_tiles,
                       int64_t count, int64_t depth, BFloat16* to) {
  const int64_t tile_stride = num_tiles * kTileElements;
  for (int64_t r = 0; r < num_tiles * kTileRows; ++r) {
    const float* from = x + r * in_features;
    if (r < rows) {
      // The same row's next block, which this thread most likely packs next.
      for (int64_t i = 0; i < min_of(depth, count - depth); i += 16) {
        __builtin_prefetch(from + depth + i, 0, 2);
      }
    }
    pack_row<V>(from, r < rows ? count : 0, depth, tile_stride, to + r * kTileDepth);
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
      const int64_t k = step * kTileDepth;
      for (int64_t r = 0; r < rows; ++r) {
        pack_row<V>(p.x + r * in + k, in - k, kTileDepth, tile_elements,
                    packed + step * tile_elements + r * kTileDepth);
      }
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

/// What a thread will need soon: the next panel's block and the next block of rows from memory,
/// the next accumulators from L2.
struct AmxPrefetch {
  L2Prefetch weight;
  L2Prefetch rows;
  L1Prefetch sums;
};

/// c (+)= A B for one block of k, kTiles of A (32 rows when 2) by one panel.
/// a: [num_steps][kTiles][16][32]; b: the panel's block; c: [16 kTiles][kPanel].
template <int kTiles, class Tiles>
[[gnu::always_inline]] inline void multiply_tiles(Tiles& tiles, int64_t num_steps,
                                                  const BFloat16* a, const BFloat16* b, float* c,
                                                  bool fresh, AmxPrefetch& prefetch) {
  constexpr int64_t kRowBytes = kPanel * int64_t{sizeof(float)};
  float* c1 = c + kTileRows * kPanel;
  if (fresh) {
    tiles.template zero<0>();
    tiles.template zero<1>();
    if constexpr (kTiles == 2) {
      tiles.template zero<2>();
      tiles.template zero<3>();
    }
  } else {
    tiles.template load<0>(c, kRowBytes);
    tiles.template load<1>(c + 16, kRowBytes);
    if constexpr (kTiles == 2) {
      tiles.template load<2>(c1, kRowBytes);
      tiles.template load<3>(c1 + 16, kRowBytes);
    }
  }
  for (int64_t step = 0; step < num_steps; ++step) {
    prefetch.weight.step();
    prefetch.rows.step();
    prefetch.sums.step();
    tiles.template load<6>(b, 128);
    tiles.template load_streamed<4>(a, 64);
    if constexpr (kTiles == 2) tiles.template load_streamed<5>(a + kTileElements, 64);
    tiles.template load<7>(b + 32, 128);
    tiles.template multiply<0, 4, 6>();
    tiles.template multiply<1, 4, 7>();
    if constexpr (kTiles == 2) {
      tiles.template multiply<2, 5, 6>();
      tiles.template multiply<3, 5, 7>();
    }
    a += kTiles * kTileElements;
    b += kTileDepth * kPanel;
  }
  tiles.template store<0>(c, kRowBytes);
  tiles.template store<1>(c + 16, kRowBytes);
  if constexpr (kTiles == 2) {
    tiles.template store<2>(c1, kRowBytes);
    tiles.template store<3>(c1 + 16, kRowBytes);
  }
}

/// Many rows: compute-bound. A block of k of all rows of the chunk is multiplied with the panels of
/// a group one after the other; accumulators rest in scratch between blocks of k.
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
  const int64_t packed_bytes = amx_packed_bytes(num_rows, in);
  const GemmPlan plan = plan_gemm(num_panels, num_pairs, kAmxPanelGroup, context.num_threads,
                                  packed_bytes <= kAmxSmallBytes ? 3 : 1);
  BFloat16* packed = reinterpret_cast<BFloat16*>(context.scratch);
  std::byte* thread_scratch = context.scratch + packed_bytes;
  const int64_t thread_bytes = amx_thread_bytes(num_rows);
#pragma omp parallel num_threads(context.num_threads)
  {
    // A block of k of all rows is contiguous: [block of k][pair][step][tile of pair][16][32].
#pragma omp for schedule(static) collapse(2)
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
      for (int64_t k = 0; k < depth; k += kAmxDepthBlock) {
        const int64_t block_depth = min_of(kAmxDepthBlock, depth - k);
        const int64_t row = pair * kPairRows;
        pack_block<V>(p.x + (first_row + row) * in + k, in, num_rows - row,
                      min_of(2, num_tiles - pair * 2), in - k, block_depth,
                      packed + k * num_tiles * kTileRows + row * block_depth);
      }
    }
    Tiles tiles(static_cast<int>(kTileRows));
    float* sums = reinterpret_cast<float*>(thread_scratch + thread_number() * thread_bytes);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < plan.num_items(); ++item) {
      const GemmItem work = plan.item(item);
      const int64_t item_pairs = work.last_tile - work.first_tile;
      for (int64_t k = 0; k < depth; k += kAmxDepthBlock) {
        const int64_t block_depth = min_of(kAmxDepthBlock, depth - k);
        const int64_t num_steps = block_depth / kTileDepth;
        const bool is_last_block = k + block_depth == depth;
        const int64_t next_k = is_last_block ? 0 : k + block_depth;
        const int64_t next_depth = min_of(kAmxDepthBlock, depth - next_k);
        const int64_t panel_steps = item_pairs * num_steps;
        AmxPrefetch prefetch{
            {nullptr, 0, 1},
            {packed + next_k * num_tiles * kTileRows + work.first_tile * kPairRows * next_depth,
             min_of(item_pairs * kPairRows, num_tiles * kTileRows - work.first_tile * kPairRows) *
                 next_depth * int64_t{sizeof(BFloat16)},
             panel_steps * (work.last_panel - work.first_panel)},
            {nullptr, 0, 1}};
        for (int64_t panel = work.first_panel; panel < work.last_panel; ++panel) {
          const BFloat16* b = weight + panel * panel_stride + k * kPanel;
          if (panel + 1 < work.last_panel) {
            prefetch.weight = {b + panel_stride, block_depth * kPanel * int64_t{sizeof(BFloat16)},
                               panel_steps};
          } else {
            prefetch.weight = {weight + work.first_panel * panel_stride + next_k * kPanel,
                               is_last_block ? 0 : next_depth * kPanel * int64_t{sizeof(BFloat16)},
                               panel_steps};
          }
          for (int64_t pair = work.first_tile; pair < work.last_tile; ++pair) {
            const int64_t row = pair * kPairRows;
            const BFloat16* a = packed + k * num_tiles * kTileRows + row * block_depth;
            float* c = sums + ((panel - work.first_panel) * num_pairs + pair) * kPairRows * kPanel;
            prefetch.sums = {c + kPairRows * kPanel,
                             k == 0 ? 0 : kPairRows * kPanel * int64_t{sizeof(float)}, num_steps};
            if (pair * 2 + 1 < num_tiles) {
              multiply_tiles<2>(tiles, num_steps, a, b, c, k == 0, prefetch);
            } else {
              multiply_tiles<1>(tiles, num_steps, a, b, c, k == 0, prefetch);
            }
            if (is_last_block) {
              finish_tile<V>(p, first_row + row, min_of(kPairRows, num_rows - row), panel * kPanel,
                             c);
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
