#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "core/op_params.h"
#include "core/tensor.h"

namespace caravan {

/// Largest sizes of one step; a backend reserves all of its working memory for them at once.
struct WorkspaceSpec {
  int64_t max_num_tokens = 0;
  int64_t max_num_seqs = 0;
  int64_t max_num_logits = 0;
  int64_t max_in_features = 0;
  int64_t max_out_features = 0;
  int64_t max_context_len = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
};

// The arguments of every operator, checked by src/ops. T is num_tokens, all tokens of all sequences
// of the batch one after the other. A is Backend::activation_dtype() of the weights.

/// out[t] = wte[token_ids[t]] + wpe[positions[t]]. A negative id stands for the token that the step
/// before this one sampled: sampled[-1 - id] (devices that sample themselves).
struct EmbeddingOp {
  ConstTensor token_ids;  // [T] int32
  ConstTensor positions;  // [T] int32
  ConstTensor sampled;    // [num_rows of the last step] int32; data may be null
  LinearWeight wte;       // out_features = vocab_size, in_features = hidden_size
  ConstTensor wpe;        // [num_positions, hidden_size]
  Tensor out;             // [T, hidden_size] f32
};

/// x += delta + delta_bias where delta is given; y = LayerNorm(x) * weight + bias.
struct LayerNormOp {
  Tensor x;                           // [T, hidden_size] f32; written with delta
  ConstTensor delta;                  // [T, hidden_size] of A; data may be null
  const float* delta_bias = nullptr;  // [hidden_size] or null
  ConstTensor weight;                 // [hidden_size] f32
  ConstTensor bias;                   // [hidden_size] f32
  float epsilon = 1e-5f;
  Tensor y;  // [T, hidden_size] of A
};

/// y = activation(x W + bias).
struct LinearOp {
  ConstTensor x;  // [T, in_features] of A
  LinearWeight weight;
  Activation activation = Activation::kNone;
  Tensor y;  // [T, Backend::row_stride(out_features) or out_features] of A, or f32 (logits); not x
};

/// Which tokens belong to which sequence, and where their context lies.
struct AttentionBatch {
  ConstTensor query_start;   // [num_seqs + 1] int32
  ConstTensor context_lens;  // [num_seqs] int32
  ConstTensor block_tables;  // [num_seqs, max_blocks_per_seq] int32
  ConstTensor query_tiles;   // [num_tiles, 2] int32: sequence, first query of Backend::query_tile
                             // rows; empty when is_decode or when query_tile() is 0
  bool is_decode = false;    // every sequence has one query
  int64_t max_context_len = 0;  // upper bound of context_lens
};

/// Writes the K and V parts of qkv into the cache, then computes causal attention of every token of
/// the batch over its sequence's cached context. Prefill and decode rows mix freely; one row's
/// arithmetic depends on its own query and context only. The batch's arrays, and the K and V of
/// earlier tokens, were written before the first operator of the step.
struct AttentionOp {
  ConstTensor qkv;           // [T, 3 * num_heads * head_dim] of A: q, k, v
  ConstTensor slot_mapping;  // [T] int64; negative: not written (padding of a device's batch)
  AttentionBatch batch;
  KvLayer cache;
  float scale = 1.0f;  // applied to q k^T
  Tensor out;          // [T, num_heads * head_dim] of A
};

/// out[i] = x[rows[i]].
struct GatherRowsOp {
  ConstTensor x;     // [T, hidden_size]
  ConstTensor rows;  // [R] int32
  Tensor out;        // [R, hidden_size] of x's dtype
};

/// How a device chooses the token of one row; fields as in SamplingParams.
struct RowSampling {
  float temperature = 0.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float repetition_penalty = 1.0f;
  uint64_t seed = 0;
  uint64_t counter = 0;       // tokens of the sequence so far: the draw is uniform_random(seed, it)
  int32_t history_slot = -1;  // row of `seen`; -1: none, the row only fills the batch
  int32_t padding = 0;
};
static_assert(sizeof(RowSampling) == 40);

/// tokens[i] = the next token of row i. A row with a NaN, +infinity or nothing above -infinity has
/// none: tokens[i] is 0 and host_tokens[i] -1.
struct SampleOp {
  ConstTensor logits;  // [R, row_stride(vocab_size)] f32
  int64_t vocab_size = 0;
  const RowSampling* rows = nullptr;  // [R], memory the kernels read
  bool is_greedy = false;             // every row is a plain argmax
  uint32_t* seen = nullptr;           // [slots, ceil(vocab_size / 32)] bits, or null: no penalties
  Tensor tokens;                      // [R] int32
  int32_t* host_tokens = nullptr;     // [R], from allocate_host()
};

/// What a device can do at best, measured: figures mean something only as shares of these, taken in
/// the same run. 0: not measured, also for want of memory.
struct Ceilings {
  double read_gb_per_s = 0;            // device memory, read only
  double copy_gb_per_s = 0;            // device memory, read + written
  double matmul_tflops = 0;            // matrix products of the dtype asked for
  double host_to_device_gb_per_s = 0;  // 0: the kernels read the host's memory
  std::string note;                    // what matmul_tflops is
};

/// Copies bytes [offset, offset + num_bytes) of what is brought to a device: dst = src, and looks
/// at them on the way. Pieces begin at multiples of kCopyPiece and are as long, but for the last;
/// several threads copy at once. Must not throw.
inline constexpr size_t kCopyPiece = size_t{4} << 20;
using CopyPiece =
    std::function<void(size_t offset, const std::byte* src, std::byte* dst, size_t num_bytes)>;

/// One device. The model never asks which. Operators run in call order; their arguments were
/// checked by src/ops. Not thread safe: one engine owns one backend.
class Backend {
 public:
  virtual ~Backend() = default;

