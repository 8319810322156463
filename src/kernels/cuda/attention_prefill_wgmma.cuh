#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_partition.cuh"
#include "kernels/cuda/kv_element.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

// attention_prefill.cu on Hopper's own instructions, to the bit: a warp brings K and V by tensor
// copies, two warpgroups take 64 queries each and multiply with wgmma. While a partition's output
// is merged, the tensor cores work on the scores of the next one. Source of the pipeline:
// FlashAttention-3 (Shah et al. 2024), section 3. Its turn-taking of the warpgroups and queries in
// registers gain nothing here (H100, 1 x 2,048 tokens: 387 TFLOP/s; 368, 353 and 368 with both).
//
// A quantized cache comes through the registers of all four warps of the producing warpgroup, which
// widen it and write the tiles that a tensor copy would.

namespace caravan::cuda {

inline constexpr int kConsumers = 2;  // warpgroups
inline constexpr int kWgmmaThreads = 128 * (kConsumers + 1);
inline constexpr int kHalfColumns = 64;  // a row of the 128-byte swizzle
inline constexpr int kHalfRowBytes = kHalfColumns * 2;
inline constexpr int kWgRows = 64;
static_assert(kQueryTile == kConsumers * kWgRows);

template <int kHeadDim_>
struct WgmmaConfig {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHalves = kHeadDim / kHalfColumns;
  static constexpr int kStages = 4;
  static constexpr int kHalfBytes = kPartitionTokens * kHalfRowBytes;  // of K or of V
  static constexpr int kTileBytes = kHalves * kHalfBytes;
  static constexpr int kQueryHalfBytes = kConsumers * kWgRows * kHalfRowBytes;
  static constexpr int kQueryBytes = kHalves * kQueryHalfBytes;
  static constexpr int kBarriers = 4 * kStages + 2;
  // 1024 more: the swizzle wants its tiles aligned.
  static constexpr int kSharedBytes =
      1024 + kQueryBytes + 2 * kStages * kTileBytes + kBarriers * 8 + 64;
};

/// Registers of a thread once the warpgroups have their parts. The block starts with
/// kWgmmaThreads times 168: a consumer that wants more than the producers gave back waits forever.
template <bool kWidens>
struct WgmmaRegisters {
  static constexpr int kProducer = kWidens ? 72 : 40;
  static constexpr int kConsumer = kWidens ? 216 : 232;
  static constexpr int kAtStart = 65536 / kWgmmaThreads / 8 * 8;
  static_assert(kProducer + kConsumers * kConsumer <= (kConsumers + 1) * kAtStart);
};

/// What the consumers have to know of one (tile, head); written by the producer with the queries.
/// No race, though compute-sanitizer reports one: it does not follow mbarriers between ordinary
/// accesses. Each write is before an arrival at q_full and each read behind a wait for it, each
/// next write behind a wait for q_empty, at which every warp arrives when it has read; an arrival
/// is a release and a wait an acquire (PTX ISA, mbarrier.arrive and mbarrier.try_wait: .release and
/// .acquire at .cta scope are the defaults).
struct WgmmaWork {
  int32_t num_rows;        // 0: no more work
  int32_t num_partitions;  // 0: padding, its rows become zero
  int32_t first_position;
  int32_t context_len;
  int32_t first_token;
  int32_t head;
};
static_assert(sizeof(WgmmaWork) <= 64);

#define CARAVAN_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define CARAVAN_D16(i) CARAVAN_D4(i), CARAVAN_D4(i + 4), CARAVAN_D4(i + 8), CARAVAN_D4(i + 12)

/// d [64 x 64] (+)= a b: a in registers as for mma_m16n8k16, b [16 x 64] in shared memory with
/// columns contiguous.
template <typename T>
__device__ __forceinline__ void wgmma_registers(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                int is_accumulating) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
        : CARAVAN_D16(0), CARAVAN_D16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(is_accumulating));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
        : CARAVAN_D16(0), CARAVAN_D16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(is_accumulating));
  }
}

