#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "core/op_params.h"
#include "core/tensor.h"

namespace caravan::ops {

// One checked function an operator: shapes, dtypes and null pointers first, then the backend. All
// throw kInvalidArgument naming the operand, what was found and what was expected. Contents of
// integer arrays (ids, slots, block tables) are the batch builder's promise (models/batch.h checks
// them), because on a device they cannot be read here. Shapes and dtypes: backend/backend.h.

/// out = wte[token_ids] + wpe[positions].
void embedding(Backend& backend, const EmbeddingOp& op);

/// x += delta + delta_bias where delta is given; y = LayerNorm(x) * weight + bias. Without delta y
/// may be x.  Source: Ba et al. 2016, eq. 4.
void layer_norm(Backend& backend, const LayerNormOp& op);

/// y = activation(x W + bias). x may not overlap y.
void linear(Backend& backend, const LinearOp& op);

/// Appends K and V of qkv to one layer's cache; out = causal attention of the q part over it.
void attention(Backend& backend, const AttentionOp& op);

/// out[i] = x[rows[i]].
void gather_rows(Backend& backend, const GatherRowsOp& op);

/// tokens[i] = the token chosen from row i of the logits.
void sample(Backend& backend, const SampleOp& op);

}  // namespace caravan::ops