  /// "cpu (avx512, 2 threads)": for people.
  virtual std::string description() const = 0;

  /// The layout in which this backend's kernels read linear weights of `dtype`.
  virtual LinearLayout linear_layout(DType dtype) const = 0;
  /// True when the kernels read `layout` too, if not as fast.
  virtual bool reads_layout(LinearLayout layout, DType dtype) const {
    return layout == linear_layout(dtype);
  }
  /// The dtype A of what linear layers and attention read and write, for weights of `dtype`. The
  /// residual stream and the logits are float32 everywhere.
  virtual DType activation_dtype(DType dtype) const = 0;
  /// True when the kernels take a KV cache of `kv` with weights of `dtype`.
  virtual bool takes_kv_dtype(DType kv, DType dtype) const = 0;
  /// Tokens of one block of the paged KV cache.
  virtual int64_t kv_block_size() const = 0;
  /// Query rows of one tile of prefill attention; 0 when the kernels need no tiles.
  virtual int64_t query_tile() const = 0;
  /// Elements from one row of logits to the next.
  virtual int64_t row_stride(int64_t num_columns) const = 0;

  /// Zeroed device memory. Errors: kOutOfMemory.
  virtual Buffer allocate(size_t num_bytes) = 0;
  /// Host memory that the device copies from and writes to fast (pinned).
  virtual Buffer allocate_host(size_t num_bytes) = 0;
  /// Bytes that can still be allocated; nullopt: the host's memory.
  virtual std::optional<int64_t> available_bytes() const = 0;
  /// Bytes that the device has, used or not; nullopt: its memory is the host's.
  virtual std::optional<int64_t> total_bytes() const = 0;
  /// True when host memory, such as a mapped file, can be read by the kernels as it is.
  virtual bool reads_host_memory() const = 0;
  /// Copies of any size from and to any host memory; `src` may be reused on return. copy_piece, if
  /// given, brings each piece to the memory that the device copies from.
  virtual void copy_from_host(const void* src, void* dst, size_t num_bytes,
                              const CopyPiece& copy_piece = nullptr) = 0;
  virtual void copy_to_host(const void* src, void* dst, size_t num_bytes) = 0;
  /// Queues a copy from memory of allocate_host(), which must stay as it is until it is done. Can
  /// be part of a step that is recorded.
  virtual void copy_from_host_async(const void* src, void* dst, size_t num_bytes) = 0;
  virtual void synchronize() = 0;

  /// Packs W of [out, in] (kOutIn) or [in, out] (kInOut) host values of src_dtype into `dst`,
  /// memory of this backend, as linear_layout(dtype) of `dtype`. copy_piece: as copy_from_host();
  /// not called where reads_host_memory().
  virtual void pack_weight(const void* src, DType src_dtype, LinearLayout src_layout,
                           int64_t in_features, int64_t out_features, DType dtype, void* dst,
                           const CopyPiece& copy_piece = nullptr) = 0;
  /// data[i] = mean + scale * uniform in [-1, 1), a function of seed and i.
  virtual void fill_random(void* data, DType dtype, int64_t count, float mean, float scale,
                           uint64_t seed) = 0;

  /// Bytes that reserve_workspace(spec) will allocate.
  virtual size_t workspace_bytes(const WorkspaceSpec& spec) const = 0;
  virtual void reserve_workspace(const WorkspaceSpec& spec) = 0;

  virtual void embedding(const EmbeddingOp& op) = 0;
  virtual void layer_norm(const LayerNormOp& op) = 0;
  virtual void linear(const LinearOp& op) = 0;
  virtual void attention(const AttentionOp& op) = 0;
  virtual void gather_rows(const GatherRowsOp& op) = 0;

  /// True when sample() works: tokens are chosen on the device and may feed the next step before
  /// the host has seen them.
  virtual bool samples_on_device() const = 0;
  /// Errors: kUnsupported unless samples_on_device().
  virtual void sample(const SampleOp& op) = 0;
  /// Sets the bits of ids in row `slot` of SampleOp::seen, after clearing the row. ids: memory of
  /// allocate_host() that stays as it is until the next operators are done.
  virtual void mark_seen(uint32_t* seen, int64_t slot, int64_t vocab_size, const int32_t* ids,
                         int64_t count) = 0;

  /// Runs `step`, a sequence of operators whose arguments are the same for equal keys; a device may
  /// record it once and replay it.
  virtual void run_captured(uint64_t key, const std::function<void()>& step) = 0;
  /// A point in the queue; wait_for() returns when everything queued before it is done. At most
  /// eight may be open.
  virtual int64_t mark() = 0;
  virtual void wait_for(int64_t marker) = 0;

  /// Measures for a second, with memory that it gives back; two more for matmul_tflops of `matmul`.
  virtual Ceilings measure_ceilings(std::optional<DType> matmul) = 0;
};

}  // namespace caravan