#undef CARAVAN_D16
#undef CARAVAN_D4

/// Keeps reads of accumulators behind the wait for them.
__device__ __forceinline__ void fence_registers(float (&d)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// A barrier of one warpgroup.
__device__ __forceinline__ void sync_warpgroup(int index) {
  asm volatile("bar.sync %0, 128;" ::"r"(index + 1) : "memory");
}

template <int kWidth>
__device__ __forceinline__ float (&as_tiles(float (&s)[kWidth]))[kWidth / 4][4] {
  return reinterpret_cast<float(&)[kWidth / 4][4]>(s);
}

/// The tiles are dealt to the blocks forwards and backwards in turn, so that the blocks with the
/// longer contexts of one turn get the shorter ones of the next. H100, 1 x 2,048 tokens: 387
/// TFLOP/s, a block for every tile and head 301.
__device__ __forceinline__ int64_t work_index(int turn) {
  const int64_t in_turn = turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  return static_cast<int64_t>(turn) * gridDim.x + in_turn;
}

/// A thread's part of K or V of a partition of a quantized cache: 16 elements of every
/// kRowsAtOnce-th token. Tokens beyond the context and columns beyond head_dim are zeros.
template <typename T, typename C, int kHeadDim>
struct QuantizedPart {
  static constexpr int kProducers = 128;  // threads
  static constexpr int kChunks = kHeadDim / 16;
  static constexpr int kRowsAtOnce = kProducers / kChunks;
  static constexpr int kLoads = kPartitionTokens / kRowsAtOnce;
  uint4 elements[kLoads];

  __device__ __forceinline__ void load(const C* cache, const PagedHead<C>& head,
                                       const int32_t (&blocks)[kBlocksPerPartition],
                                       int partition) {
    const int first_row = static_cast<int>(threadIdx.x) / kChunks;
    const int column = static_cast<int>(threadIdx.x) % kChunks * 16;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int token = partition * kPartitionTokens + i * kRowsAtOnce + first_row;
      int32_t block = blocks[i * kRowsAtOnce / kCacheBlock];
      if (kRowsAtOnce > kCacheBlock && first_row >= kCacheBlock) {
        block = blocks[i * kRowsAtOnce / kCacheBlock + 1];
      }
      elements[i] = {};
      if (token < head.context_len && column < head.head_dim) {
        elements[i] = *reinterpret_cast<const uint4*>(cache + block * head.block_stride +
                                                      token % kCacheBlock * head.head_dim + column);
      }
    }
  }
  /// Into a tile of kHalves times [64 tokens][64 dimensions] with the 128-byte swizzle.
  template <bool kIsK>
  __device__ __forceinline__ void store(uint32_t tile) const {
    const int first_row = static_cast<int>(threadIdx.x) / kChunks;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    const uint32_t half = tile + chunk / 4 * (kPartitionTokens * kHalfRowBytes);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int row = i * kRowsAtOnce + first_row;
      uint4 first;
      uint4 second;
      widen_chunk<T, C, kIsK>(elements[i], first, second);
      store_shared_16(half + swizzled<kHalfRowBytes>(row, chunk % 4 * 2), first);
      store_shared_16(half + swizzled<kHalfRowBytes>(row, chunk % 4 * 2 + 1), second);
    }
  }
};

