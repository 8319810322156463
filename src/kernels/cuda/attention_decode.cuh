#pragma once

#include <algorithm>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_partition.cuh"
#include "kernels/cuda/kv_element.cuh"

// One query a sequence. The partitions of a (sequence, head) are dealt out in turn to the blocks of
// a cluster; each block sends (m, l, o) of its partitions to the others, which merge them in
// order, every block a slice of head_dim. Without clusters (before Hopper) the results of the
// partitions go through the workspace to a second kernel. The merge is the same chain over
// partitions in both, so neither the size of the cluster nor the batch changes a bit.
//
// K and V are the A operand of the matrix instructions (tokens or dimensions as the 16 rows), the
// query the B operand, its eight columns all equal: half the instructions of a query as A. A
// quantized cache is copied to shared memory as it is and widened on the way to the registers:
// ldmatrix brings as many bytes, which are the fragments of twice as many matrix instructions.

namespace caravan::cuda {

inline constexpr int kDecodeThreads = 128;
inline constexpr int kDecodeWarps = kDecodeThreads / 32;
inline constexpr int kRoundSlots = 8;  // partitions a block computes before a merge
inline constexpr int kMaxRanks = 8;    // largest portable cluster

template <typename T, typename C>
struct DecodeParams {
  const T* qkv;
  T* out;
  PagedCache<C> cache;
  const int64_t* slot_mapping;
  bool is_context_settled;
  float scale_log2;
  float* partial_o;    // [num_seqs, num_heads, max_partitions, kHeadDim]: without clusters
  float2* partial_ml;  // [num_seqs, num_heads, max_partitions]
  int32_t max_partitions;
};

template <typename C, int kHeadDim>
struct DecodeConfig {
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(C));
  static constexpr int kTileBytes = kPartitionTokens * kRowBytes;  // of K or of V
  static constexpr int kStageBytes = 2 * kTileBytes;
  // 64 KiB and three blocks a multiprocessor. H100, % of the read ceiling with 32, 64 and 96 KiB:
  // batch 1 x 2,048 tokens 74, 79, 60; 8 x 512: 90, 83, 70; 8 x 1,500: 92, 95, 88.
  // Quantized, 32 KiB and, as the registers allow, four blocks (int8) or five (fp8), because half
  // the bytes leave half the time for each partition's chain of latencies. int8 with 32, 48 and
  // 64 KiB: batch 8 x 512 tokens 66, 53, 54; 8 x 1,500: 81, 72, 69; 32 x 512: 87, 84, 72;
  // 32 x 1,500: 89, 90, 84; 1 x 1,500: 44, 50, 51. Registers for five or six blocks do not pay:
  // camel-5b's step at 8 x 512 tokens 4.09, 4.06, 4.09 ms, 32 x 1,500 7.21, 7.45, 7.51.
  static constexpr int kStages = std::min(kIsQuantized<C> ? 2 : 4, 65536 / kStageBytes);
  // Of a round: o [partition][slice of head_dim], as many floats whatever the slice, and (m, l).
  static constexpr int kPartialFloats = kRoundSlots * kHeadDim;
  static constexpr int kPartialMl = kRoundSlots * kMaxRanks;
  static constexpr int kSharedBytes =
      kStages * kStageBytes + kPartialFloats * 4 + kPartialMl * 8 + kPartitionTokens * 4 + 8;
};

// The shared memory of the other blocks of the cluster.
#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t address_in_cluster(uint32_t shared, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}
/// The bytes are counted at `barrier` of the same block when they have arrived, so that a block
/// that has got what it expects may leave: no store is still on its way to it.
__device__ __forceinline__ void store_async(uint32_t address, float v, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(address),
      "f"(v), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void store_async(uint32_t address, float a, float b, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          address),
      "f"(a), "f"(b), "r"(barrier)
      : "memory");
}
#endif

/// The state of kPerThread output columns of one query.
template <int kPerThread>
struct MergeState {
  float m = -__builtin_huge_valf();
  float l = 0.0f;
  float o[kPerThread] = {};

  __device__ __forceinline__ void add(float partition_m, float partition_l,
                                      const float (&partition_o)[kPerThread]) {
    const MergeFactors f = merge_references(m, partition_m);
    l = merge(l, partition_l, f);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) o[i] = merge(o[i], partition_o[i], f);
  }
};

