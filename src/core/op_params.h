#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/dtype.h"
#include "core/linear_layout.h"

namespace caravan {

// The arguments of every operator: plain pointers and sizes, shared by the backends and their
// kernels. src/ops checks them before a backend sees them. Rows of x and y are contiguous; T is
// num_tokens, all tokens of all sequences of the batch one after the other.

/// Element-wise functions, named as in GPT2Config.activation_function (transformers ACT2FN).
enum class Activation : uint8_t {
  kNone,
  kGelu,       // "gelu": x/2 (1 + erf(x / sqrt 2)), exact
  kGeluTanh,   // "gelu_new", "gelu_pytorch_tanh", "gelu_fast": tanh approximation
  kQuickGelu,  // "quick_gelu": x sigmoid(1.702 x)
  kRelu,
  kSilu,  // "silu", "swish"
  kTanh,
};
const char* activation_name(Activation activation);
std::optional<Activation> parse_activation(std::string_view name);

/// A linear layer's weight as the kernels read it. Does not own.
struct LinearWeight {
  const void* data = nullptr;  // [linear_num_elements(layout, in_features, out_features)]
  DType dtype = DType::kF32;   // kF32, kF16 or kBF16
  LinearLayout layout = LinearLayout::kInOut;
  int64_t in_features = 0;
  int64_t out_features = 0;
  const float* bias = nullptr;  // [out_features] or null
};

/// out[t] = wte[token_ids[t]] + wpe[positions[t]], in float32.
struct EmbeddingParams {
  int64_t num_tokens = 0;
  const int32_t* token_ids = nullptr;  // [T], each in [0, wte.out_features)
  const int32_t* positions = nullptr;  // [T], each in [0, num_positions)
  LinearWeight wte;                    // out_features = vocab_size, in_features = hidden_size
  const void* wpe = nullptr;           // [num_positions, hidden_size] row-major, of wpe_dtype
  DType wpe_dtype = DType::kF32;
  int64_t num_positions = 0;
  float* out = nullptr;  // [T, hidden_size]
};

/// y = (x - mean) / sqrt(variance + epsilon) * weight + bias, row by row; two-pass variance.
struct LayerNormParams {
  int64_t num_tokens = 0;
  int64_t hidden_size = 0;
  const float* x = nullptr;       // [T, hidden_size]
  const float* weight = nullptr;  // [hidden_size]
  const float* bias = nullptr;    // [hidden_size]
  float epsilon = 1e-5f;
  float* y = nullptr;  // [T, hidden_size]; may be x
};

/// y = activation(x W + bias) + residual.
struct LinearParams {
  int64_t num_tokens = 0;
  const float* x = nullptr;  // [T, in_features]
  LinearWeight weight;
  Activation activation = Activation::kNone;
  const float* residual = nullptr;  // [T, out_features] or null; may be y
  float* y = nullptr;               // [T, out_features]; not x
};

/// One layer of the paged KV cache. Slot s is token s % block_size of block s / block_size.
/// K of a block is [num_heads][head_dim][block_size] (transposed, so that scores run along tokens),
/// V is [num_heads][block_size][head_dim].
/// kI8 and kF8E4M3 elements stand for element * scale of their head, and are written as
/// x * (1 / scale), rounded to nearest even and clamped to +-127 or +-448.
/// Requires: block_size % 16 == 0 for the fast kernels.
struct KvLayer {
  void* k = nullptr;  // [num_blocks, num_heads, head_dim, block_size]
  void* v = nullptr;  // [num_blocks, num_heads, block_size, head_dim]
  DType dtype = DType::kF32;
  const float* k_scale = nullptr;  // [num_heads], where the kernels read; null for other dtypes
  const float* v_scale = nullptr;
  int64_t num_blocks = 0;
  int64_t block_size = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
};

/// True for the KV cache dtypes that need scales.
constexpr bool is_quantized_kv(DType dtype) {
  return dtype == DType::kI8 || dtype == DType::kF8E4M3;
}

/// Writes the K and V parts of qkv into the cache.
struct AppendKvParams {
  int64_t num_tokens = 0;
  const float* qkv = nullptr;             // [T, 3 * num_heads * head_dim]: q, k, v
  const int64_t* slot_mapping = nullptr;  // [T], each in [0, num_blocks * block_size)
  KvLayer cache;
};

/// Causal attention of every token of the batch over its sequence's cached context (its own K and V
/// appended before). Prefill and decode rows mix freely; one row's arithmetic depends on its own
/// query and context only.
struct AttentionParams {
  int64_t num_tokens = 0;
  int64_t num_seqs = 0;
  const float* qkv = nullptr;             // [T, 3 * num_heads * head_dim]: only q is read
  const int32_t* query_start = nullptr;   // [num_seqs + 1]: tokens of sequence s
  const int32_t* context_lens = nullptr;  // [num_seqs]: tokens in the cache, this step's included
  const int32_t* block_tables = nullptr;  // [num_seqs, max_blocks_per_seq]
  int64_t max_blocks_per_seq = 0;
  KvLayer cache;
  float scale = 1.0f;    // applied to q k^T
  float* out = nullptr;  // [T, num_heads * head_dim]
};

/// out[i] = x[rows[i]].
struct GatherRowsParams {
  int64_t num_rows = 0;
  int64_t hidden_size = 0;
  const int32_t* rows = nullptr;  // [num_rows]
  const float* x = nullptr;       // [T, hidden_size]
  float* out = nullptr;           // [num_rows, hidden_size]
};

}  // namespace caravan
