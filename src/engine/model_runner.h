#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "format/model_dir.h"
#include "models/batch.h"
#include "models/gpt2.h"
#include "models/kv_cache.h"

namespace caravan {

struct ModelRunnerOptions {
  std::optional<DType> dtype = std::nullopt;           // unset: choose_weight_dtype()
  std::optional<DType> kv_cache_dtype = std::nullopt;  // unset: the engine's, else the weights'
  int64_t max_num_batched_tokens = 512;
  int64_t max_num_logits = 8;  // rows of logits of one step
  int64_t max_seq_len = 0;     // 0: the engine's limit, else the model's
  int64_t max_batch_size = 8;
};

/// The step limits that these options mean, for memory plans and reserve().
StepLimits step_limits(const ModelRunnerOptions& options);

/// A loaded model with its cache and step memory on one backend.
class ModelRunner {
 public:
  /// Errors: as Gpt2Model::load; kInvalidArgument when max_seq_len exceeds the model or the engine.
  ModelRunner(const ModelDir& dir, std::unique_ptr<Backend> backend,
              const ModelRunnerOptions& options);

  /// Runs one step. Returns logits [batch.logits_rows(), vocab_size], valid until the next step.
  std::span<const float> run(const Batch& batch);
  /// Logits [num_rows, vocab_size] of tokens first_row... of the last forward pass, valid until the
  /// next call. num_rows <= max_num_logits().
  std::span<const float> logits(int64_t first_row, int64_t num_rows);

  Gpt2Model& model() { return model_; }
  const Gpt2Model& model() const { return model_; }
  const Backend& backend() const { return *backend_; }
  const KvCache& cache() const { return cache_; }
  int64_t max_seq_len() const { return max_seq_len_; }
  int64_t max_num_logits() const { return max_num_logits_; }

  /// Bytes beside weights and cache that a runner with these limits allocates: activations, kernel
  /// scratch and logits.
  static int64_t workspace_bytes(const ModelConfig& config, const Backend& backend,
                                 const StepLimits& limits);
  /// Tokens that one sequence may have: the engine's or the model's, or `wanted` if that is less.
  /// Errors: kInvalidArgument when wanted is more.
  static int64_t sequence_limit(const ModelDir& dir, int64_t wanted);

 private:
  std::span<const float> compute_logits(const ConstTensor& rows);

  std::unique_ptr<Backend> backend_;
  Gpt2Model model_;
  int64_t max_seq_len_;
  int64_t max_num_logits_;
  KvCache cache_;
  Buffer logits_;                     // [max_num_logits, vocab_size]
  std::vector<int32_t> row_indices_;  // [max_num_logits]
};

}  // namespace caravan