template <typename T, typename C, int kHeadDim, bool kHasClusters>
__global__ void __launch_bounds__(kDecodeThreads)
    attention_decode_kernel(const DecodeParams<T, C> params) {
#if __CUDA_ARCH__ < 900
  if (kHasClusters) return;  // never launched
#endif
  using Config = DecodeConfig<C, kHeadDim>;
  constexpr int kRowBytes = Config::kRowBytes;
  constexpr int kSteps = kHeadDim / 16;
  constexpr int kPerChunk = 16 / sizeof(C);  // elements
  constexpr int kChunks = kHeadDim / kPerChunk;
  constexpr int kStages = Config::kStages;
  constexpr int kRowTiles = kHeadDim / 16 / kDecodeWarps;  // of 16 output columns, a warp
  constexpr int kPerThread = (kHeadDim + kDecodeThreads - 1) / kDecodeThreads;
  extern __shared__ __align__(128) uint8_t shared[];
  float* partial_o = reinterpret_cast<float*>(shared + kStages * Config::kStageBytes);
  float2* partial_ml = reinterpret_cast<float2*>(partial_o + Config::kPartialFloats);
  float* scores = reinterpret_cast<float*>(partial_ml + Config::kPartialMl);
  [[maybe_unused]] const uint32_t round_barrier = shared_address(scores + kPartitionTokens);
  const int rank = static_cast<int>(blockIdx.x);
  const int num_ranks = static_cast<int>(gridDim.x);  // with clusters a power of two
  const int head_index = static_cast<int>(blockIdx.y);
  const int seq = static_cast<int>(blockIdx.z);
  const int tid = static_cast<int>(threadIdx.x);
  const int warp = tid / 32;
  const int lane = tid % 32;
#if __CUDA_ARCH__ >= 900
  if constexpr (kHasClusters) {
    if (tid == 0) {
      mbarrier_init(round_barrier, 1);
      fence_mbarrier_init();
    }
    cluster_arrive();
  }
#endif
  pdl_launch_dependents();
  if (!params.is_context_settled) pdl_wait();

  // Asked for first: in a step the weights have driven them out of L2.
  const float k_scale = params.cache.k_scale(head_index);
  const float v_scale = params.cache.v_scale(head_index);
  const PagedHead<C> head = params.cache.head(seq, head_index);
  // As far as the table goes: does not wait for context_lens.
  int32_t blocks[kBlocksPerPartition];
  load_table(blocks, head.table, rank,
             static_cast<int32_t>(params.cache.max_blocks_per_seq) * kCacheBlock);
  const int64_t hidden = static_cast<int64_t>(params.cache.num_heads) * head.head_dim;
  T* out = params.out + seq * hidden + head_index * head.head_dim;
  if (head.context_len <= 0) {
    if (params.is_context_settled) pdl_wait();
    if (rank == 0) {
      for (int i = tid; i < head.head_dim; i += kDecodeThreads) out[i] = from_float<T>(0.0f);
    }
#if __CUDA_ARCH__ >= 900
    if constexpr (kHasClusters) cluster_wait();
#endif
    return;
  }
  const int num_partitions = (head.context_len + kPartitionTokens - 1) / kPartitionTokens;
  const uint32_t stages = shared_address(shared);
  // Without the newest token, when its K and V are not in the cache yet: see owns_new_row.
  const bool excludes_newest = params.is_context_settled || params.slot_mapping != nullptr;
  PagedHead<C> settled = head;
  settled.context_len = head.context_len - (excludes_newest ? 1 : 0);
  // Two groups of copies a partition, empty ones at the end, so that their number is known.
  const auto load_stage = [&](int local) {
    const int partition = rank + local * num_ranks;
    const uint32_t stage = stages + local % kStages * Config::kStageBytes;
    if (partition < num_partitions) {
      load_partition<C, kHeadDim, kDecodeThreads>(stage, head.k, settled, blocks, partition);
    }
    cp_async_commit();
    if (partition < num_partitions) {
      load_partition<C, kHeadDim, kDecodeThreads>(stage + Config::kTileBytes, head.v, settled,
                                                  blocks, partition);
      load_table(blocks, head.table, partition + num_ranks, settled.context_len);
    }
    cp_async_commit();
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) load_stage(s);
  const int64_t new_slot = params.slot_mapping != nullptr ? params.slot_mapping[seq] : -1;
  if (params.is_context_settled) pdl_wait();

  const T* q_row = params.qkv + seq * 3 * hidden + head_index * head.head_dim;
  uint32_t q[kSteps][2];
#pragma unroll
  for (int i = 0; i < 2 * kSteps; ++i) {
    const int column = i * 8 + (lane & 3) * 2;
    q[i / 2][i % 2] =
        column < head.head_dim ? *reinterpret_cast<const uint32_t*>(q_row + column) : 0u;
  }
  // The newest token's K and V are written over the zeros of its row by the threads that wrote
  // these.
  const int new_row = (head.context_len - 1) % kPartitionTokens;
  const int new_column = tid % kChunks * kPerChunk;
  const bool owns_new_row = excludes_newest && (num_partitions - 1) % num_ranks == rank &&
                            tid / kChunks == new_row % (kDecodeThreads / kChunks) &&
                            new_column < head.head_dim;
  const uint32_t new_offset = swizzled<kRowBytes>(new_row, tid % kChunks);
  uint4 new_k{};
  uint4 new_v{};
  if (owns_new_row) {
    const auto in_cache = [&](int64_t block, int64_t offset) {
      return block * head.block_stride + offset * head.head_dim + new_column;
    };
    if (new_slot >= 0) {
      const T* k_source = q_row + hidden + new_column;
      const T* v_source = q_row + 2 * hidden + new_column;
      if constexpr (kIsQuantized<C>) {
        new_k = quantize_chunk<T, C, true>(k_source, __frcp_rn(k_scale));
        new_v = quantize_chunk<T, C, false>(v_source, __frcp_rn(v_scale));
      } else {
        new_k = *reinterpret_cast<const uint4*>(k_source);
        new_v = *reinterpret_cast<const uint4*>(v_source);
      }
      const int64_t index = in_cache(new_slot / kCacheBlock, new_slot % kCacheBlock);
      *reinterpret_cast<uint4*>(const_cast<C*>(head.k) + index) = new_k;
      *reinterpret_cast<uint4*>(const_cast<C*>(head.v) + index) = new_v;
    } else {
      const int64_t index = in_cache(head.table[(head.context_len - 1) / kCacheBlock],
                                     (head.context_len - 1) % kCacheBlock);
      new_k = *reinterpret_cast<const uint4*>(head.k + index);
      new_v = *reinterpret_cast<const uint4*>(head.v + index);
    }
  }
  // Lane's row and chunk in ldmatrix of k (as A) and v (as A, transposed).
  const uint32_t swizzle = row_swizzle<kRowBytes>(lane);
  const uint32_t k_row = (warp * 16 + (lane & 15)) * kRowBytes;
  const uint32_t k_chunk = (lane >> 4) ^ swizzle;
  const uint32_t v_row =
      (kIsQuantized<C> ? lane : (lane & 7) + (lane >> 4) * 8) * static_cast<uint32_t>(kRowBytes);
  const uint32_t v_chunk = kIsQuantized<C> ? swizzle : ((lane >> 3) & 1) ^ swizzle;
#if __CUDA_ARCH__ >= 900
  if constexpr (kHasClusters) cluster_wait();  // all blocks have started, their barriers are ready
#endif

  const float scale_log2 =
      kIsQuantized<C> ? __fmul_rn(params.scale_log2, k_scale) : params.scale_log2;
  MergeState<kPerThread> state;
  const int slice_shift = kHasClusters ? __ffs(kHeadDim / num_ranks) - 1 : 0;
  const int slice = 1 << slice_shift;
  int local = 0;
  int round = 0;
  for (int first = 0; first < num_partitions; first += num_ranks * kRoundSlots, ++round) {
    for (int slot = 0; slot < kRoundSlots; ++slot, ++local) {
      const int partition = rank + local * num_ranks;
      if (partition >= num_partitions) break;
      const uint32_t k_tile = stages + local % kStages * Config::kStageBytes;
      const uint32_t v_tile = k_tile + Config::kTileBytes;
      const bool has_new_row = owns_new_row && partition == num_partitions - 1;

      cp_async_wait<2 * kStages - 1>();
      if (has_new_row) store_shared_16(k_tile + new_offset, new_k);
      __syncthreads();
      float d[4] = {};
      if constexpr (kIsQuantized<C>) {
        // Rows 0-7 and 8-15 of one step, then of the next.
#pragma unroll
        for (int step = 0; step < kSteps; step += 2) {
          uint32_t w[4];
          ldmatrix_x4(w, k_tile + k_row + (step ^ k_chunk) * 16);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint32_t a[4] = {
                widen_bytes<T, C, 0, 1>(w[2 * i]), widen_bytes<T, C, 0, 1>(w[2 * i + 1]),
                widen_bytes<T, C, 2, 3>(w[2 * i]), widen_bytes<T, C, 2, 3>(w[2 * i + 1])};
            mma_m16n8k16<T>(d, a, q[step + i][0], q[step + i][1]);
          }
        }
      } else {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          uint32_t a[4];
          ldmatrix_x4(a, k_tile + k_row + ((2 * step) ^ k_chunk) * 16);
          mma_m16n8k16<T>(d, a, q[step][0], q[step][1]);
        }
      }
      if ((lane & 3) == 0) {
        scores[warp * 16 + (lane >> 2)] = d[0];
        scores[warp * 16 + (lane >> 2) + 8] = d[2];
      }
      cp_async_wait<2 * kStages - 2>();
      if (has_new_row) store_shared_16(v_tile + new_offset, new_v);
      __syncthreads();

      // Every quad of every warp finds m, l and p for itself.
      float s[kScoreTiles][2];
#pragma unroll
      for (int j = 0; j < kScoreTiles; ++j) {
        const int column = j * 8 + (lane & 3) * 2;
        const float2 pair = *reinterpret_cast<const float2*>(scores + column);
        const int visible = head.context_len - partition * kPartitionTokens;
        s[j][0] = column < visible ? pair.x : -__builtin_huge_valf();
        s[j][1] = column + 1 < visible ? pair.y : -__builtin_huge_valf();
      }
      const float m = partition_reference(row_max<0>(s), scale_log2);
      const float l = quad_sum(row_exp<0>(s, scale_log2, m));
      float o[kRowTiles][4] = {};
      uint32_t p[kBlocksPerPartition][2];
#pragma unroll
      for (int step = 0; step < kBlocksPerPartition; ++step) {
        p[step][0] = pack_pair<T>(s[2 * step][0], s[2 * step][1]);
        p[step][1] = pack_pair<T>(s[2 * step + 1][0], s[2 * step + 1][1]);
      }
      if constexpr (kIsQuantized<C>) {
        // Tokens 0-7 and 8-15 of one step, then of the next. A pair of bytes is two dimensions of
        // a token: rows g and g + 8 of a are dimensions 2 g and 2 g + 1.
#pragma unroll
        for (int step = 0; step < kBlocksPerPartition; step += 2) {
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) {
            uint32_t w[4];
            ldmatrix_x4_trans(w, v_tile + step * 16 * kRowBytes + v_row +
                                     ((warp * kRowTiles + r) ^ v_chunk) * 16);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const uint32_t a[4] = {
                  widen_bytes<T, C, 0, 2>(w[2 * i]), widen_bytes<T, C, 1, 3>(w[2 * i]),
                  widen_bytes<T, C, 0, 2>(w[2 * i + 1]), widen_bytes<T, C, 1, 3>(w[2 * i + 1])};
              mma_m16n8k16<T>(o[r], a, p[step + i][0], p[step + i][1]);
            }
          }
        }
      } else {
#pragma unroll
        for (int step = 0; step < kBlocksPerPartition; ++step) {
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) {
            uint32_t a[4];
            ldmatrix_x4_trans(a, v_tile + step * 16 * kRowBytes + v_row +
                                     (((warp * kRowTiles + r) * 2) ^ v_chunk) * 16);
            mma_m16n8k16<T>(o[r], a, p[step][0], p[step][1]);
          }
        }
      }
      // The values are those of the quad's first lane: of row tile i / 2 the rows g or g + 8.
      const auto column_of = [&](int i) {
        const int g = lane >> 2;
        return (warp * kRowTiles + i / 2) * 16 + (kIsQuantized<C> ? 2 * g + i % 2 : i % 2 * 8 + g);
      };
