#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "kernels/cuda/launch.h"

namespace caravan::cuda {

/// One layer of the paged KV cache. Token i of a sequence lies in block block_table[i / block_size]
/// at offset i % block_size.
struct KvCacheArgs {
  void* k = nullptr;          // [num_blocks, num_heads, block_size, head_dim]
  void* v = nullptr;          // [num_blocks, num_heads, block_size, head_dim]
  DType dtype = DType::kF16;  // that of qkv, or kI8 or kF8E4M3
  int64_t num_blocks = 0;
  int64_t block_size = 0;  // 16
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  // [num_heads] each, where dtype is kI8 or kF8E4M3: what the elements of a head are multiplied
  // with. K of these is interleaved where head_dim % 16 == 0 (kv_element.cuh).
  const float* k_scale = nullptr;
  const float* v_scale = nullptr;
};
/// Throws kInvalidArgument when a quantized cache comes without scales.
void check_kv_scales(const KvCacheArgs& cache, const char* op);

/// Writes the K and V parts of qkv into the cache, as x * (1 / scale) rounded to nearest even and
/// clamped to +-127 (NaN to -127) or +-448 where that is quantized. A negative slot is skipped
/// (padding rows).
struct AppendKvArgs {
  int64_t num_tokens = 0;
  const void* qkv = nullptr;              // [num_tokens, 3 * num_heads * head_dim] of dtype
  DType dtype = DType::kF16;              // kF16, kBF16 or kF32
  const int64_t* slot_mapping = nullptr;  // [num_tokens]: block * block_size + offset
  KvCacheArgs cache;
};
void launch_append_kv(const AppendKvArgs& args, const LaunchContext& context);

/// Tokens of one partition of the context. Each is computed from a fresh softmax state, the
/// partitions are merged in order: the same arithmetic for a query in decode, in prefill, in any
/// chunk of a prefill and in any batch.
inline constexpr int64_t kAttentionPartition = 64;

/// Causal attention of all tokens of a batch. A sequence with one query token is decoding, others
/// are prefill chunks; the query tokens of sequence s are rows [query_start[s], query_start[s + 1])
/// and the last tokens of its context.
struct AttentionArgs {
  int64_t num_tokens = 0;                 // rows of qkv and out
  int64_t num_seqs = 0;                   // padding sequences have context_lens 0: out is zeroed
  const void* qkv = nullptr;              // [num_tokens, 3 * num_heads * head_dim]: q is read
  DType dtype = DType::kF16;              // of qkv and out: kF16, kBF16 or kF32
  const int32_t* query_start = nullptr;   // [num_seqs + 1]
  const int32_t* context_lens = nullptr;  // [num_seqs], tokens of this step included
  const int32_t* block_tables = nullptr;  // [num_seqs, max_blocks_per_seq]
  int64_t max_blocks_per_seq = 0;         // row stride of block_tables
  int64_t max_context_len = 0;            // upper bound of context_lens: sizes the decode grid
  KvCacheArgs cache;
  float scale = 1.0f;         // applied to q k^T in float32
  void* out = nullptr;        // [num_tokens, num_heads * head_dim]
  void* workspace = nullptr;  // attention_workspace_bytes(...); no initial contents
  // Decode only. [num_seqs] or null: K and V of each row are also written to the cache, so that
  // launch_append_kv is not needed; they are read from qkv. A negative slot is skipped.
  const int64_t* slot_mapping = nullptr;
  // The promise that query_start, context_lens, block_tables, slot_mapping, tiles and (decode) the
  // K and V of all tokens but each sequence's newest were written before the first kernel of this
  // step, as copies and earlier steps do: they are then read before pdl_wait(), while the kernel
  // before this one ends.
  bool is_context_settled = false;
};

/// All sequences have exactly one query token: sequence s is row s. Splits the context.
void launch_attention_decode(const AttentionArgs& args, const LaunchContext& context);
size_t attention_workspace_bytes(int64_t max_num_seqs, int64_t num_heads, int64_t head_dim,
                                 int64_t max_context_len);

/// Tiles of kQueryTile query rows; sequences of any number of query tokens, one included. tiles:
/// device array [num_tiles][2] of (sequence, first query token of the tile in its sequence). Work
/// starts with the last tile; sequence by sequence with ascending queries, the tiles of a sequence
/// share its K and V in L2.
inline constexpr int64_t kQueryTile = 128;
void launch_attention_prefill(const AttentionArgs& args, const int32_t* tiles, int64_t num_tiles,
                              const LaunchContext& context);

/// Any head_dim and dtypes, any mix of sequences: one warp a query and head, scores in float64.
/// Slow; for float32 and for head_dim that the others do not take.
void launch_attention_simple(const AttentionArgs& args, const LaunchContext& context);

/// True when launch_attention_decode and launch_attention_prefill take qkv of `dtype` with such a
/// cache: 16 bits both, head_dim % 8 == 0 and <= 256; or 16 bits with a quantized cache, head_dim
/// % 16 == 0 and <= 256.
bool has_fast_attention(DType dtype, DType cache, int64_t head_dim);

}  // namespace caravan::cuda
