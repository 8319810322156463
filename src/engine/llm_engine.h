#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/engine_stats.h"
#include "engine/model_runner.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/step_runner.h"

namespace caravan {

struct LlmEngineOptions {
  ModelRunnerOptions runner;
  std::vector<int32_t> eos_token_ids;
  bool enable_prefix_caching = true;
};

/// What the engine must know of its device.
struct EngineLimits {
  int64_t vocab_size = 0;
  int64_t max_seq_len = 0;  // tokens of one sequence
  SchedulerLimits scheduler;
};

/// One step that ended.
struct StepSummary {
  int64_t num_tokens = 0;  // in the batch; 0: there was nothing to run
  int64_t num_seqs = 0;
  double duration_ms = 0;  // from its launch, or the end of the step before, to its tokens
};

/// The loop: schedule a step, run it, choose tokens, hand them out. Text stays outside. A device
/// that chooses tokens itself is given the next step before the tokens of this one are read, so a
/// stop is noticed one step late; the surplus token is dropped. While a request needs the host for
/// its tokens, steps go one by one. Not thread safe, except for check_request().
class LlmEngine {
 public:
  LlmEngine(const ModelDir& dir, std::unique_ptr<Backend> backend, const LlmEngineOptions& options);
  /// Around a runner made with options.runner.
  LlmEngine(ModelRunner runner, const LlmEngineOptions& options);
  /// Around any device; options.runner is not read.
  LlmEngine(std::unique_ptr<StepRunner> runner, const EngineLimits& limits,
            const LlmEngineOptions& options);

  /// Errors: kInvalidArgument when the prompt is empty, has ids outside the vocabulary, or does not
  /// fit max_seq_len or the cache together with max_output_len.
  void check_request(std::span<const int32_t> prompt, const SamplingParams& params) const;
  /// Checks and queues; returns the sequence's id: 0, 1, 2, ... Prefixes are shared with requests
  /// of the same scope alone.
  int64_t add_request(std::span<const int32_t> prompt, const SamplingParams& params,
                      int32_t priority = 0,
                      Sequence::Clock::time_point arrival = Sequence::Clock::now(),
                      std::string_view prefix_scope = {});
  /// Takes a sequence out: its blocks are free for the next step, also when one with it is still in
  /// flight, because a device runs steps in order. Null when it ended already. Not from OnToken.
  std::unique_ptr<Sequence> cancel(int64_t id);

  /// Told of each new token; returns true when the text says stop (a stop string was found).
  using OnToken = std::function<bool(const Sequence& sequence, int32_t token_id)>;
  /// Runs until the tokens of one step are there. Returns the sequences that ended with it.
  /// Errors: those of the runner, after which neither is of any more use.
  std::vector<std::unique_ptr<Sequence>> step(const OnToken& on_token);
  /// The step that step() waited for last.
  const StepSummary& last_step() const { return last_step_; }

  /// Whether the token ends an output made with `params` (end of text, unless that is ignored, or a
  /// stop token) and so is no part of its text.
  bool ends_output(const SamplingParams& params, int32_t token) const;

  EngineStats stats() const;
  bool has_unfinished() const { return !scheduler_.is_empty(); }
  /// The runner of the first two constructors. Errors: kInternal for another one.
  ModelRunner& runner();
  const ModelRunner& runner() const;
  const EngineLimits& limits() const { return limits_; }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  using Clock = Sequence::Clock;
  struct StepInFlight {
    struct Row {
      int64_t sequence_id;
      size_t token_index;  // in Sequence::token_ids
      bool has_token;
      bool is_scored;
      int64_t first_position;
    };
    std::vector<Row> rows;
    StepSummary summary;
    Clock::time_point launched;
  };
  bool launch();
  bool may_launch() const;
  bool take_output(Sequence& sequence, const StepInFlight::Row& row, const StepOutput& output,
                   const OnToken& on_token);
  bool is_finished(Sequence& sequence, size_t token_index, const OnToken& on_token) const;

  std::vector<int32_t> eos_token_ids_;
  EngineLimits limits_;
  std::unique_ptr<StepRunner> runner_;
  ModelRunner* model_runner_ = nullptr;  // runner_, if it is one
  Scheduler scheduler_;
  Batch batch_;
  std::deque<StepInFlight> in_flight_;
  StepSummary last_step_;
  Clock::time_point last_step_end_;
  EngineStats counters_;                 // those that only grow
  std::vector<SampleRequest> requests_;  // of one launch()
  int64_t next_id_ = 0;
};

}  // namespace caravan