#if __CUDA_ARCH__ >= 900
      if constexpr (kHasClusters) {
        const int index = partition - first;
        if ((lane & 3) == 0) {
#pragma unroll
          for (int i = 0; i < 2 * kRowTiles; i += kIsQuantized<C> ? 2 : 1) {
            const int column = column_of(i);
            const int owner = column >> slice_shift;
            const uint32_t address = address_in_cluster(
                shared_address(partial_o + index * slice + (column & (slice - 1))), owner);
            const uint32_t barrier = address_in_cluster(round_barrier, owner);
            if constexpr (kIsQuantized<C>) {  // neighbours
              store_async(address, o[i / 2][0], o[i / 2][2], barrier);
            } else {
              store_async(address, o[i / 2][i % 2 * 2], barrier);
            }
          }
        }
        if (tid < num_ranks) {
          store_async(address_in_cluster(shared_address(partial_ml + index), tid), m, l,
                      address_in_cluster(round_barrier, tid));
        }
      }
#endif
      if constexpr (!kHasClusters) {
        const int64_t index = (static_cast<int64_t>(seq) * params.cache.num_heads + head_index) *
                                  params.max_partitions +
                              partition;
        if ((lane & 3) == 0) {
#pragma unroll
          for (int i = 0; i < 2 * kRowTiles; ++i) {
            params.partial_o[index * kHeadDim + column_of(i)] = o[i / 2][i % 2 * 2];
          }
        }
        if (tid == 0) params.partial_ml[index] = make_float2(m, l);
      }
      __syncthreads();
      load_stage(local + kStages);
    }

