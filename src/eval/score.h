#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "engine/model_runner.h"

namespace caravan {

/// What the model thinks of a given token sequence (teacher forcing).
struct Score {
  double nll = 0;          // -sum of log p(ids[i] | ids[0..i-1]) for i >= 1, in nats
  int64_t num_scored = 0;  // ids.size() - 1
  std::vector<std::pair<int32_t, float>> last_top;  // after the last id, most likely first
  double last_logsumexp = 0;
};

/// Scores sequences one at a time on a runner, in steps of its limits. The log-sum-exp is in
/// double.
class Scorer {
 public:
  /// The runner must outlive this object.
  explicit Scorer(ModelRunner& runner);

  /// Called with the logits that predict ids[position + 1], for every position.
  /// logits: [vocab_size].
  using OnLogits = std::function<void(int64_t position, std::span<const float> logits)>;

  /// ids: 1..max_seq_len tokens. Errors: kInvalidArgument.
  Score score(std::span<const int32_t> ids, int num_top = 20, const OnLogits& on_logits = nullptr);

 private:
  ModelRunner& runner_;
  Batch batch_;
  std::vector<int32_t> block_table_;
  std::vector<double> logsumexps_;  // [max_num_logits]
};

/// log(sum(exp(logits))): float exponentials (each within 1 ulp), summed in double.
double logsumexp(std::span<const float> logits);

}  // namespace caravan
