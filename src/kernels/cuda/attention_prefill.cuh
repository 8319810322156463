#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_partition.cuh"
#include "kernels/cuda/kv_element.cuh"

// FlashAttention-2 (Dao 2023) over the paged cache: a block takes one tile of queries of one head,
// a warp kRowTiles * 16 of its rows. Unlike there, each partition of the context has accumulators
// of its own, merged after it (attention_partition.cuh), so that decode finds the same bits.
//
// A quantized partition is copied as it is, widened into the tiles of a 16-bit cache when all warps
// are done with the partition before, and the next one is copied meanwhile.

namespace caravan::cuda {

inline constexpr int kMaxTilesByLength = 16;  // 2,048 queries

/// kQueriesInRegisters: queries are kept as fragments, else read again for every partition.
/// kGroup: tiles of 8 output columns that are accumulated at once.
template <typename T, typename C, int kHeadDim_, int kWarps_, int kRowTiles_,
          bool kQueriesInRegisters_, int kGroup_, int kStages_, int kBlocksPerSm_>
struct PrefillConfig {
  using Element = T;
  using CacheElement = C;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr bool kQueriesInRegisters = kQueriesInRegisters_;
  static constexpr int kGroup = kGroup_;
  static constexpr int kStages = kIsQuantized<C> ? 1 : kStages_;
  static constexpr int kBlocksPerSm = kBlocksPerSm_;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRows = kWarps * kRowTiles * 16;
  static constexpr int kTileBytes = kPartitionTokens * kHeadDim * 2;  // of K or of V
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  // Queries on their way to registers use the last stage.
  static constexpr int kQuantizedBytes = kIsQuantized<C> ? kStageBytes / 2 : 0;
  static constexpr int kSharedBytes =
      kStages * kStageBytes + (kQueriesInRegisters ? 0 : kQueryBytes) + kQuantizedBytes;
  static_assert(kRows == kQueryTile && (kStages == 1 || kStages == 2));
  static_assert(!kQueriesInRegisters || kQueryBytes <= kStageBytes);
};

template <typename Config>
__device__ __forceinline__ void load_queries(uint32_t shared,
                                             const typename Config::Element* source,
                                             int64_t row_stride, int num_rows, int head_dim) {
  constexpr int kChunks = Config::kHeadDim / 8;
#pragma unroll
  for (int i = 0; i < Config::kRows * kChunks / Config::kThreads; ++i) {
    const int index = i * Config::kThreads + static_cast<int>(threadIdx.x);
    const int row = index / kChunks;
    const int chunk = index % kChunks;
    const bool is_valid = row < num_rows && chunk * 8 < head_dim;
    cp_async_16(shared + swizzled<Config::kHeadDim * 2>(row, chunk),
                is_valid ? source + row * row_stride + chunk * 8 : source, is_valid ? 16 : 0);
  }
}

/// A tile of K or V, widened.
template <typename Config, bool kIsK>
__device__ __forceinline__ void widen_partition(uint32_t tile, uint32_t quantized) {
  constexpr int kChunks = Config::kHeadDim / 16;
#pragma unroll
  for (int i = 0; i < kPartitionTokens * kChunks / Config::kThreads; ++i) {
    const int index = i * Config::kThreads + static_cast<int>(threadIdx.x);
    const int row = index / kChunks;
    const int chunk = index % kChunks;
    uint4 first;
    uint4 second;
    widen_chunk<typename Config::Element, typename Config::CacheElement, kIsK>(
        load_shared_16(quantized + swizzled<Config::kHeadDim>(row, chunk)), first, second);
    store_shared_16(tile + swizzled<Config::kHeadDim * 2>(row, 2 * chunk), first);
    store_shared_16(tile + swizzled<Config::kHeadDim * 2>(row, 2 * chunk + 1), second);
  }
}

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm) attention_prefill_kernel(
    const PrefillParams<typename Config::Element, typename Config::CacheElement> params) {
  using T = typename Config::Element;
  using C = typename Config::CacheElement;
  constexpr int kHeadDim = Config::kHeadDim;
  constexpr int kRowTiles = Config::kRowTiles;
  constexpr int kSteps = kHeadDim / 16;   // of the head_dim in q k^T
  constexpr int kColumns = kHeadDim / 8;  // tiles of 8 output columns
  constexpr int kGroup = Config::kGroup;
  constexpr int kStages = Config::kStages;
  constexpr float kInfinity = __builtin_huge_valf();
  extern __shared__ __align__(128) uint8_t shared[];
  pdl_launch_dependents();
  pdl_wait();

  // Few tiles: the longest contexts first. Many: the tiles of a head one after the other, as their
  // K and V do not all stay in L2. H100, TFLOP/s: 1 x 2,048 tokens 268 and 192, 8 x 2,048 267 and
  // 283.
  const int num_heads = params.cache.num_heads;
  const int num_tiles = static_cast<int>(params.num_tiles);
  const int index = static_cast<int>(blockIdx.x);
  const bool is_by_length = num_tiles <= kMaxTilesByLength;
  const int head_index = is_by_length ? index % num_heads : index / num_tiles;
  const int tile = num_tiles - 1 - (is_by_length ? index / num_heads : index % num_tiles);
  const int seq = params.tiles[2 * tile];
  const int first_query = params.tiles[2 * tile + 1];
  const int seq_start = params.query_start[seq];
  const int num_queries = params.query_start[seq + 1] - seq_start;
  const PagedHead<C> head = params.cache.head(seq, head_index);
  const int num_rows = min(Config::kRows, num_queries - first_query);
  if (num_rows <= 0) return;
  const int64_t hidden = static_cast<int64_t>(params.cache.num_heads) * head.head_dim;
  const int64_t first_token = seq_start + first_query;
  T* out = params.out + first_token * hidden + head_index * head.head_dim;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (head.context_len <= 0) {
    for (int i = static_cast<int>(threadIdx.x); i < num_rows * head.head_dim;
         i += Config::kThreads) {
      out[i / head.head_dim * hidden + i % head.head_dim] = from_float<T>(0.0f);
    }
    return;
  }
  const float scale_log2 = params.cache.score_scale(params.scale_log2, head_index);
  const float v_scale = params.cache.v_scale(head_index);
  const int first_position = head.context_len - num_queries + first_query;
  const int num_partitions = (first_position + num_rows - 1) / kPartitionTokens + 1;

  const uint32_t stages = shared_address(shared);
  [[maybe_unused]] const uint32_t quantized =
      stages + Config::kSharedBytes - Config::kQuantizedBytes;
  const uint32_t queries =
      stages + (kStages - (Config::kQueriesInRegisters ? 1 : 0)) * Config::kStageBytes;
  load_queries<Config>(queries, params.qkv + first_token * 3 * hidden + head_index * head.head_dim,
                       3 * hidden, num_rows, head.head_dim);
  int32_t blocks[kBlocksPerPartition];
  const auto load_stage = [&](int partition) {
    const uint32_t stage =
        kIsQuantized<C> ? quantized : stages + partition % kStages * Config::kStageBytes;
    const uint32_t v_stage =
        stage + (kIsQuantized<C> ? Config::kQuantizedBytes / 2 : Config::kTileBytes);
    load_partition<C, kHeadDim, Config::kThreads>(stage, head.k, head, blocks, partition);
    load_partition<C, kHeadDim, Config::kThreads>(v_stage, head.v, head, blocks, partition);
  };
  constexpr bool kLoadsAhead = kStages > 1 || kIsQuantized<C>;
  cp_async_commit();
  load_table(blocks, head.table, 0, head.context_len);
  if (kLoadsAhead) {
    load_stage(0);
    load_table(blocks, head.table, 1, head.context_len);
  }
  cp_async_commit();

  // Lane's row and chunk in ldmatrix of q (as A), k (as B) and v (as B, transposed).
  const uint32_t q_row = (warp * kRowTiles * 16 + (lane & 15)) * kHeadDim * 2;
  const uint32_t q_chunk = (lane >> 4) ^ (lane & 7);
  const uint32_t k_row = ((lane & 7) + (lane >> 4) * 8) * kHeadDim * 2;
  const uint32_t k_chunk = ((lane >> 3) & 1) ^ (lane & 7);
  const uint32_t v_row = (lane & 15) * kHeadDim * 2;
  const uint32_t v_chunk = q_chunk;

  [[maybe_unused]] uint32_t q[Config::kQueriesInRegisters ? kRowTiles : 1]
                             [Config::kQueriesInRegisters ? kSteps : 1][4];
  if constexpr (Config::kQueriesInRegisters) {
    cp_async_wait<1>();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        ldmatrix_x4(q[r][step],
                    queries + r * 16 * kHeadDim * 2 + q_row + ((2 * step) ^ q_chunk) * 16);
      }
    }
  }

  float o[kRowTiles][kColumns][4];
  float m[kRowTiles][2];
  float l[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    m[r][0] = m[r][1] = -kInfinity;
    l[r][0] = l[r][1] = 0.0f;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) o[r][c][0] = o[r][c][1] = o[r][c][2] = o[r][c][3] = 0.0f;
  }
  const int warp_position = first_position + warp * kRowTiles * 16;
  const int lane_position = warp_position + (lane >> 2);
  // A warp without rows sees no partition.
  const int last_warp_position =
      warp * kRowTiles * 16 < num_rows ? warp_position + kRowTiles * 16 - 1 : -1;

  for (int partition = 0; partition < num_partitions; ++partition) {
    if (!kLoadsAhead) {
      __syncthreads();
      load_stage(partition);
      load_table(blocks, head.table, partition + 1, head.context_len);
      cp_async_commit();
    }
    cp_async_wait<0>();
    __syncthreads();
    if constexpr (kIsQuantized<C>) {
      widen_partition<Config, true>(stages, quantized);
      widen_partition<Config, false>(stages + Config::kTileBytes,
                                     quantized + Config::kQuantizedBytes / 2);
      __syncthreads();
    }
    if (kLoadsAhead && partition + 1 < num_partitions) {
      load_stage(partition + 1);
      load_table(blocks, head.table, partition + 2, head.context_len);
      cp_async_commit();
    }
    const int first_column = partition * kPartitionTokens;
    if (first_column > last_warp_position) continue;
    const uint32_t k_tile = stages + partition % kStages * Config::kStageBytes;
    const uint32_t v_tile = k_tile + Config::kTileBytes;

    float s[kRowTiles][kScoreTiles][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if constexpr (Config::kQueriesInRegisters) {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[r][i] = q[r][step][i];
        } else {
          ldmatrix_x4(a[r], queries + r * 16 * kHeadDim * 2 + q_row + ((2 * step) ^ q_chunk) * 16);
        }
      }
#pragma unroll
      for (int j = 0; j < kScoreTiles; j += 2) {
        uint32_t b[4];
        ldmatrix_x4(b, k_tile + j * 8 * kHeadDim * 2 + k_row + ((2 * step) ^ k_chunk) * 16);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          mma_m16n8k16<T>(s[r][j], a[r], b[0], b[1]);
          mma_m16n8k16<T>(s[r][j + 1], a[r], b[2], b[3]);
        }
      }
    }

    const bool is_diagonal = first_column + kPartitionTokens - 1 > warp_position;
    if (is_diagonal) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int j = 0; j < kScoreTiles; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = first_column + j * 8 + (lane & 3) * 2 + (e & 1);
            const int position = lane_position + r * 16 + (e >> 1) * 8;
            if (column > position) s[r][j][e] = -kInfinity;
          }
        }
      }
    }

    uint32_t p[kRowTiles][kBlocksPerPartition][4];
    MergeFactors f[kRowTiles][2];
    bool needs_rescale = false;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float reference[2] = {partition_reference(row_max<0>(s[r]), scale_log2),
                            partition_reference(row_max<2>(s[r]), scale_log2)};
      float sum[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // A row that sees nothing of the partition: p = 0 and the state as it was.
        if (is_diagonal && first_column > lane_position + r * 16 + h * 8) reference[h] = 0.0f;
      }
      sum[0] = quad_sum(row_exp<0>(s[r], scale_log2, reference[0]));
      sum[1] = quad_sum(row_exp<2>(s[r], scale_log2, reference[1]));
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!is_diagonal || first_column <= lane_position + r * 16 + h * 8) {
          f[r][h] = merge_references(m[r][h], reference[h]);
          l[r][h] = merge(l[r][h], sum[h], f[r][h]);
        } else {
          f[r][h] = {1.0f, 0.0f};
        }
        needs_rescale |= f[r][h].state != 1.0f;
      }