#if __CUDA_ARCH__ >= 900
    if constexpr (kHasClusters) {
      const int count = min(num_ranks * kRoundSlots, num_partitions - first);
      if (tid == 0) mbarrier_arrive_expect(round_barrier, count * (slice * 4 + 8));
      mbarrier_wait_cluster(round_barrier, round % 2);
      if (tid < slice) {
#pragma unroll 4
        for (int index = 0; index < count; ++index) {
          float o[kPerThread];
#pragma unroll
          for (int k = 0; k < kPerThread; ++k) {
            const int in_slice = k * kDecodeThreads + tid;
            o[k] = in_slice < slice ? partial_o[index * slice + in_slice] : 0.0f;
          }
          state.add(partial_ml[index].x, partial_ml[index].y, o);
        }
      }
      // Nobody may send the next round's partitions before these are read.
      if (first + num_ranks * kRoundSlots < num_partitions) cluster_sync();
    }
#endif
  }

  if constexpr (kHasClusters) {
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const int in_slice = k * kDecodeThreads + tid;
      const int column = rank * slice + in_slice;
      if (in_slice < slice && column < head.head_dim) {
        out[column] = from_float<T>(__fmul_rn(state.o[k], normalizer(state.l, v_scale)));
      }
    }
  }
}

/// Merges the partitions of the workspace. Block (head, sequence).
template <typename T, typename C, int kHeadDim>
__global__ void __launch_bounds__(kHeadDim)
    attention_merge_kernel(const DecodeParams<T, C> params) {
  pdl_launch_dependents();
  pdl_wait();
  const int head_index = static_cast<int>(blockIdx.x);
  const int seq = static_cast<int>(blockIdx.y);
  const int column = static_cast<int>(threadIdx.x);
  const int head_dim = params.cache.head_dim;
  const int context_len = params.cache.context_lens[seq];
  if (context_len <= 0 || column >= head_dim) return;
  const int num_partitions = (context_len + kPartitionTokens - 1) / kPartitionTokens;
  const int64_t row = static_cast<int64_t>(seq) * params.cache.num_heads + head_index;
  const float* o = params.partial_o + row * params.max_partitions * kHeadDim + column;
  const float2* ml = params.partial_ml + row * params.max_partitions;
  MergeState<1> state;
#pragma unroll 4
  for (int i = 0; i < num_partitions; ++i) {
    const float2 pair = ml[i];
    state.add(pair.x, pair.y, {o[static_cast<int64_t>(i) * kHeadDim]});
  }
  const float inverse = normalizer(state.l, params.cache.v_scale(head_index));
  params.out[row * head_dim + column] = from_float<T>(__fmul_rn(state.o[0], inverse));
}

