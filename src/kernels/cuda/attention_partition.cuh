#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv_element.cuh"
#include "kernels/cuda/ptx.cuh"

// The arithmetic of one partition of the context, the same in decode and in prefill:
//   s = q k^T          tensor cores, head_dim in order in steps of 16, float32
//   m = ceil(scale * max s)   a whole number, so that rescaling is by exact powers of two and the
//                      running reference seldom changes: then o needs no multiplication
//   p = 2^(scale * s - m)     one FMA, one ex2; scale contains log2(e)
//   l = sum p          per lane of a quad over its 16 columns in order, then lanes 1 and 2 apart
//   o = round16(p) v   tensor cores, tokens in order in steps of 16, from zero
// and of the merge of partition (m', l', o') into the state (m, l, o), partitions in order:
//   M = max(m, m'), o = fma(o', 2^(m' - M), o 2^(m - M)), l likewise.
// A quantized cache: k and v are its elements, widened to the type of q; scale is multiplied with
// the scale of the head's K once, and the output with 1 / l times the scale of its V.

namespace caravan::cuda {

inline constexpr int kPartitionTokens = static_cast<int>(kAttentionPartition);
inline constexpr int kCacheBlock = 16;  // tokens of a cache block
inline constexpr int kBlocksPerPartition = kPartitionTokens / kCacheBlock;
inline constexpr int kScoreTiles = kPartitionTokens / 8;  // tiles of 8 tokens

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Maximum of a row whose columns 8 j + 2 t, 8 j + 2 t + 1 are s[j][kFirst], s[j][kFirst + 1] of
/// lane t of a quad.
template <int kFirst, int kWidth>
__device__ __forceinline__ float row_max(const float (&s)[kScoreTiles][kWidth]) {
  float m = fmaxf(s[0][kFirst], s[0][kFirst + 1]);
#pragma unroll
  for (int j = 1; j < kScoreTiles; ++j) m = fmaxf(m, fmaxf(s[j][kFirst], s[j][kFirst + 1]));
  m = fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, 1));
  return fmaxf(m, __shfl_xor_sync(0xFFFFFFFFu, m, 2));
}

__device__ __forceinline__ float partition_reference(float max, float scale_log2) {
  return ceilf(__fmul_rn(max, scale_log2));
}

/// s becomes p; returns the lane's share of l.
template <int kFirst, int kWidth>
__device__ __forceinline__ float row_exp(float (&s)[kScoreTiles][kWidth], float scale_log2,
                                         float reference) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kScoreTiles; ++j) {
    s[j][kFirst] = exp2_approx(__fmaf_rn(s[j][kFirst], scale_log2, -reference));
    s[j][kFirst + 1] = exp2_approx(__fmaf_rn(s[j][kFirst + 1], scale_log2, -reference));
    sum = __fadd_rn(sum, s[j][kFirst]);
    sum = __fadd_rn(sum, s[j][kFirst + 1]);
  }
  return sum;
}
/// l of the four lanes' shares.
__device__ __forceinline__ float quad_sum(float sum) {
  sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 1));
  return __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 2));
}

/// What the state and the partition are multiplied with; m becomes the merged reference.
struct MergeFactors {
  float state;
  float partition;
};
__device__ __forceinline__ MergeFactors merge_references(float& m, float partition_m) {
  const float merged = fmaxf(m, partition_m);
  const MergeFactors f{exp2_approx(__fsub_rn(m, merged)),
                       exp2_approx(__fsub_rn(partition_m, merged))};
  m = merged;
  return f;
}
__device__ __forceinline__ float merge(float state, float partition, const MergeFactors& f) {
  return __fmaf_rn(partition, f.partition, __fmul_rn(state, f.state));
}
/// out = o * (1 / l), times the scale of a quantized V.
__device__ __forceinline__ float normalizer(float l, float v_scale) {
  return __fmul_rn(__frcp_rn(l), v_scale);
}

/// What the 16-byte chunks of a row of kRowBytes are exchanged by, in a tile of such rows: the
/// chunks of eight rows lie in different banks, for ldmatrix along rows and along columns.
template <int kRowBytes>
__device__ __forceinline__ int row_swizzle(int row) {
  static_assert(kRowBytes >= 64);
  return kRowBytes == 64 ? row >> 1 & 3 : row & 7;
}
/// Byte offset of 16-byte chunk `chunk` of row `row`.
template <int kRowBytes>
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * kRowBytes + ((chunk ^ row_swizzle<kRowBytes>(row)) << 4));
}

/// One head of one sequence in the paged cache of elements C.
template <typename C>
struct PagedHead {
  const C* k;  // of block 0
  const C* v;
  int64_t block_stride;  // elements from one block to the next
  const int32_t* table;  // the sequence's row of block_tables
  int32_t context_len;
  int32_t head_dim;
};

/// The blocks of a partition, read ahead of the loads that need them.
__device__ __forceinline__ void load_table(int32_t (&blocks)[kBlocksPerPartition],
                                           const int32_t* table, int partition,
                                           int32_t context_len) {
#pragma unroll
  for (int b = 0; b < kBlocksPerPartition; ++b) {
    const int index = partition * kBlocksPerPartition + b;
    blocks[b] = index * kCacheBlock < context_len ? table[index] : 0;
  }
}

