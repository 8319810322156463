#include "models/gpt2.h"

#include "core/error.h"
#include "core/progress.h"
#include "ops/ops.h"

namespace caravan {

namespace {

int64_t matrix_bytes(const LinearWeight& w, bool has_bias) {
  return linear_num_elements(w.layout, w.in_features, w.out_features) *
             static_cast<int64_t>(dtype_size(w.dtype)) +
         (has_bias ? w.out_features * static_cast<int64_t>(sizeof(float)) : 0);
}

}  // namespace

Gpt2Model Gpt2Model::load(const ModelDir& dir, Backend& backend, std::optional<DType> dtype,
                          bool is_verified) {
  const WeightCheck check = is_verified ? WeightCheck::kInBackground : WeightCheck::kNone;
  return {Gpt2Weights::open(dir, backend, dtype, check), backend};
}

Gpt2Model Gpt2Model::random(const ModelConfig& config, Backend& backend, DType dtype,
                            uint64_t seed) {
  return {Gpt2Weights::random(config, backend, dtype, seed), backend};
}

Gpt2Model::Gpt2Model(Gpt2Weights weights, Backend& backend)
    : backend_(&backend),
      weights_(std::move(weights)),
      activation_dtype_(backend.activation_dtype(weights_.dtype())) {
  Progress progress("loading", weights_.num_stored_bytes(), "B");
  embedding_ = weights_.load_embedding(buffers_, &progress);
  for (int64_t i = 0; i < config().num_layers; ++i) {
    layers_.push_back(weights_.load_layer(i, buffers_, &progress));
  }
  head_ = weights_.load_head(&embedding_, buffers_, &progress);
  weights_.finish_load();
}

void Gpt2Model::check_weights() const {
  weights_.wait_until_checked();
  weights_.check_unchanged();
}

Gpt2Activations Gpt2Model::activations(int64_t num_tokens) const {
  return Gpt2Activations::at(activations_.data(), config(), limits_, activation_dtype_, num_tokens);
}

int64_t Gpt2Model::bytes_per_decode_step() const {
  const int64_t norm = 2 * config().hidden_size * static_cast<int64_t>(sizeof(float));
  int64_t total = matrix_bytes(head_.head, false) + norm;
  for (const Gpt2Layer& layer : layers_) {
    total += matrix_bytes(layer.c_attn, true) + matrix_bytes(layer.attn_c_proj, true) +
             matrix_bytes(layer.c_fc, true) + matrix_bytes(layer.mlp_c_proj, true) + 2 * norm;
  }
  return total;
}

int64_t Gpt2Model::num_weight_bytes() const {
  return bytes_per_decode_step() + static_cast<int64_t>(embedding_.wpe.num_bytes()) +
         (has_own_head() ? matrix_bytes(embedding_.wte, false) : 0);
}

void Gpt2Model::reserve(const StepLimits& limits) {
  CARAVAN_CHECK(
      limits.max_num_tokens > 0 && limits.max_num_logits > 0 && limits.max_context_len > 0 &&
          limits.max_context_len <= config().max_seq_len,
      "step limits: {} tokens, {} rows of logits, context {} (the model has {} positions)",
      limits.max_num_tokens, limits.max_num_logits, limits.max_context_len, config().max_seq_len);
  activations_ = backend_->allocate(
      static_cast<size_t>(activation_bytes(config(), limits, activation_dtype_)));
  backend_->reserve_workspace(workspace_spec(config(), limits));
  limits_ = limits;
}

void Gpt2Model::forward(const BatchTensors& batch, const KvCache& cache,
                        const ForwardObserver& observer) {
  const int64_t num_tokens = batch.num_tokens();
  CARAVAN_CHECK(num_tokens > 0 && num_tokens <= limits_.max_num_tokens,
                "a batch of {} tokens, at most {} were reserved", num_tokens,
                limits_.max_num_tokens);
  num_tokens_ = num_tokens;
  OpHook hook;
  if (observer) {
    hook = [&](std::string_view name, const Tensor& value) {
      observer(name, value);
      return false;
    };
  }
  const Gpt2Activations values = activations(num_tokens);
  Gpt2Step step(config(), *backend_, values, hook);
  step.embed(embedding_, batch);
  for (int64_t i = 0; i < config().num_layers; ++i) {
    step.layer(i, layers_[static_cast<size_t>(i)], batch, cache.layer(i));
  }
  step.final_norm(head_.ln_f);
}

void Gpt2Model::logits(const ConstTensor& row_indices, const Tensor& logits) {
  const int64_t num_rows = row_indices.shape[0];
  CARAVAN_CHECK(num_rows <= limits_.max_num_logits,
                "logits of {} rows wanted, at most {} were reserved", num_rows,
                limits_.max_num_logits);
  if (num_rows == 0) return;
  const Gpt2Activations v = activations(num_tokens_);
  Tensor rows{v.gathered, activation_dtype_, Shape{num_rows, config().hidden_size}};
  if (row_indices.data != nullptr) {
    ops::gather_rows(*backend_, {.x = v.normed, .rows = row_indices, .out = rows});
  } else {
    CARAVAN_CHECK(num_rows <= num_tokens_, "logits of {} rows wanted, the batch had {} tokens",
                  num_rows, num_tokens_);
    rows.data = v.normed.data;
  }
  ops::linear(*backend_,
              {.x = rows, .weight = head_.head, .activation = Activation::kNone, .y = logits});
}

}  // namespace caravan
