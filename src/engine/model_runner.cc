#include "engine/model_runner.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace caravan {

namespace {

DType cache_dtype(const ModelDir& dir, const Gpt2Model& model, std::optional<DType> wanted) {
  if (wanted) return *wanted;
  return dir.build ? dir.build->kv_cache_dtype : model.weight_dtype();
}

}  // namespace

StepLimits step_limits(const ModelRunnerOptions& options) {
  return {.max_num_tokens = std::max(options.max_num_batched_tokens, options.max_batch_size),
          .max_num_logits = options.max_num_logits,
          .max_context_len = options.max_seq_len};
}

int64_t ModelRunner::sequence_limit(const ModelDir& dir, int64_t wanted) {
  int64_t limit = dir.config.max_seq_len;
  if (dir.build) limit = std::min(limit, dir.build->max_input_len + dir.build->max_output_len);
  CARAVAN_CHECK(wanted <= limit, "{}: sequences of {} tokens wanted, the {} allows {}", dir.path,
                wanted, dir.build ? "engine" : "model", limit);
  return wanted > 0 ? wanted : limit;
}

int64_t ModelRunner::workspace_bytes(const ModelConfig& config, const Backend& backend,
                                     const StepLimits& limits) {
  const int64_t logits = checked_mul(
      checked_mul(limits.max_num_logits, config.vocab_size, "logits"), sizeof(float), "logits");
  const auto scratch =
      static_cast<int64_t>(backend.workspace_bytes(Gpt2Model::workspace_spec(config, limits)));
  return checked_add(checked_add(Gpt2Model::activation_bytes(config, limits), logits, "workspace"),
                     scratch, "workspace");
}

ModelRunner::ModelRunner(const ModelDir& dir, std::unique_ptr<Backend> backend,
                         const ModelRunnerOptions& options)
    : backend_(std::move(backend)),
      model_(Gpt2Model::load(dir, *backend_, options.dtype)),
      max_seq_len_(sequence_limit(dir, options.max_seq_len)),
      max_num_logits_(options.max_num_logits),
      cache_(*backend_, dir.config, cache_dtype(dir, model_, options.kv_cache_dtype),
             options.max_batch_size * ceil_div(max_seq_len_, backend_->kv_block_size())) {
  StepLimits limits = step_limits(options);
  limits.max_context_len = max_seq_len_;
  model_.reserve(limits);
  logits_ = backend_->allocate(static_cast<size_t>(max_num_logits_ * dir.config.vocab_size) *
                               sizeof(float));
  row_indices_.resize(static_cast<size_t>(max_num_logits_));
}

std::span<const float> ModelRunner::run(const Batch& batch) {
  model_.forward(batch, cache_);
  return compute_logits(batch.logits_rows());
}

std::span<const float> ModelRunner::logits(int64_t first_row, int64_t num_rows) {
  CARAVAN_CHECK(num_rows >= 0 && num_rows <= max_num_logits_,
                "logits of {} rows wanted, at most {} were reserved", num_rows, max_num_logits_);
  std::iota(row_indices_.begin(), row_indices_.end(), static_cast<int32_t>(first_row));
  return compute_logits({row_indices_.data(), DType::kI32, Shape{num_rows}});
}

std::span<const float> ModelRunner::compute_logits(const ConstTensor& rows) {
  const int64_t vocab_size = model_.config().vocab_size;
  const Shape shape{rows.shape[0], vocab_size};
  model_.logits(rows, {logits_.data(), DType::kF32, shape});
  backend_->synchronize();
  return {logits_.as<float>(), static_cast<size_t>(shape.num_elements())};
}

}  // namespace caravan