/// Copies K (or V) of a partition to shared memory; rows beyond the context and columns beyond
/// head_dim become zero, whatever the cache holds there.
template <typename C, int kHeadDim, int kThreads>
__device__ __forceinline__ void load_partition(uint32_t tile, const C* cache,
                                               const PagedHead<C>& head,
                                               const int32_t (&blocks)[kBlocksPerPartition],
                                               int partition) {
  constexpr int kPerChunk = 16 / sizeof(C);
  constexpr int kChunks = kHeadDim / kPerChunk;
  constexpr int kRowsAtOnce = kThreads / kChunks;
  static_assert(kRowsAtOnce <= 32 && kPartitionTokens % kRowsAtOnce == 0);
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const int first_row = static_cast<int>(threadIdx.x) / kChunks;
  const int visible =
      chunk * kPerChunk < head.head_dim ? head.context_len - partition * kPartitionTokens : 0;
#pragma unroll
  for (int i = 0; i < kPartitionTokens / kRowsAtOnce; ++i) {
    const int row = i * kRowsAtOnce + first_row;
    const bool is_valid = row < visible;
    int32_t block = blocks[i * kRowsAtOnce / kCacheBlock];
    if (kRowsAtOnce > kCacheBlock && first_row >= kCacheBlock) {
      block = blocks[(i * kRowsAtOnce + kRowsAtOnce - 1) / kCacheBlock];
    }
    // Unsigned, so that the rest is bits alone and the same for all i where it can be.
    const int in_block = static_cast<unsigned>(row) % kCacheBlock * head.head_dim;
    const C* source = cache + block * head.block_stride + (in_block + chunk * kPerChunk);
    cp_async_16(tile + swizzled<kHeadDim * sizeof(C)>(row, chunk), is_valid ? source : cache,
                is_valid ? 16 : 0);
  }
}

/// The cache as the fast kernels see it.
template <typename C>
struct PagedCache {
  const C* k = nullptr;
  const C* v = nullptr;
  const int32_t* block_tables = nullptr;
  int64_t max_blocks_per_seq = 0;
  const int32_t* context_lens = nullptr;
  int32_t num_heads = 0;
  int32_t head_dim = 0;
  const float* k_scales = nullptr;  // [num_heads], of a quantized cache
  const float* v_scales = nullptr;

  __device__ __forceinline__ PagedHead<C> head(int seq, int head_index) const {
    const int64_t offset = static_cast<int64_t>(head_index) * kCacheBlock * head_dim;
    return {k + offset,
            v + offset,
            static_cast<int64_t>(num_heads) * kCacheBlock * head_dim,
            block_tables + seq * max_blocks_per_seq,
            context_lens[seq],
            head_dim};
  }
  __device__ __forceinline__ float score_scale(float scale_log2, int head_index) const {
    if constexpr (kIsQuantized<C>) return __fmul_rn(scale_log2, k_scales[head_index]);
    return scale_log2;
  }
  __device__ __forceinline__ float k_scale(int head_index) const {
    if constexpr (kIsQuantized<C>) return k_scales[head_index];
    return 1.0f;
  }
  __device__ __forceinline__ float v_scale(int head_index) const {
    if constexpr (kIsQuantized<C>) return v_scales[head_index];
    return 1.0f;
  }
};

template <typename C>
PagedCache<C> paged_cache(const AttentionArgs& args) {
  return {static_cast<const C*>(args.cache.k),
          static_cast<const C*>(args.cache.v),
          args.block_tables,
          args.max_blocks_per_seq,
          args.context_lens,
          static_cast<int32_t>(args.cache.num_heads),
          static_cast<int32_t>(args.cache.head_dim),
          args.cache.k_scale,
          args.cache.v_scale};
}

inline constexpr float kLog2E = 1.44269504088896340736f;

template <typename T, typename C>
struct PrefillParams {
  const T* qkv = nullptr;
  T* out = nullptr;
  const int32_t* query_start = nullptr;
  const int32_t* tiles = nullptr;
  int64_t num_tiles = 0;
  PagedCache<C> cache;
  float scale_log2 = 0.0f;
  bool is_context_settled = false;
};

template <typename T, typename C>
PrefillParams<T, C> prefill_params(const AttentionArgs& args, const int32_t* tiles,
                                   int64_t num_tiles) {
  return {static_cast<const T*>(args.qkv),
          static_cast<T*>(args.out),
          args.query_start,
          tiles,
          num_tiles,
          paged_cache<C>(args),
          args.scale * kLog2E,
          args.is_context_settled};
}

/// Throws unless the fast kernels take these arguments.
void check_fast_attention(const AttentionArgs& args);

/// The fast kernels with a cache of elements C, in files of their own.
template <typename C>
void launch_decode_quantized(const AttentionArgs& args, const LaunchContext& context);
template <typename C>
void launch_prefill_quantized(const AttentionArgs& args, const int32_t* tiles, int64_t num_tiles,
                              const LaunchContext& context);

/// launch_attention_prefill on Hopper, head_dim <= 128.
void launch_attention_prefill_wgmma(const AttentionArgs& args, const int32_t* tiles,
                                    int64_t num_tiles, const LaunchContext& context);
template <typename C>
void launch_prefill_wgmma_quantized(const AttentionArgs& args, const int32_t* tiles,
                                    int64_t num_tiles, const LaunchContext& context);

}  // namespace caravan::cuda
