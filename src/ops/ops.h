#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "core/op_params.h"
#include "core/tensor.h"

namespace caravan::ops {

// One checked function an operator: shapes, dtypes and null pointers first, then the backend. All
// throw kInvalidArgument naming the operand, what was found and what was expected. Contents of
// integer arrays (ids, slots, block tables) are the batch builder's promise (models/batch.h checks
// them), because on a device they cannot be read here.

/// out = wte[token_ids] + wpe[positions].  Shapes: token_ids, positions [T] int32; wpe
/// [num_positions, hidden]; out [T, hidden] float32.
void embedding(Backend& backend, const ConstTensor& token_ids, const ConstTensor& positions,
               const LinearWeight& wte, const ConstTensor& wpe, const Tensor& out);

/// y = LayerNorm(x) * weight + bias. Shapes: x, y [T, hidden]; weight, bias [hidden]; all float32.
/// y may be x.  Source: Ba et al. 2016, eq. 4.
void layer_norm(Backend& backend, const ConstTensor& x, const ConstTensor& weight,
                const ConstTensor& bias, float epsilon, const Tensor& y);

/// y = activation(x W + bias) + residual. Shapes: x [T, in]; residual, y [T, out]; float32.
/// residual.data may be null; it may be y. x may not overlap y.
void linear(Backend& backend, const ConstTensor& x, const LinearWeight& weight,
            Activation activation, const ConstTensor& residual, const Tensor& y);

/// Appends K and V of qkv [T, 3 * hidden] to one layer's cache at slot_mapping [T] int64.
void append_kv(Backend& backend, const ConstTensor& qkv, const ConstTensor& slot_mapping,
               const KvLayer& cache);

/// Which tokens belong to which sequence, and where their context lies.
struct AttentionBatch {
  ConstTensor query_start;   // [num_seqs + 1] int32
  ConstTensor context_lens;  // [num_seqs] int32
  ConstTensor block_tables;  // [num_seqs, max_blocks_per_seq] int32
};
/// out = causal attention of the q part of qkv [T, 3 * hidden] over the cache; out [T, hidden].
void attention(Backend& backend, const ConstTensor& qkv, const AttentionBatch& batch,
               const KvLayer& cache, float scale, const Tensor& out);

/// out[i] = x[rows[i]]. Shapes: x [T, hidden], rows [R] int32, out [R, hidden].
void gather_rows(Backend& backend, const ConstTensor& x, const ConstTensor& rows,
                 const Tensor& out);

}  // namespace caravan::ops