template <typename T, typename C, int kHeadDim>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    attention_prefill_wgmma_kernel(const __grid_constant__ CUtensorMap q_map,
                                   const __grid_constant__ CUtensorMap k_map,
                                   const __grid_constant__ CUtensorMap v_map,
                                   const PrefillParams<T, C> params) {
  using Config = WgmmaConfig<kHeadDim>;
  using Registers = WgmmaRegisters<kIsQuantized<C>>;
  constexpr int kHalves = Config::kHalves;
  constexpr int kStages = Config::kStages;
  constexpr float kInfinity = __builtin_huge_valf();
  extern __shared__ uint8_t shared[];
  const uint32_t queries = (shared_address(shared) + 1023) / 1024 * 1024;
  const uint32_t k_tiles = queries + Config::kQueryBytes;
  const uint32_t v_tiles = k_tiles + kStages * Config::kTileBytes;
  const uint32_t barriers = v_tiles + kStages * Config::kTileBytes;
  const auto k_full = [&](int stage) { return barriers + stage * 8; };
  const auto v_full = [&](int stage) { return barriers + (kStages + stage) * 8; };
  const auto k_empty = [&](int stage) { return barriers + (2 * kStages + stage) * 8; };
  const auto v_empty = [&](int stage) { return barriers + (3 * kStages + stage) * 8; };
  const uint32_t q_full = barriers + 4 * kStages * 8;
  const uint32_t q_empty = q_full + 8;
  volatile WgmmaWork* next_work =
      reinterpret_cast<volatile WgmmaWork*>(shared + (q_empty + 8 - shared_address(shared)));
  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid % 32;
  if (tid == 0) {
    for (int i = 0; i < 2 * kStages; ++i) {
      mbarrier_init(k_full(i), kIsQuantized<C> ? 4 : 1);  // a warp, or the copy's own thread
      mbarrier_init(k_empty(i), kConsumers * 4);
    }
    prefetch_tensor_map(&q_map);
    if (!kIsQuantized<C>) {
      prefetch_tensor_map(&k_map);
      prefetch_tensor_map(&v_map);
    }
    mbarrier_init(q_full, 1);
    mbarrier_init(q_empty, kConsumers * 4);
    fence_mbarrier_init();
  }
  __syncthreads();
  pdl_launch_dependents();
  if (!params.is_context_settled) pdl_wait();

  const int head_dim = params.cache.head_dim;
  const int num_heads = params.cache.num_heads;
  const int64_t hidden = static_cast<int64_t>(num_heads) * head_dim;
  const int warpgroup = tid / 128;
  if (warpgroup == 0) {
    setmaxnreg_dec<Registers::kProducer>();
    if (!kIsQuantized<C> && params.is_context_settled && tid != 0) pdl_wait();
    if (kIsQuantized<C> || tid == 0) {
      bool needs_wait = params.is_context_settled;
      const int64_t num_items = params.num_tiles * num_heads;
      int num_sent = 0;
      int slot = 0;  // partitions sent
      for (int turn = 0;; ++turn) {
        // A turn's last items may be missing on either side, so the turn decides about the end.
        if (static_cast<int64_t>(turn) * gridDim.x >= num_items) break;
        const int64_t item = work_index(turn);
        if (item >= num_items) continue;
        // The tiles of a head one after the other: they share its K and V in L2. H100, 8 x 2,048
        // tokens: 406 TFLOP/s, the heads of a tile one after the other 312.
        const int head = static_cast<int>(item / params.num_tiles);
        const int64_t tile = params.num_tiles - 1 - item % params.num_tiles;
        const int seq = params.tiles[2 * tile];
        const int first_query = params.tiles[2 * tile + 1];
        const int32_t* table = params.cache.block_tables + seq * params.cache.max_blocks_per_seq;
        int32_t blocks[kBlocksPerPartition];
        // As far as the table goes: does not wait for context_lens.
        load_table(blocks, table, 0,
                   static_cast<int32_t>(params.cache.max_blocks_per_seq) * kCacheBlock);
        const int seq_start = params.query_start[seq];
        const int num_queries = params.query_start[seq + 1] - seq_start;
        const int context_len = params.cache.context_lens[seq];
        const int num_rows = min(static_cast<int>(kQueryTile), num_queries - first_query);
        if (num_rows <= 0) continue;
        const int first_position = context_len - num_queries + first_query;
        const int num_partitions =
            context_len <= 0 ? 0 : (first_position + num_rows - 1) / kPartitionTokens + 1;
        if (needs_wait) pdl_wait();
        needs_wait = false;
        if (tid == 0) {
          mbarrier_wait(q_empty, num_sent % 2 ^ 1);
          next_work->num_rows = num_rows;
          next_work->num_partitions = num_partitions;
          next_work->first_position = first_position;
          next_work->context_len = context_len;
          next_work->first_token = seq_start + first_query;
          next_work->head = head;
          mbarrier_arrive_expect(q_full, Config::kQueryBytes);
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            tensor_copy_3d(queries + half * Config::kQueryHalfBytes, &q_map, half * kHalfColumns,
                           head, seq_start + first_query, q_full);
          }
        }
        ++num_sent;

        if constexpr (kIsQuantized<C>) {
          const PagedHead<C> paged = params.cache.head(seq, head);
          QuantizedPart<T, C, kHeadDim> k_part;
          QuantizedPart<T, C, kHeadDim> v_part;
          __syncwarp();
          if (num_partitions > 0) {
            k_part.load(paged.k, paged, blocks, 0);
            v_part.load(paged.v, paged, blocks, 0);
          }
          const auto send = [&](uint32_t barrier) {
            fence_proxy_async();
            __syncwarp();
            if (lane == 0) mbarrier_arrive(barrier);
          };
          for (int i = 0; i < num_partitions; ++i, ++slot) {
            const int stage = slot % kStages;
            const uint32_t parity = slot / kStages % 2 ^ 1;
            const bool has_next = i + 1 < num_partitions;
            load_table(blocks, table, i + 1, context_len);
            mbarrier_wait(k_empty(stage), parity);
            k_part.template store<true>(k_tiles + stage * Config::kTileBytes);
            send(k_full(stage));
            if (has_next) k_part.load(paged.k, paged, blocks, i + 1);
            mbarrier_wait(v_empty(stage), parity);
            v_part.template store<false>(v_tiles + stage * Config::kTileBytes);
            send(v_full(stage));
            if (has_next) v_part.load(paged.v, paged, blocks, i + 1);
          }
        } else {
          for (int i = 0; i < num_partitions; ++i, ++slot) {
            const int stage = slot % kStages;
            const uint32_t parity = slot / kStages % 2 ^ 1;
            const int num_blocks =
                min(kBlocksPerPartition,
                    (context_len - i * kPartitionTokens + kCacheBlock - 1) / kCacheBlock);
            const uint32_t num_bytes = num_blocks * kCacheBlock * kHalfRowBytes * kHalves;
            const auto load = [&](const CUtensorMap* map, uint32_t tile_address, uint32_t barrier) {
              mbarrier_arrive_expect(barrier, num_bytes);
#pragma unroll
              for (int b = 0; b < kBlocksPerPartition; ++b) {
                if (b >= num_blocks) break;
                const int row = (blocks[b] * num_heads + head) * kCacheBlock;
#pragma unroll
                for (int half = 0; half < kHalves; ++half) {
                  tensor_copy_2d(
                      tile_address + half * Config::kHalfBytes + b * kCacheBlock * kHalfRowBytes,
                      map, half * kHalfColumns, row, barrier);
                }
              }
            };
            mbarrier_wait(k_empty(stage), parity);
            load(&k_map, k_tiles + stage * Config::kTileBytes, k_full(stage));
            mbarrier_wait(v_empty(stage), parity);
            load(&v_map, v_tiles + stage * Config::kTileBytes, v_full(stage));
            load_table(blocks, table, i + 1, context_len);
          }
        }
      }
      if (needs_wait) pdl_wait();
      if (tid == 0) {
        mbarrier_wait(q_empty, num_sent % 2 ^ 1);
        next_work->num_rows = 0;
        mbarrier_arrive(q_full);
      }
    }
  } else {
    setmaxnreg_inc<Registers::kConsumer>();
    if (params.is_context_settled) pdl_wait();
    const int consumer = warpgroup - 1;
    const int warp = tid / 32 % 4;
    int slot = 0;  // partitions received
    for (int turn = 0;; ++turn) {
      mbarrier_wait(q_full, turn % 2);
      const int num_rows = next_work->num_rows;
      if (num_rows == 0) break;
      const int num_partitions = next_work->num_partitions;
      const int first_position = next_work->first_position + consumer * kWgRows;
      const int context_len = next_work->context_len;
      T* out = params.out + (next_work->first_token + consumer * kWgRows) * hidden +
               next_work->head * head_dim;
      const float scale_log2 = params.cache.score_scale(params.scale_log2, next_work->head);
      const float v_scale = params.cache.v_scale(next_work->head);
      const int my_rows = max(0, min(kWgRows, num_rows - consumer * kWgRows));
      const int warp_position = first_position + warp * 16;
      const int lane_position = warp_position + lane / 4;
      // Of the partitions only as many as the last row sees.
      const int my_partitions =
          my_rows == 0 ? 0
                       : min(num_partitions, (first_position + my_rows - 1) / kPartitionTokens + 1);
      const auto release_queries = [&] {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(q_empty);
      };

      if (my_partitions == 0) {
        release_queries();
        if (num_partitions == 0) {
          for (int i = tid % 128; i < my_rows * head_dim; i += 128) {
            out[i / head_dim * hidden + i % head_dim] = from_float<T>(0.0f);
          }
        }
      } else {
        float s[32];
        float acc[kHalves][32];
        float o[kHalves][32];
        float m[2] = {-kInfinity, -kInfinity};
        float l[2] = {0.0f, 0.0f};
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
#pragma unroll
          for (int i = 0; i < 32; ++i) o[half][i] = 0.0f;
        }
        const auto start_scores = [&](int index) {
          const int stage = index % kStages;
          mbarrier_wait(k_full(stage), index / kStages % 2);
          wgmma_fence();
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            const uint64_t a = wgmma_descriptor_swizzle128(
                queries + half * Config::kQueryHalfBytes + consumer * kWgRows * kHalfRowBytes);
            const uint64_t b = wgmma_descriptor_swizzle128(k_tiles + stage * Config::kTileBytes +
                                                           half * Config::kHalfBytes);
#pragma unroll
            for (int step = 0; step < 4; ++step) {
              wgmma_m64k16<T, 64>(s, a + step * 2, b + step * 2, half + step > 0 ? 1 : 0);
            }
          }
        };
        start_scores(slot);
        wgmma_commit();
        wgmma_wait<0>();
        fence_registers(s);
        if (lane == 0) mbarrier_arrive(k_empty(slot % kStages));
        if (my_partitions == 1) release_queries();

        // kIsLast: no scores to start; only there may rows see nothing (of the 64 rows the first
        // sees the partition before) and may the context end. A compile-time matter because wgmma
        // in a branch is not left running.
        const auto step = [&](int partition, auto is_last) {
          constexpr bool kIsLast = decltype(is_last)::value;
          const int first_column = partition * kPartitionTokens;
          float(&tiles)[kScoreTiles][4] = as_tiles(s);
          if (first_column + kPartitionTokens - 1 > warp_position) {
#pragma unroll
            for (int i = 0; i < 32; ++i) {
              const int column = first_column + i / 4 * 8 + lane % 4 * 2 + i % 2;
              if (column > lane_position + i % 4 / 2 * 8) s[i] = -kInfinity;
            }
          }
          float reference[2] = {partition_reference(row_max<0>(tiles), scale_log2),
                                partition_reference(row_max<2>(tiles), scale_log2)};
          // A row that sees nothing of the partition: p = 0 and the state as it was.
          const bool is_blind[2] = {kIsLast && first_column > lane_position,
                                    kIsLast && first_column > lane_position + 8};
          if (is_blind[0]) reference[0] = 0.0f;
          if (is_blind[1]) reference[1] = 0.0f;
          const float sum[2] = {row_exp<0>(tiles, scale_log2, reference[0]),
                                row_exp<2>(tiles, scale_log2, reference[1])};
          uint32_t p[kBlocksPerPartition][4];
#pragma unroll
          for (int k = 0; k < kBlocksPerPartition; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
              p[k][i] = pack_pair<T>(s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
          }

          const int stage = slot % kStages;
          const uint32_t v_tile = v_tiles + stage * Config::kTileBytes;
          mbarrier_wait(v_full(stage), slot / kStages % 2);
          if constexpr (kIsLast && !kIsQuantized<C>) {
            // Beyond the context may lie anything, NaN too, and 0 * NaN is NaN.
            const int visible = context_len - first_column;
            if (visible < kPartitionTokens) {
              for (int i = visible * 8 + tid % 128; i < kPartitionTokens * 8; i += 128) {
#pragma unroll
                for (int half = 0; half < kHalves; ++half) {
                  store_shared_16(v_tile + half * Config::kHalfBytes + i * 16, uint4{});
                }
              }
              fence_proxy_async();
              sync_warpgroup(consumer);
            }
          }
          wgmma_fence();
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            const uint64_t b = wgmma_descriptor(v_tile + half * Config::kHalfBytes, 1024, 1024, 1);
#pragma unroll
            for (int k = 0; k < kBlocksPerPartition; ++k) {
              wgmma_registers<T>(acc[half], p[k], b + k * (16 * kHalfRowBytes / 16), k > 0);
            }
            wgmma_commit();
          }
          if constexpr (!kIsLast) {
            start_scores(slot + 1);
            wgmma_commit();
          }

          // The rest of the softmax is nothing that the tensor cores wait for.
          MergeFactors f[2];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float partition_l = quad_sum(sum[h]);
            f[h] = {1.0f, 0.0f};
            if (!is_blind[h]) {
              f[h] = merge_references(m[h], reference[h]);
              l[h] = merge(l[h], partition_l, f[h]);
            }
          }
          const bool needs_rescale =
              __any_sync(0xFFFFFFFFu, f[0].state != 1.0f || f[1].state != 1.0f);

          constexpr int kPending = kIsLast ? 0 : 1;  // the scores
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            if (half + 1 < kHalves) {
              wgmma_wait<kHalves - 1 + kPending>();
            } else {
              wgmma_wait<kPending>();
              if (lane == 0) mbarrier_arrive(v_empty(stage));
            }
            fence_registers(acc[half]);
            // Three forms of merge(): o * 1 is o, so most partitions need the FMA only.
            if (kIsLast) {
#pragma unroll
              for (int i = 0; i < 32; ++i) {
                const float merged = merge(o[half][i], acc[half][i], f[i % 4 / 2]);
                if (!is_blind[i % 4 / 2]) o[half][i] = merged;
              }
            } else if (needs_rescale) {
#pragma unroll
              for (int i = 0; i < 32; ++i) {
                o[half][i] = merge(o[half][i], acc[half][i], f[i % 4 / 2]);
              }
            } else {
#pragma unroll
              for (int i = 0; i < 32; ++i) {
                o[half][i] = __fmaf_rn(acc[half][i], f[i % 4 / 2].partition, o[half][i]);
              }
            }
          }
          if constexpr (!kIsLast) {
            wgmma_wait<0>();
            fence_registers(s);
            if (lane == 0) mbarrier_arrive(k_empty((slot + 1) % kStages));
            if (partition + 2 == my_partitions) release_queries();
          }
          ++slot;
        };
        for (int partition = 0; partition + 1 < my_partitions; ++partition) {
          step(partition, std::false_type{});
        }
        step(my_partitions - 1, std::true_type{});