#pragma unroll
      for (int step = 0; step < kBlocksPerPartition; ++step) {
        p[r][step][0] = pack_pair<T>(s[r][2 * step][0], s[r][2 * step][1]);
        p[r][step][1] = pack_pair<T>(s[r][2 * step][2], s[r][2 * step][3]);
        p[r][step][2] = pack_pair<T>(s[r][2 * step + 1][0], s[r][2 * step + 1][1]);
        p[r][step][3] = pack_pair<T>(s[r][2 * step + 1][2], s[r][2 * step + 1][3]);
      }
    }
    needs_rescale = __any_sync(0xFFFFFFFFu, needs_rescale);
    const bool has_blind_rows = first_column > warp_position;

#pragma unroll
    for (int group = 0; group < kColumns; group += kGroup) {
      float acc[kRowTiles][kGroup][4] = {};
#pragma unroll
      for (int step = 0; step < kBlocksPerPartition; ++step) {
#pragma unroll
        for (int c = 0; c < kGroup; c += 2) {
          uint32_t b[4];
          ldmatrix_x4_trans(
              b, v_tile + step * 16 * kHeadDim * 2 + v_row + ((group + c) ^ v_chunk) * 16);
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) {
            mma_m16n8k16<T>(acc[r][c], p[r][step], b[0], b[1]);
            mma_m16n8k16<T>(acc[r][c + 1], p[r][step], b[2], b[3]);
          }
        }
      }
      // Three forms of merge(): o * 1 is o, so most partitions need the FMA only.
      if (has_blind_rows) {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
          for (int i = 0; i < kGroup * 4; ++i) {
            float& value = o[r][group + i / 4][i % 4];
            const int h = i % 4 / 2;
            const float merged = merge(value, acc[r][i / 4][i % 4], f[r][h]);
            if (first_column <= lane_position + r * 16 + h * 8) value = merged;
          }
        }
      } else if (needs_rescale) {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
          for (int i = 0; i < kGroup * 4; ++i) {
            float& value = o[r][group + i / 4][i % 4];
            value = merge(value, acc[r][i / 4][i % 4], f[r][i % 4 / 2]);
          }
        }
      } else {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
          for (int i = 0; i < kGroup * 4; ++i) {
            float& value = o[r][group + i / 4][i % 4];
            value = __fmaf_rn(acc[r][i / 4][i % 4], f[r][i % 4 / 2].partition, value);
          }
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp * kRowTiles * 16 + r * 16 + h * 8 + (lane >> 2);
      if (row >= num_rows) continue;
      const float inverse = normalizer(l[r][h], v_scale);
      T* row_out = out + row * hidden + (lane & 3) * 2;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (c * 8 >= head.head_dim) continue;
        *reinterpret_cast<uint32_t*>(row_out + c * 8) = pack_pair<T>(
            __fmul_rn(o[r][c][2 * h], inverse), __fmul_rn(o[r][c][2 * h + 1], inverse));
      }
    }
  }
}

