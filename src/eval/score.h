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

/// A token sequence and the rows of its logits that are wanted: row i predicts what follows ids[i].
struct ScoreRequest {
  std::span<const int32_t> ids;  // 1..max_seq_len tokens
  int64_t first_row = 0;         // rows [first_row, end_row), within [0, ids.size()]
  int64_t end_row = 0;
};

/// One wanted row. logits: [vocab_size], valid during the call that gets it.
struct LogitsRow {
  int64_t request = 0;
  int64_t row = 0;
  std::span<const float> logits;
};

/// Scores sequences on a runner, as many at once as its limits allow. What is batched with what
/// changes no bit.
class Scorer {
 public:
  /// The runner must outlive this object and is used for nothing else meanwhile.
  explicit Scorer(ModelRunner& runner);

  /// Called with up to max_num_logits rows at a time: every wanted row once, request after request
  /// and row after row.
  using OnRows = std::function<void(std::span<const LogitsRow> rows)>;
  /// Errors: kInvalidArgument for a request that is empty, too long, has ids outside the vocabulary
  /// or rows outside its tokens.
  void run(std::span<const ScoreRequest> requests, const OnRows& on_rows);

  /// Called with the logits that predict ids[position + 1], for every position.
  /// logits: [vocab_size].
  using OnLogits = std::function<void(int64_t position, std::span<const float> logits)>;
  /// One sequence; the log-sum-exp is in double. ids: 1..max_seq_len tokens.
  /// Errors: kInvalidArgument.
  Score score(std::span<const int32_t> ids, int num_top = 20, const OnLogits& on_logits = nullptr);

  const ModelRunner& runner() const { return runner_; }

 private:
  struct WantedRow {
    int64_t request;
    int64_t row;
    int32_t batch_row;
  };
  void check(const ScoreRequest& request) const;
  void give_rows(std::span<const WantedRow> wanted, const OnRows& on_rows);

  ModelRunner& runner_;
  Batch batch_;
  // Sequences in the cache at once; each takes the blocks of one of the tables.
  std::vector<std::vector<int32_t>> block_tables_;
};

}  // namespace caravan
