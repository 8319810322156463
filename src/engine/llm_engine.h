#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/model_runner.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace caravan {

struct LlmEngineOptions {
  ModelRunnerOptions runner;
  std::vector<int32_t> eos_token_ids;
};

/// The loop: schedule a step, run it, choose tokens, hand them out. Text stays outside. A device
/// that chooses tokens itself is given the next step before the tokens of this one are read, so a
/// stop is noticed one step late; the surplus token is dropped.
class LlmEngine {
 public:
  LlmEngine(const ModelDir& dir, std::unique_ptr<Backend> backend, const LlmEngineOptions& options);
  /// Around a runner made with options.runner.
  LlmEngine(ModelRunner runner, const LlmEngineOptions& options);

  /// Errors: kInvalidArgument when the prompt is empty, has ids outside the vocabulary, or does not
  /// fit max_seq_len together with max_output_len.
  void check_request(std::span<const int32_t> prompt, const SamplingParams& params) const;
  /// Checks and queues; returns the sequence's id.
  int64_t add_request(std::span<const int32_t> prompt, const SamplingParams& params);

  /// Told of each new token; returns true when the text says stop (a stop string was found).
  using OnToken = std::function<bool(const Sequence& sequence, int32_t token_id)>;
  /// Runs until the tokens of one step are there. Returns the sequences that ended with it.
  std::vector<std::unique_ptr<Sequence>> step(const OnToken& on_token);

  bool has_unfinished() const { return !scheduler_.is_empty(); }
  ModelRunner& runner() { return runner_; }
  const ModelRunner& runner() const { return runner_; }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  struct StepInFlight {
    struct Row {
      int64_t sequence_id;
      size_t token_index;  // in Sequence::token_ids
    };
    std::vector<Row> rows;
  };
  bool launch();
  int max_steps_in_flight() const;
  bool is_finished(Sequence& sequence, size_t token_index, const OnToken& on_token) const;

  std::vector<int32_t> eos_token_ids_;
  ModelRunner runner_;
  Scheduler scheduler_;
  Batch batch_;
  std::deque<StepInFlight> in_flight_;
  int64_t next_id_ = 0;
  int64_t num_host_requests_ = 0;  // unfinished ones whose tokens the host chooses
};

}  // namespace caravan
