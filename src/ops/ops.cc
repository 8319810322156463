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

void check_weight(const char* op, const LinearWeight& w) {
  CARAVAN_CHECK(w.data != nullptr, "{}: weight is null", op);
  CARAVAN_CHECK(w.dtype == DType::kF32 || w.dtype == DType::kF16 || w.dtype == DType::kBF16,
                "{}: weight is {}, expected float32, float16 or bfloat16", op, dtype_name(w.dtype));
  CARAVAN_CHECK(w.in_features > 0 && w.out_features > 0, "{}: weight is {} x {}", op, w.in_features,
                w.out_features);
}

void check_cache(const char* op, const KvLayer& c) {
  CARAVAN_CHECK(c.k != nullptr && c.v != nullptr, "{}: the cache is null", op);
  CARAVAN_CHECK(c.num_blocks > 0 && c.block_size > 0 && c.num_heads > 0 && c.head_dim > 0,
                "{}: the cache has {} blocks of {} tokens, {} heads of {}", op, c.num_blocks,
                c.block_size, c.num_heads, c.head_dim);
  CARAVAN_CHECK(c.dtype == DType::kF32 || c.dtype == DType::kF16 || c.dtype == DType::kBF16,
                "{}: the cache is {}, expected float32, float16 or bfloat16", op,
                dtype_name(c.dtype));
}

}  // namespace

void embedding(Backend& backend, const ConstTensor& token_ids, const ConstTensor& positions,
               const LinearWeight& wte, const ConstTensor& wpe, const Tensor& out) {
  constexpr const char* kOp = "embedding";
  check_weight(kOp, wte);
  const int64_t num_tokens = check_rows(kOp, "out", out);
  check(kOp, "out", out, DType::kF32, {num_tokens, wte.in_features});
  check(kOp, "token_ids", token_ids, DType::kI32, {num_tokens});
  check(kOp, "positions", positions, DType::kI32, {num_tokens});
  check(kOp, "wpe", wpe, wpe.dtype, {check_rows(kOp, "wpe", wpe), wte.in_features});
  CARAVAN_CHECK(is_floating(wpe.dtype) && wpe.dtype != DType::kF64, "embedding: wpe is {}",
                dtype_name(wpe.dtype));
  if (num_tokens == 0) return;
  backend.embedding({.num_tokens = num_tokens,
                     .token_ids = token_ids.as<int32_t>(),
                     .positions = positions.as<int32_t>(),
                     .wte = wte,
                     .wpe = wpe.data,
                     .wpe_dtype = wpe.dtype,
                     .num_positions = wpe.shape[0],
                     .out = out.as<float>()});
}

void layer_norm(Backend& backend, const ConstTensor& x, const ConstTensor& weight,
                const ConstTensor& bias, float epsilon, const Tensor& y) {
  constexpr const char* kOp = "layer_norm";
  const int64_t num_tokens = check_rows(kOp, "x", x);
  const int64_t hidden_size = x.shape[1];
  CARAVAN_CHECK(hidden_size > 0, "layer_norm: x has shape {}", x.shape.to_string());
  check(kOp, "x", x, DType::kF32, {num_tokens, hidden_size});
  check(kOp, "y", y, DType::kF32, {num_tokens, hidden_size});
  check(kOp, "weight", weight, DType::kF32, {hidden_size});
  check(kOp, "bias", bias, DType::kF32, {hidden_size});
  CARAVAN_CHECK(epsilon >= 0, "layer_norm: epsilon is {}, expected at least 0", epsilon);
  if (num_tokens == 0) return;
  backend.layer_norm({.num_tokens = num_tokens,
                      .hidden_size = hidden_size,
                      .x = x.as<float>(),
                      .weight = weight.as<float>(),
                      .bias = bias.as<float>(),
                      .epsilon = epsilon,
                      .y = y.as<float>()});
}

