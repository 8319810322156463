#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/model_runner.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "sampling/sampler.h"

namespace caravan {

struct LlmEngineOptions {
  ModelRunnerOptions runner;
  std::vector<int32_t> eos_token_ids;
};

/// The loop: schedule a step, run it, choose tokens, hand them out. Text stays outside.
class LlmEngine {
 public:
  LlmEngine(const ModelDir& dir, std::unique_ptr<Backend> backend, const LlmEngineOptions& options);

  /// Errors: kInvalidArgument when the prompt is empty, has ids outside the vocabulary, or does not
  /// fit max_seq_len together with max_output_len.
  void check_request(std::span<const int32_t> prompt, const SamplingParams& params) const;
  /// Checks and queues; returns the sequence's id.
  int64_t add_request(std::span<const int32_t> prompt, const SamplingParams& params);

  /// Told of each new token; returns true when the text says stop (a stop string was found).
  using OnToken = std::function<bool(const Sequence& sequence, int32_t token_id)>;
  /// Runs one step. Returns the sequences that ended with it.
  std::vector<std::unique_ptr<Sequence>> step(const OnToken& on_token);

  bool has_unfinished() const { return !scheduler_.is_empty(); }
  ModelRunner& runner() { return runner_; }
  const ModelRunner& runner() const { return runner_; }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  std::vector<int32_t> eos_token_ids_;
  ModelRunner runner_;
  Scheduler scheduler_;
  Sampler sampler_;
  Batch batch_;
  int64_t next_id_ = 0;
};

}  // namespace caravan
