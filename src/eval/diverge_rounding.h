#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "eval/diverge_ops.h"
#include "format/model_config.h"
#include "models/kv_cache.h"
#include "models/layer_stream.h"

namespace caravan {

/// Where one side of a comparison rounds, and to what.
struct SideRounding {
  DType weights = DType::kF32;
  DType activations = DType::kF32;  // what operators hand to each other
  DType kv_cache = DType::kF32;
  KvScales kv_scales = {};     // of a quantized cache
  DType stream = DType::kF32;  // the residual stream
  DType logits = DType::kF32;  // as stored
  bool rounds_inside = false;  // scores, pre-activations and sums to `activations` as well
};

/// Of a model that runs here.
SideRounding rounding_of(const LayerStream& stream);

/// 2^-24 for float32: half the distance from 1 to the next number. kI8: none of its own, 0.
double unit_roundoff(DType dtype);

/// What rounding alone does to an operator, given how both sides round (docs/diverge.md). The
/// difference that two right implementations may show is found by experiment: the operator runs
/// again on inputs moved by as much as the roundings move them, and its response is measured. That
/// takes the model's own sensitivity into account (attention at scores of 1e5 is far more sensitive
/// than a linear layer), and needs no constant for each operator.
class RoundingModel {
 public:
  RoundingModel(const ModelConfig& config, SideRounding model, SideRounding reference,
                int64_t max_sequence);

  /// Moves each of `values`, what `op` made of tokens first_token..., at random: x (1 + e), e
  /// uniform within what the operator that reads them adds in roundings of its inputs, of its
  /// weights and in its sums, both sides together. A function of seed, op and index alone.
  void move(const OpId& op, uint64_t seed, int64_t first_token, std::span<float> values) const;

  /// Roundings of what `op` makes, on both sides, which no input shows: root mean square of the
  /// relative error of one value. `added`: for the two operators that add to the stream the norm of
  /// the sum over the norm of what was added; the figure then is relative to the latter.
  double output_error(const OpId& op, double added) const;

 private:
  double amplitude(const OpId& op) const;
  void move_qkv(const OpId& op, uint64_t seed, int64_t first_token, std::span<float> values) const;

  ModelConfig config_;
  SideRounding sides_[2];
  int64_t max_sequence_;
};

}  // namespace caravan