#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = warp * 16 + h * 8 + lane / 4;
          if (row >= my_rows) continue;
          const float inverse = normalizer(l[h], v_scale);
          T* row_out = out + row * hidden + lane % 4 * 2;
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
              if (half * kHalfColumns + j * 8 >= head_dim) continue;
              *reinterpret_cast<uint32_t*>(row_out + half * kHalfColumns + j * 8) =
                  pack_pair<T>(__fmul_rn(o[half][j * 4 + 2 * h], inverse),
                               __fmul_rn(o[half][j * 4 + 2 * h + 1], inverse));
            }
          }
        }
      }
      // The other warpgroup may need more.
      for (int partition = my_partitions; partition < num_partitions; ++partition, ++slot) {
        const int stage = slot % kStages;
        mbarrier_wait(k_full(stage), slot / kStages % 2);
        if (lane == 0) mbarrier_arrive(k_empty(stage));
        mbarrier_wait(v_full(stage), slot / kStages % 2);
        if (lane == 0) mbarrier_arrive(v_empty(stage));
      }
    }
  }
}

/// Boxes of 16 tokens by 64 dimensions of a cache; columns beyond head_dim read as zero.
inline CUtensorMap make_cache_map(const KvCacheArgs& cache, const void* data) {
  const auto head_dim = static_cast<cuuint64_t>(cache.head_dim);
  const auto num_rows =
      static_cast<cuuint64_t>(cache.num_blocks * cache.num_heads * cache.block_size);
  return make_tensor_map(cache.dtype, data, {head_dim, num_rows}, {head_dim * 2},
                         {kHalfColumns, kCacheBlock}, CU_TENSOR_MAP_SWIZZLE_128B);
}

