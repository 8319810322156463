#pragma once

#include <span>
#include <string>
#include <vector>

#include "eval/diverge_ops.h"
#include "eval/diverge_side.h"
#include "format/model_config.h"
#include "models/gpt2_weights.h"

namespace caravan {

/// An operator that diverges, with what it read and made. Rows are tokens; the rows of all spans
/// are the same ones, from `first_token` on.
struct DivergedOp {
  OpId op;
  const ModelConfig& config;
  const Gpt2Weights& weights;
  const ModelConfig* reference_config = nullptr;  // null where unknown
  const Gpt2Weights* reference_weights = nullptr;
  const DivergeInput& input;
  int64_t first_token = 0;
  std::vector<int64_t> rows;      // that diverge, at most a few
  double bound = 0;               // what rounding explains
  std::span<const float> read;    // what the operator read, empty where unknown; the stream of a
                                  // LayerNorm; of "logits" ln_f
  std::span<const float> stream;  // what it added to, of the operators that add
  std::span<const float> got;     // what the model made of `read`
  std::span<const float> wanted;  // what the reference made
};

/// Where the two configs differ: "activation_function: gelu, gelu_new in the reference".
std::vector<std::string> config_differences(const ModelConfig& model, const ModelConfig& reference);

/// What would explain the difference, the surest first: stored weights that differ (when both sides
/// have them); then each known mistake of which a recomputation in float64 from `read` gives what
/// the reference made; then what the difference looks like. One line each; may be empty.
std::vector<std::string> find_causes(const DivergedOp& diverged);

}  // namespace caravan
