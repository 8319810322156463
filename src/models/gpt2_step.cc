#include "models/gpt2_step.h"

#include <algorithm>

#include "core/error.h"
#include "ops/ops.h"

namespace caravan {

namespace {

// Elements of one token's row that holds q, k, v and later the MLP's inner activations.
int64_t wide_size(const ModelConfig& config) {
  return std::max(3 * config.hidden_size, config.ffn_size);
}

// Every buffer starts at a multiple of this, for the widest loads of any backend.
constexpr size_t kAlignment = 256;

size_t buffer_bytes(int64_t num_rows, int64_t width, DType dtype) {
  const int64_t elements = checked_mul(num_rows, width, "activations");
  const int64_t bytes =
      checked_mul(elements, static_cast<int64_t>(dtype_size(dtype)), "activations");
  return static_cast<size_t>(round_up(bytes, kAlignment));
}

}  // namespace

int64_t Gpt2Activations::num_bytes(const ModelConfig& config, const StepLimits& limits,
                                   DType activation) {
  const int64_t tokens = limits.max_num_tokens;
  int64_t total = 0;
  const auto add = [&](int64_t num_rows, int64_t width, DType dtype) {
    total = checked_add(total, static_cast<int64_t>(buffer_bytes(num_rows, width, dtype)),
                        "activations");
  };
  add(tokens, config.hidden_size, DType::kF32);
  add(tokens, config.hidden_size, activation);
  add(tokens, config.hidden_size, activation);
  add(tokens, wide_size(config), activation);
  add(limits.max_num_logits, config.hidden_size, activation);
  return total;
}

Gpt2Activations Gpt2Activations::at(void* memory, const ModelConfig& config,
                                    const StepLimits& limits, DType activation,
                                    int64_t num_tokens) {
  const int64_t hidden = config.hidden_size;
  auto* at = static_cast<std::byte*>(memory);
  const auto take = [&](int64_t width, DType dtype) {
    const Tensor tensor{at, dtype, Shape{num_tokens, width}};
    at += buffer_bytes(limits.max_num_tokens, width, dtype);
    return tensor;
  };
  Gpt2Activations v;
  v.x = take(hidden, DType::kF32);
  v.normed = take(hidden, activation);
  v.delta = take(hidden, activation);
  const Tensor wide = take(wide_size(config), activation);
  v.qkv = {wide.data, activation, Shape{num_tokens, 3 * hidden}};
  v.inner = {wide.data, activation, Shape{num_tokens, config.ffn_size}};
  v.gathered = at;
  return v;
}

WorkspaceSpec gpt2_workspace_spec(const ModelConfig& config, const StepLimits& limits) {
  return {.max_num_tokens = std::max(limits.max_num_tokens, limits.max_num_logits),
          .max_num_seqs = limits.max_num_seqs,
          .max_num_logits = limits.max_num_logits,
          .max_in_features = std::max(config.hidden_size, config.ffn_size),
          .max_out_features = std::max(wide_size(config), config.vocab_size),
          .max_context_len = limits.max_context_len,
          .num_heads = config.num_heads,
          .head_dim = config.head_dim(),
          .vocab_size = config.vocab_size};
}

void Gpt2Step::norm(const Gpt2LayerNorm& weights, const ConstTensor& delta,
                    const float* delta_bias) {
  ops::layer_norm(backend_, {.x = values_.x,
                             .delta = delta,
                             .delta_bias = delta_bias,
                             .weight = weights.weight,
                             .bias = weights.bias,
                             .epsilon = config_.layer_norm_epsilon,
                             .y = values_.normed});
}

void Gpt2Step::linear(const Tensor& x, const LinearWeight& weight, Activation activation,
                      const Tensor& y) {
  ops::linear(backend_, {.x = x, .weight = weight, .activation = activation, .y = y});
}

void Gpt2Step::show(const std::string& name, const Tensor& value) {
  backend_.synchronize();
  if (backend_.reads_host_memory() && value.dtype == DType::kF32) {
    hook_(name, value);
    return;
  }
  const auto count = static_cast<size_t>(value.shape.num_elements());
  raw_.resize(value.num_bytes());
  shown_.resize(count);
  backend_.copy_to_host(value.data, raw_.data(), raw_.size());
  convert_elements_in_parallel(raw_.data(), value.dtype, shown_.data(), DType::kF32, count);
  if (!hook_(name, {shown_.data(), DType::kF32, value.shape})) return;
  convert_elements_in_parallel(shown_.data(), DType::kF32, raw_.data(), value.dtype, count);
  backend_.copy_from_host(raw_.data(), value.data, raw_.size());
}

void Gpt2Step::observe(const char* part, const Tensor& value) {
  if (hook_) show(fmt::format("h.{}{}", layer_, part), value);
}

// x += what the layer before left, normed = LayerNorm(x).
void Gpt2Step::add_pending(const Gpt2LayerNorm& weights) {
  norm(weights, delta_, delta_bias_);
  if (is_pending_) observe("", values_.x);
  delta_ = {};
  delta_bias_ = nullptr;
  is_pending_ = false;
}

void Gpt2Step::embed(const Gpt2Embedding& weights, const BatchTensors& batch) {
  ops::embedding(backend_, {.token_ids = batch.token_ids,
                            .positions = batch.positions,
                            .sampled = batch.sampled,
                            .wte = weights.wte,
                            .wpe = weights.wpe,
                            .out = values_.x});
  if (hook_) show("embedding", values_.x);
}

void Gpt2Step::layer(int64_t i, const Gpt2Layer& weights, const BatchTensors& batch,
                     const KvLayer& cache) {
  const Gpt2Activations& v = values_;
  add_pending(weights.ln_1);
  layer_ = i;
  observe(".ln_1", v.normed);
  linear(v.normed, weights.c_attn, Activation::kNone, v.qkv);
  observe(".attn.c_attn", v.qkv);
  ops::attention(backend_, {.qkv = v.qkv,
                            .slot_mapping = batch.slot_mapping,
                            .batch = batch.attention,
                            .cache = cache,
                            .scale = config_.attention_scale(i),
                            .out = v.normed});
  observe(".attn", v.normed);
  linear(v.normed, weights.attn_c_proj, Activation::kNone, v.delta);
  norm(weights.ln_2, v.delta, weights.attn_c_proj_bias);
  observe(".attn.residual", v.x);
  observe(".ln_2", v.normed);
  linear(v.normed, weights.c_fc, config_.activation, v.inner);
  observe(".mlp.act", v.inner);
  linear(v.inner, weights.mlp_c_proj, Activation::kNone, v.delta);
  delta_ = v.delta;
  delta_bias_ = weights.mlp_c_proj_bias;
  is_pending_ = true;
}

void Gpt2Step::finish_layer(const Gpt2LayerNorm& norm) { add_pending(norm); }

void Gpt2Step::final_norm(const Gpt2LayerNorm& ln_f) {
  add_pending(ln_f);
  if (hook_) show("ln_f", values_.normed);
}

}  // namespace caravan