/// Boxes of kQueryTile tokens by 64 dimensions of one head; what is beyond head_dim or num_tokens
/// reads as zero.
inline CUtensorMap make_query_map(const AttentionArgs& args) {
  const auto head_dim = static_cast<cuuint64_t>(args.cache.head_dim);
  const auto num_heads = static_cast<cuuint64_t>(3 * args.cache.num_heads);
  return make_tensor_map(args.dtype, args.qkv,
                         {head_dim, num_heads, static_cast<cuuint64_t>(args.num_tokens)},
                         {head_dim * 2, head_dim * num_heads * 2}, {kHalfColumns, 1, kQueryTile},
                         CU_TENSOR_MAP_SWIZZLE_128B);
}

template <typename T, typename C, int kHeadDim>
void launch_wgmma_head_dim(const AttentionArgs& args, const int32_t* tiles, int64_t num_tiles,
                           const LaunchContext& context) {
  const int64_t num_items = num_tiles * args.cache.num_heads;
  const int64_t num_blocks = std::min<int64_t>(num_items, context.num_sms);
  CUtensorMap k_map{};
  CUtensorMap v_map{};
  if (!kIsQuantized<C>) {
    k_map = make_cache_map(args.cache, args.cache.k);
    v_map = make_cache_map(args.cache, args.cache.v);
  }
  launch(context, attention_prefill_wgmma_kernel<T, C, kHeadDim>,
         dim3(static_cast<unsigned>(num_blocks)), dim3(kWgmmaThreads),
         WgmmaConfig<kHeadDim>::kSharedBytes, make_query_map(args), k_map, v_map,
         prefill_params<T, C>(args, tiles, num_tiles));
}

template <typename T, typename C>
void launch_wgmma_dtype(const AttentionArgs& args, const int32_t* tiles, int64_t num_tiles,
                        const LaunchContext& context) {
  if (args.cache.head_dim <= 64) {
    launch_wgmma_head_dim<T, C, 64>(args, tiles, num_tiles, context);
  } else {
    launch_wgmma_head_dim<T, C, 128>(args, tiles, num_tiles, context);
  }
}

}  // namespace caravan::cuda