inline int64_t num_partitions_of(int64_t context_len) {
  return (context_len + kAttentionPartition - 1) / kAttentionPartition;
}
inline int64_t padded_head_dim(int64_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

/// Blocks that share one (sequence, head): as many as a cluster may have while that leaves
/// multiprocessors idle, else 2. H100, 32 heads, % of the read ceiling with 2, 4 and 8 blocks:
/// batch 1 x 2,048 tokens 42, 60, 70; 8 x 1,500: 86, 91, 89; 32 x 512: 94, 91, 82.
inline int choose_num_ranks(int64_t num_rows, int64_t num_partitions, int num_sms) {
  int ranks = std::min<int>(2, static_cast<int>(num_partitions));
  while (ranks < kMaxRanks && ranks < num_partitions && num_rows * ranks < 6 * num_sms) ranks *= 2;
  return ranks;
}

/// As launch(), with `num_ranks` blocks along x in a cluster.
template <typename Params>
void launch_clusters(const LaunchContext& context, void (*kernel)(Params), dim3 grid, dim3 block,
                     size_t shared_bytes, unsigned num_ranks, const Params& params) {
  CARAVAN_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared_bytes)));
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = num_ranks;
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  config.attrs = attributes;
  config.numAttrs = context.use_pdl ? 2 : 1;
  CARAVAN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, params));
}

