#include "ops/ops.h"

#include <algorithm>

#include "core/error.h"

namespace caravan::ops {

namespace {

void check(const char* op, const char* operand, const ConstTensor& t, DType dtype,
           const Shape& shape) {
  CARAVAN_CHECK(t.dtype == dtype, "{}: {} is {}, expected {}", op, operand, dtype_name(t.dtype),
                dtype_name(dtype));
  CARAVAN_CHECK(t.shape == shape, "{}: {} has shape {}, expected {}", op, operand,
                t.shape.to_string(), shape.to_string());
  CARAVAN_CHECK(t.data != nullptr || shape.num_elements() == 0, "{}: {} is null", op, operand);
}

int64_t check_rows(const char* op, const char* operand, const ConstTensor& t) {
  CARAVAN_CHECK(t.shape.rank() == 2, "{}: {} has shape {}, expected two dimensions", op, operand,
                t.shape.to_string());
  return t.shape[0];
}

bool is_weight_dtype(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

void check_weight(const char* op, const LinearWeight& w) {
  CARAVAN_CHECK(w.data != nullptr, "{}: weight is null", op);
  CARAVAN_CHECK(is_weight_dtype(w.dtype), "{}: weight is {}, expected float32, float16 or bfloat16",
                op, dtype_name(w.dtype));
  CARAVAN_CHECK(w.in_features > 0 && w.out_features > 0, "{}: weight is {} x {}", op, w.in_features,
                w.out_features);
}

void check_cache(const char* op, const KvLayer& c) {
  CARAVAN_CHECK(c.k != nullptr && c.v != nullptr, "{}: the cache is null", op);
  CARAVAN_CHECK(c.num_blocks > 0 && c.block_size > 0 && c.num_heads > 0 && c.head_dim > 0,
                "{}: the cache has {} blocks of {} tokens, {} heads of {}", op, c.num_blocks,
                c.block_size, c.num_heads, c.head_dim);
  CARAVAN_CHECK(is_weight_dtype(c.dtype) || is_quantized_kv(c.dtype),
                "{}: the cache is {}, expected float32, float16, bfloat16, int8 or float8_e4m3fn",
                op, dtype_name(c.dtype));
  CARAVAN_CHECK(is_quantized_kv(c.dtype) == (c.k_scale != nullptr && c.v_scale != nullptr),
                "{}: a {} cache {} scales of K and V", op, dtype_name(c.dtype),
                is_quantized_kv(c.dtype) ? "needs" : "has no");
}

// Float32, or the 16-bit activations of a device.
void check_activation(const char* op, const char* operand, const ConstTensor& t,
                      const Backend& backend) {
  CARAVAN_CHECK(is_weight_dtype(t.dtype) && backend.activation_dtype(t.dtype) == t.dtype,
                "{}: {} is {}, which this backend does not compute with", op, operand,
                dtype_name(t.dtype));
}

}  // namespace

void embedding(Backend& backend, const EmbeddingOp& op) {
  constexpr const char* kOp = "embedding";
  check_weight(kOp, op.wte);
  const int64_t num_tokens = check_rows(kOp, "out", op.out);
  check(kOp, "out", op.out, DType::kF32, {num_tokens, op.wte.in_features});
  check(kOp, "token_ids", op.token_ids, DType::kI32, {num_tokens});
  check(kOp, "positions", op.positions, DType::kI32, {num_tokens});
  check(kOp, "wpe", op.wpe, op.wpe.dtype, {check_rows(kOp, "wpe", op.wpe), op.wte.in_features});
  CARAVAN_CHECK(is_weight_dtype(op.wpe.dtype), "embedding: wpe is {}", dtype_name(op.wpe.dtype));
  if (num_tokens == 0) return;
  backend.embedding(op);
}

void layer_norm(Backend& backend, const LayerNormOp& op) {
  constexpr const char* kOp = "layer_norm";
  const int64_t num_tokens = check_rows(kOp, "x", op.x);
  const int64_t hidden_size = op.x.shape[1];
  CARAVAN_CHECK(hidden_size > 0, "layer_norm: x has shape {}", op.x.shape.to_string());
  check(kOp, "x", op.x, DType::kF32, {num_tokens, hidden_size});
  check_activation(kOp, "y", op.y, backend);
  check(kOp, "y", op.y, op.y.dtype, {num_tokens, hidden_size});
  if (op.delta.data != nullptr) {
    check(kOp, "delta", op.delta, op.y.dtype, {num_tokens, hidden_size});
    CARAVAN_CHECK(op.delta.data != op.y.data && op.y.data != op.x.data,
                  "layer_norm: y overlaps what is read");
  }
  check(kOp, "weight", op.weight, DType::kF32, {hidden_size});
  check(kOp, "bias", op.bias, DType::kF32, {hidden_size});
  CARAVAN_CHECK(op.epsilon >= 0, "layer_norm: epsilon is {}, expected at least 0", op.epsilon);
  if (num_tokens == 0) return;
  backend.layer_norm(op);
}

void linear(Backend& backend, const LinearOp& op) {
  constexpr const char* kOp = "linear";
  check_weight(kOp, op.weight);
  const int64_t num_tokens = check_rows(kOp, "x", op.x);
  check(kOp, "x", op.x, backend.activation_dtype(op.weight.dtype),
        {num_tokens, op.weight.in_features});
  const int64_t out = op.weight.out_features;
  check_rows(kOp, "y", op.y);
  const int64_t stride = op.y.shape[1];
  CARAVAN_CHECK(stride == out || stride == backend.row_stride(out),
                "linear: y has shape {}, expected {} columns", op.y.shape.to_string(), out);
  CARAVAN_CHECK(op.y.dtype == op.x.dtype || op.y.dtype == DType::kF32,
                "linear: y is {}, expected {} or float32", dtype_name(op.y.dtype),
                dtype_name(op.x.dtype));
  check(kOp, "y", op.y, op.y.dtype, {num_tokens, stride});
  const auto* x_begin = op.x.as<char>();
  const auto* y_begin = op.y.as<char>();
  CARAVAN_CHECK(num_tokens == 0 || x_begin + op.x.num_bytes() <= y_begin ||
                    y_begin + op.y.num_bytes() <= x_begin,
                "linear: y overlaps x");
  if (num_tokens == 0) return;
  backend.linear(op);
}

void attention(Backend& backend, const AttentionOp& op) {
  constexpr const char* kOp = "attention";
  check_cache(kOp, op.cache);
  check_activation(kOp, "qkv", op.qkv, backend);
  const AttentionBatch& batch = op.batch;
  const int64_t hidden_size = op.cache.num_heads * op.cache.head_dim;
  const int64_t num_tokens = check_rows(kOp, "qkv", op.qkv);
  const int64_t num_seqs = check_rows(kOp, "block_tables", batch.block_tables);
  check(kOp, "qkv", op.qkv, op.qkv.dtype, {num_tokens, 3 * hidden_size});
  check(kOp, "slot_mapping", op.slot_mapping, DType::kI64, {num_tokens});
  check(kOp, "out", op.out, op.qkv.dtype, {num_tokens, hidden_size});
  check(kOp, "query_start", batch.query_start, DType::kI32, {num_seqs + 1});
  check(kOp, "context_lens", batch.context_lens, DType::kI32, {num_seqs});
  check(kOp, "block_tables", batch.block_tables, DType::kI32,
        {num_seqs, batch.block_tables.shape[1]});
  CARAVAN_CHECK(!batch.is_decode || num_seqs == num_tokens,
                "attention: {} tokens of {} decoding sequences", num_tokens, num_seqs);
  if (num_tokens == 0) return;
  backend.attention(op);
}

void gather_rows(Backend& backend, const GatherRowsOp& op) {
  constexpr const char* kOp = "gather_rows";
  const int64_t num_rows = check_rows(kOp, "out", op.out);
  const int64_t num_tokens = check_rows(kOp, "x", op.x);
  check_activation(kOp, "x", op.x, backend);
  check(kOp, "x", op.x, op.x.dtype, {num_tokens, op.out.shape[1]});
  check(kOp, "out", op.out, op.x.dtype, {num_rows, op.out.shape[1]});
  check(kOp, "rows", op.rows, DType::kI32, {num_rows});
  if (num_rows == 0) return;
  backend.gather_rows(op);
}

void sample(Backend& backend, const SampleOp& op) {
  constexpr const char* kOp = "sample";
  const int64_t num_rows = check_rows(kOp, "logits", op.logits);
  CARAVAN_CHECK(op.vocab_size > 0 && op.vocab_size <= op.logits.shape[1],
                "sample: vocabulary of {}, logits have shape {}", op.vocab_size,
                op.logits.shape.to_string());
  check(kOp, "logits", op.logits, DType::kF32, {num_rows, op.logits.shape[1]});
  check(kOp, "tokens", op.tokens, DType::kI32, {num_rows});
  CARAVAN_CHECK(op.rows != nullptr, "sample: rows is null");
  if (num_rows == 0) return;
  backend.sample(op);
}

}  // namespace caravan::ops