template <typename Config>
void launch_prefill_config(const AttentionArgs& args, const int32_t* tiles, int64_t num_tiles,
                           const LaunchContext& context) {
  launch(context, attention_prefill_kernel<Config>,
         dim3(static_cast<unsigned>(num_tiles * args.cache.num_heads)), dim3(Config::kThreads),
         Config::kSharedBytes,
         prefill_params<typename Config::Element, typename Config::CacheElement>(args, tiles,
                                                                                 num_tiles));
}

template <typename T, typename C>
void launch_prefill_dtype(const AttentionArgs& args, const int32_t* tiles, int64_t num_tiles,
                          const LaunchContext& context) {
  // H100, head_dim 128, 1 x 2,048 tokens, TFLOP/s by warps x rows of a warp: 4 x 16 241, 8 x 16 225
  // (253 with queries read again), 2 x 32 165, 4 x 32 281: the more rows, the fewer reads of shared
  // memory. One stage for 256, which then fits into the 99 KiB of sm_86 and sm_89.
  if (args.cache.head_dim <= 64) {
    launch_prefill_config<PrefillConfig<T, C, 64, 4, 2, true, 4, 2, 2>>(args, tiles, num_tiles,
                                                                        context);
  } else if (args.cache.head_dim <= 128) {
    launch_prefill_config<PrefillConfig<T, C, 128, 4, 2, false, 2, 2, 2>>(args, tiles, num_tiles,
                                                                          context);
  } else {
    launch_prefill_config<PrefillConfig<T, C, 256, 8, 1, true, 2, 1, 1>>(args, tiles, num_tiles,
                                                                         context);
  }
}

}  // namespace caravan::cuda