template <typename T, typename C, int kHeadDim>
void launch_decode(const AttentionArgs& args, const LaunchContext& context) {
  const unsigned num_seqs = static_cast<unsigned>(args.num_seqs);
  const unsigned num_heads = static_cast<unsigned>(args.cache.num_heads);
  const int64_t max_partitions = std::max<int64_t>(1, num_partitions_of(args.max_context_len));
  DecodeParams<T, C> params{};
  params.qkv = static_cast<const T*>(args.qkv);
  params.out = static_cast<T*>(args.out);
  params.cache = paged_cache<C>(args);
  params.slot_mapping = args.slot_mapping;
  params.is_context_settled = args.is_context_settled;
  params.scale_log2 = args.scale * kLog2E;
  params.max_partitions = static_cast<int32_t>(max_partitions);
  constexpr size_t kShared = DecodeConfig<C, kHeadDim>::kSharedBytes;

  // The device's code may come from PTX of an older architecture, which has no clusters.
  const auto clustered = attention_decode_kernel<T, C, kHeadDim, true>;
  static const int ptx_version = [&] {
    cudaFuncAttributes attributes{};
    CARAVAN_CUDA_CHECK(
        cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(clustered)));
    return attributes.ptxVersion;
  }();
  if (context.compute_capability >= 90 && ptx_version >= 90) {
    const int ranks =
        choose_num_ranks(args.num_seqs * args.cache.num_heads, max_partitions, context.num_sms);
    launch_clusters(context, clustered, dim3(static_cast<unsigned>(ranks), num_heads, num_seqs),
                    dim3(kDecodeThreads), kShared, static_cast<unsigned>(ranks), params);
    return;
  }
  const int64_t num_rows = args.num_seqs * args.cache.num_heads;
  params.partial_o = static_cast<float*>(args.workspace);
  params.partial_ml =
      reinterpret_cast<float2*>(params.partial_o + num_rows * max_partitions * kHeadDim);
  launch(context, attention_decode_kernel<T, C, kHeadDim, false>,
         dim3(static_cast<unsigned>(max_partitions), num_heads, num_seqs), dim3(kDecodeThreads),
         kShared, params);
  launch(context, attention_merge_kernel<T, C, kHeadDim>, dim3(num_heads, num_seqs), dim3(kHeadDim),
         0, params);
}

template <typename T, typename C>
void launch_decode_dtype(const AttentionArgs& args, const LaunchContext& context) {
  switch (padded_head_dim(args.cache.head_dim)) {
    case 64:
      return launch_decode<T, C, 64>(args, context);
    case 128:
      return launch_decode<T, C, 128>(args, context);
    default:
      return launch_decode<T, C, 256>(args, context);
  }
}

}  // namespace caravan::cuda
