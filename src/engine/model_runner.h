#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "engine/step_runner.h"
#include "format/model_dir.h"
#include "models/batch.h"
#include "models/device_batch.h"
#include "models/gpt2.h"
#include "models/kv_cache.h"
#include "sampling/sampler.h"

namespace caravan {

struct ModelRunnerOptions {
  std::optional<DType> dtype = std::nullopt;           // unset: choose_weight_dtype()
  std::optional<DType> kv_cache_dtype = std::nullopt;  // unset: the engine's, else the weights'
  /// Of a quantized cache; empty: the directory's, see ModelRunner.
  KvScales kv_scales = {};
  int64_t max_num_batched_tokens = 512;
  int64_t max_num_logits = 8;  // rows of logits of one step
  int64_t max_seq_len = 0;     // 0: the engine's limit, else the model's
  int64_t max_batch_size = 8;
  int64_t num_kv_blocks = 0;  // 0: max_batch_size sequences of max_seq_len
  /// Compare the weights with their checksums and look for values that are not finite: beside the
  /// first step where they stay mapped; no result leaves before.
  bool verify_weights = true;
};

/// The step limits that these options mean, for memory plans and reserve().
StepLimits step_limits(const ModelRunnerOptions& options);

/// A loaded model with its cache and step memory on one backend.
class ModelRunner : public StepRunner {
 public:
  /// A quantized cache takes its scales from the options, else from the directory. A float8 cache
  /// without any gets scale 1 and a warning; an int8 cache without any is an error.
  /// Errors: as Gpt2Model::load; kInvalidArgument when max_seq_len exceeds the model or the engine,
  /// or the scales are missing.
  ModelRunner(const ModelDir& dir, std::unique_ptr<Backend> backend,
              const ModelRunnerOptions& options);
  /// With random weights of `dir.config`'s shape. Without given scales a quantized cache has room
  /// for values up to 8 in every head.
  static ModelRunner random(const ModelDir& dir, std::unique_ptr<Backend> backend,
                            const ModelRunnerOptions& options);

  /// 2 where tokens are chosen on the device, so that it never waits for the host.
  int max_steps_in_flight() const override { return backend_->samples_on_device() ? 2 : 1; }
  /// True for what the device's sampler does not have: min_p, presence and frequency penalty, logit
  /// bias and min_output_len, where the host chooses the token from a copy of the logits; and log
  /// probabilities, which the host computes from them while the token is the device's choice, so
  /// that asking for them changes nothing. A request without all these never waits for the host.
  bool needs_host(const SamplingParams& params) const override;
  void launch(const Batch& batch, std::span<const SampleRequest> requests) override;
  std::span<const StepOutput> collect() override;

  /// Runs one step. Returns logits [rows that want logits][vocab_size], valid until the next step.
  std::span<const float> run(const Batch& batch);
  /// Runs the batch without logits; see Gpt2Model::forward.
  void forward(const Batch& batch, const ForwardObserver& observer = nullptr);
  /// Logits [num_rows, vocab_size] of tokens first_row... of the last forward pass, valid until the
  /// next call. num_rows <= max_num_logits().
  std::span<const float> logits(int64_t first_row, int64_t num_rows);
  /// The same of any of its tokens, in the order of `rows`.
  std::span<const float> logits(std::span<const int32_t> rows);

  const Gpt2Model& model() const { return model_; }
  const Backend& backend() const { return *backend_; }
  Backend& backend() { return *backend_; }
  const KvCache& cache() const { return cache_; }
  int64_t max_seq_len() const { return max_seq_len_; }
  int64_t max_num_logits() const { return max_num_logits_; }

  /// Bytes beside weights and cache that a runner with these limits allocates: activations, kernel
  /// scratch, logits, and what a device needs that chooses tokens itself.
  static int64_t workspace_bytes(const ModelConfig& config, const Backend& backend,
                                 const StepLimits& limits, DType dtype);
  /// Tokens that one sequence may have: the engine's or the model's, or `wanted` if that is less.
  /// Errors: kInvalidArgument when wanted is more.
  static int64_t sequence_limit(const ModelDir& dir, int64_t wanted);

 private:
  ModelRunner(const ModelDir& dir, std::unique_ptr<Backend> backend,
              const ModelRunnerOptions& options, std::optional<uint64_t> random_seed);

  struct Step {
    std::vector<StepOutput> outputs;
    Buffer device_tokens;     // pinned, written by the device
    Buffer prompts;           // pinned [max_batch_size * max_seq_len] int32, to mark in seen_
    bool is_waiting = false;  // the tokens are still to be read from there
    int64_t marker = 0;
  };

  static constexpr uint64_t kRandomSeed = 1;

  static constexpr int kNumSteps = 2;  // in flight at most
  int step_slot() const { return static_cast<int>(num_launched_ % kNumSteps); }
  BatchTensors prepare(const Batch& batch, int64_t num_rows, int64_t max_context_len,
                       std::span<const RowSampling> sampling);
  std::span<const float> compute_logits(const ConstTensor& rows);
  Tensor logits_tensor(int64_t num_rows) const;
  void check_logits_rows(int64_t num_rows) const;
  void copy_logits_to_host(int64_t row);
  void launch_on_device(const Batch& batch, std::span<const SampleRequest> requests, Step& step);
  void wait_for_tokens(Step& step);
  void choose_on_host(std::span<const float> logits, const SampleRequest& request,
                      StepOutput& output);
  void score_output(std::span<const float> logits, const SampleRequest& request,
                    StepOutput& output);
  void score_prompts(const Batch& batch, std::span<const SampleRequest> requests, Step& step);
  void score_prompt(const Batch::ScoredRows& scored, const SampleRequest& request,
                    StepOutput& output);
  void prepare_seen(std::span<const SampleRequest> requests, Step& step);

  std::unique_ptr<Backend> backend_;
  Gpt2Model model_;
  int64_t max_seq_len_;
  int64_t max_num_logits_;
  KvCache cache_;
  int64_t logits_stride_;
  Buffer logits_;       // [max_num_logits, logits_stride]
  Buffer host_logits_;  // pinned, [max_num_logits, vocab_size], where the host cannot read logits_;
                        // made when they are first read
  std::vector<int32_t> row_indices_;  // [max_num_logits]
  Buffer device_rows_;                // their copy, where the host's cannot be read

  Sampler sampler_;
  std::optional<DeviceBatch> device_batch_;
  Buffer sampled_;           // [max_num_logits] int32 on the device: the last step's tokens
  int64_t num_sampled_ = 0;  // of them; 0: no id of the next step may refer to them
  Buffer seen_;              // SampleOp::seen
  int64_t max_batch_size_;
  std::array<Step, kNumSteps> steps_;
  int64_t num_launched_ = 0;
  int64_t num_collected_ = 0;
};

}  // namespace caravan