void linear(Backend& backend, const ConstTensor& x, const LinearWeight& weight,
            Activation activation, const ConstTensor& residual, const Tensor& y) {
  constexpr const char* kOp = "linear";
  check_weight(kOp, weight);
  const int64_t num_tokens = check_rows(kOp, "x", x);
  check(kOp, "x", x, DType::kF32, {num_tokens, weight.in_features});
  check(kOp, "y", y, DType::kF32, {num_tokens, weight.out_features});
  if (residual.data != nullptr) {
    check(kOp, "residual", residual, DType::kF32, {num_tokens, weight.out_features});
  }
  const auto* x_begin = x.as<char>();
  const auto* y_begin = y.as<char>();
  CARAVAN_CHECK(
      num_tokens == 0 || x_begin + x.num_bytes() <= y_begin || y_begin + y.num_bytes() <= x_begin,
      "linear: y overlaps x");
  if (num_tokens == 0) return;
  backend.linear({.num_tokens = num_tokens,
                  .x = x.as<float>(),
                  .weight = weight,
                  .activation = activation,
                  .residual = residual.as<float>(),
                  .y = y.as<float>()});
}

void append_kv(Backend& backend, const ConstTensor& qkv, const ConstTensor& slot_mapping,
               const KvLayer& cache) {
  constexpr const char* kOp = "append_kv";
  check_cache(kOp, cache);
  const int64_t num_tokens = check_rows(kOp, "qkv", qkv);
  check(kOp, "qkv", qkv, DType::kF32, {num_tokens, 3 * cache.num_heads * cache.head_dim});
  check(kOp, "slot_mapping", slot_mapping, DType::kI64, {num_tokens});
  if (num_tokens == 0) return;
  backend.append_kv({.num_tokens = num_tokens,
                     .qkv = qkv.as<float>(),
                     .slot_mapping = slot_mapping.as<int64_t>(),
                     .cache = cache});
}

void attention(Backend& backend, const ConstTensor& qkv, const AttentionBatch& batch,
               const KvLayer& cache, float scale, const Tensor& out) {
  constexpr const char* kOp = "attention";
  check_cache(kOp, cache);
  const int64_t hidden_size = cache.num_heads * cache.head_dim;
  const int64_t num_tokens = check_rows(kOp, "qkv", qkv);
  const int64_t num_seqs = check_rows(kOp, "block_tables", batch.block_tables);
  const int64_t max_blocks_per_seq = batch.block_tables.shape[1];
  check(kOp, "qkv", qkv, DType::kF32, {num_tokens, 3 * hidden_size});
  check(kOp, "out", out, DType::kF32, {num_tokens, hidden_size});
  check(kOp, "query_start", batch.query_start, DType::kI32, {num_seqs + 1});
  check(kOp, "context_lens", batch.context_lens, DType::kI32, {num_seqs});
  check(kOp, "block_tables", batch.block_tables, DType::kI32, {num_seqs, max_blocks_per_seq});
  if (num_tokens == 0) return;
  backend.attention({.num_tokens = num_tokens,
                     .num_seqs = num_seqs,
                     .qkv = qkv.as<float>(),
                     .query_start = batch.query_start.as<int32_t>(),
                     .context_lens = batch.context_lens.as<int32_t>(),
                     .block_tables = batch.block_tables.as<int32_t>(),
                     .max_blocks_per_seq = max_blocks_per_seq,
                     .cache = cache,
                     .scale = scale,
                     .out = out.as<float>()});
}

void gather_rows(Backend& backend, const ConstTensor& x, const ConstTensor& rows,
                 const Tensor& out) {
  constexpr const char* kOp = "gather_rows";
  const int64_t num_rows = check_rows(kOp, "out", out);
  const int64_t num_tokens = check_rows(kOp, "x", x);
  check(kOp, "x", x, DType::kF32, {num_tokens, out.shape[1]});
  check(kOp, "out", out, DType::kF32, {num_rows, out.shape[1]});
  check(kOp, "rows", rows, DType::kI32, {num_rows});
  if (num_rows == 0) return;
  backend.gather_rows({.num_rows = num_rows,
                       .hidden_size = out.shape[1],
                       .rows = rows.as<int32_t>(),
                       .x = x.as<float>(),
                       .out = out.as<float>()});
}

}  // namespace caravan::ops
