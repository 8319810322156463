#include "models/gpt2.h"

#include <algorithm>

#include "core/error.h"
#include "ops/ops.h"

namespace caravan {

namespace {

// Floats of one token's activations: x, normed (also attention's output) and one wide row that
// holds q, k, v and later the MLP's inner activations.
int64_t wide_size(const ModelConfig& config) {
  return std::max(3 * config.hidden_size, config.ffn_size);
}

Tensor rows(float* data, int64_t num_rows, int64_t width) {
  return {data, DType::kF32, Shape{num_rows, width}};
}

int64_t matrix_bytes(const LinearWeight& w) {
  return linear_num_elements(w.layout, w.in_features, w.out_features) *
             static_cast<int64_t>(dtype_size(w.dtype)) +
         (w.bias != nullptr ? w.out_features * static_cast<int64_t>(sizeof(float)) : 0);
}

}  // namespace

int64_t Gpt2Model::bytes_per_decode_step() const {
  int64_t total = matrix_bytes(head_);
  for (const Layer& layer : layers_) {
    total += matrix_bytes(layer.c_attn) + matrix_bytes(layer.attn_c_proj) +
             matrix_bytes(layer.c_fc) + matrix_bytes(layer.mlp_c_proj) +
             4 * config_.hidden_size * static_cast<int64_t>(sizeof(float));
  }
  return total + 2 * config_.hidden_size * static_cast<int64_t>(sizeof(float));
}

int64_t Gpt2Model::num_weight_bytes() const {
  return bytes_per_decode_step() + static_cast<int64_t>(wpe_.num_bytes()) +
         (has_own_head_ ? matrix_bytes(wte_) : 0);
}

int64_t Gpt2Model::activation_bytes(const ModelConfig& config, const StepLimits& limits) {
  const int64_t per_token = 2 * config.hidden_size + wide_size(config);
  const int64_t floats = checked_add(
      checked_mul(limits.max_num_tokens, per_token, "activations"),
      checked_mul(limits.max_num_logits, config.hidden_size, "activations"), "activations");
  return checked_mul(floats, sizeof(float), "activations");
}

WorkspaceSpec Gpt2Model::workspace_spec(const ModelConfig& config, const StepLimits& limits) {
  return {.max_num_tokens = std::max(limits.max_num_tokens, limits.max_num_logits),
          .max_in_features = std::max(config.hidden_size, config.ffn_size),
          .max_out_features = std::max(wide_size(config), config.vocab_size),
          .max_context_len = limits.max_context_len,
          .head_dim = config.head_dim()};
}

void Gpt2Model::reserve(const StepLimits& limits) {
  CARAVAN_CHECK(
      limits.max_num_tokens > 0 && limits.max_num_logits > 0 && limits.max_context_len > 0 &&
          limits.max_context_len <= config_.max_seq_len,
      "step limits: {} tokens, {} rows of logits, context {} (the model has {} positions)",
      limits.max_num_tokens, limits.max_num_logits, limits.max_context_len, config_.max_seq_len);
  activations_ = backend_->allocate(static_cast<size_t>(activation_bytes(config_, limits)));
  backend_->reserve_workspace(workspace_spec(config_, limits));
  limits_ = limits;
}

void Gpt2Model::forward(const Batch& batch, const KvCache& cache, const ForwardObserver& observer) {
  const int64_t num_tokens = batch.num_tokens();
  CARAVAN_CHECK(num_tokens > 0 && num_tokens <= limits_.max_num_tokens,
                "a batch of {} tokens, at most {} were reserved", num_tokens,
                limits_.max_num_tokens);
  batch.validate(config_.vocab_size, limits_.max_context_len, cache.num_blocks());
  num_tokens_ = num_tokens;
  const int64_t hidden = config_.hidden_size;
  auto* base = activations_.as<float>();
  const Tensor x = rows(base, num_tokens, hidden);
  const Tensor normed = rows(base + limits_.max_num_tokens * hidden, num_tokens, hidden);
  float* wide = base + 2 * limits_.max_num_tokens * hidden;
  const Tensor qkv = rows(wide, num_tokens, 3 * hidden);
  const Tensor inner = rows(wide, num_tokens, config_.ffn_size);
  const ops::AttentionBatch attention = batch.attention();
  const auto observe = [&](const std::string& name, const Tensor& value) {
    if (!observer) return;
    backend_->synchronize();
    observer(name, value);
  };
  const ConstTensor no_residual;

  ops::embedding(*backend_, batch.token_ids(), batch.positions(), wte_, wpe_, x);
  observe("embedding", x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = layers_[static_cast<size_t>(i)];
    const KvLayer kv = cache.layer(i);
    const auto name = [&](const char* part) {
      return observer ? fmt::format("h.{}{}", i, part) : std::string();
    };
    ops::layer_norm(*backend_, x, layer.ln_1.weight, layer.ln_1.bias, config_.layer_norm_epsilon,
                    normed);
    observe(name(".ln_1"), normed);
    ops::linear(*backend_, normed, layer.c_attn, Activation::kNone, no_residual, qkv);
    observe(name(".attn.c_attn"), qkv);
    ops::append_kv(*backend_, qkv, batch.slot_mapping(), kv);
    ops::attention(*backend_, qkv, attention, kv, config_.attention_scale(i), normed);
    observe(name(".attn"), normed);
    ops::linear(*backend_, normed, layer.attn_c_proj, Activation::kNone, x, x);
    observe(name(".attn.residual"), x);
    ops::layer_norm(*backend_, x, layer.ln_2.weight, layer.ln_2.bias, config_.layer_norm_epsilon,
                    normed);
    observe(name(".ln_2"), normed);
    ops::linear(*backend_, normed, layer.c_fc, config_.activation, no_residual, inner);
    observe(name(".mlp.act"), inner);
    ops::linear(*backend_, inner, layer.mlp_c_proj, Activation::kNone, x, x);
    observe(name(""), x);
  }
  ops::layer_norm(*backend_, x, ln_f_.weight, ln_f_.bias, config_.layer_norm_epsilon, normed);
  observe("ln_f", normed);
}

void Gpt2Model::logits(const ConstTensor& row_indices, const Tensor& logits) {
  const int64_t num_rows = row_indices.shape[0];
  CARAVAN_CHECK(num_rows <= limits_.max_num_logits,
                "logits of {} rows wanted, at most {} were reserved", num_rows,
                limits_.max_num_logits);
  if (num_rows == 0) return;
  const int64_t hidden = config_.hidden_size;
  auto* base = activations_.as<float>();
  const Tensor normed = rows(base + limits_.max_num_tokens * hidden, num_tokens_, hidden);
  const Tensor gathered =
      rows(base + limits_.max_num_tokens * (2 * hidden + wide_size(config_)), num_rows, hidden);
  ops::gather_rows(*backend_, normed, row_indices, gathered);
  ops::linear(*backend_, gathered, head_, Activation::kNone, ConstTensor(), logits);
}

}  // namespace caravan
