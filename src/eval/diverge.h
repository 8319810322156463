#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "eval/diverge_ops.h"
#include "eval/diverge_side.h"
#include "models/layer_stream.h"

namespace caravan {

struct DivergeOptions {
  bool stop_at_first = false;  // load no layer after the first that diverges
  uint64_t seed = 1;           // of the moves that measure the bounds
};

/// One value of one operator.
struct DivergeElement {
  int64_t token = -1;
  int64_t index = -1;
  double got = 0;     // the model's
  double wanted = 0;  // the reference's
};

/// How one operator compares. Errors are of one token's values: ||got - wanted|| / ||wanted||; of
/// the operators that add to the residual stream ("h.i.attn.residual", "h.i") the norm below is
/// that of what was added.
struct DivergeOp {
  OpId op;
  bool is_same_bits = true;   // of the two free runs
  double global_error = 0;    // two free runs, all tokens together
  double local_error = 0;     // the model's operator on the reference's inputs; the worst token's
  double bound = 0;           // what rounding explains of it (docs/diverge.md)
  int64_t num_bad = 0;        // tokens beyond their bound
  int64_t num_sensitive = 0;  // tokens of which rounding alone may change everything: bound >= 1
  int64_t first_bad_token = -1;
  double first_bad_error = 0;
  double first_bad_bound = 0;
  DivergeElement worst = {};  // of the first bad token, else of the worst
};

struct DivergeReport {
  std::string model;
  std::string reference;
  int64_t num_tokens = 0;
  int64_t num_sequences = 0;
  int64_t num_layers = 0;
  std::vector<std::string> facts;   // where the two configs differ
  std::vector<DivergeOp> ops;       // compared, in the order of the forward pass
  std::vector<std::string> causes;  // of the first divergence, the likeliest first; may be empty

  /// The first operator with a token beyond its bound; null when there is none.
  const DivergeOp* first() const;
  bool is_same_bits() const;
};

/// Compares `model` with `reference` operator by operator, one layer of each in memory at a time.
/// Two runs of the model: a free one, whose distance from the reference's own is the global error,
/// and one in which each operator reads what the reference's operators made, so that a difference
/// is the operator's own: the local error. More runs of the second kind on moved inputs measure
/// what rounding explains. An operator that the reference does not show feeds the next one itself.
/// Errors: kInvalidArgument when the two have different shapes.
DivergeReport find_divergence(LayerStream& model, DivergeSide& reference, const DivergeInput& input,
                              const DivergeOptions& options = {});

/// Bytes beside the two LayerStreams: states and values of one layer of both.
int64_t diverge_bytes(const ModelConfig& config, int64_t num_tokens);

/// The report as `caravan diverge` prints it: facts, a line for each operator, the verdict.
std::string diverge_text(const DivergeReport& report);
boost::json::object diverge_json(const DivergeReport& report);

}  // namespace caravan
