#include "models/gpt2.h"

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

int64_t matrix_bytes(const LinearWeight& w, bool has_bias) {
  return linear_num_elements(w.layout, w.in_features, w.out_features) *
             static_cast<int64_t>(dtype_size(w.dtype)) +
         (has_bias ? w.out_features * static_cast<int64_t>(sizeof(float)) : 0);
}

/// Hands each value to an observer as float32 in host memory.
class Observation {
 public:
  Observation(Backend& backend, const ForwardObserver& observer)
      : backend_(backend), observer_(observer) {}

  void operator()(const std::string& name, const Tensor& value) {
    if (!observer_) return;
    backend_.synchronize();
    if (backend_.reads_host_memory() && value.dtype == DType::kF32) {
      observer_(name, value);
      return;
    }
    const auto count = static_cast<size_t>(value.shape.num_elements());
    raw_.resize(value.num_bytes());
    values_.resize(count);
    backend_.copy_to_host(value.data, raw_.data(), raw_.size());
    for (size_t i = 0; i < count; ++i) values_[i] = load_as_f32(raw_.data(), value.dtype, i);
    observer_(name, {values_.data(), DType::kF32, value.shape});
  }

 private:
  Backend& backend_;
  const ForwardObserver& observer_;
  std::vector<std::byte> raw_;
  std::vector<float> values_;
};

}  // namespace

/// Where the values of a step of T tokens lie.
struct Gpt2Model::Activations {
  Tensor x;        // [T, hidden_size] f32: the residual stream
  Tensor normed;   // [T, hidden_size] of A; attention's output as well
  Tensor delta;    // [T, hidden_size] of A: what is added to x next
  Tensor qkv;      // [T, 3 * hidden_size] of A
  Tensor inner;    // [T, ffn_size] of A, the same memory
  void* gathered;  // [max_num_logits, hidden_size] of A
};

Gpt2Model::Activations Gpt2Model::activations(int64_t num_tokens) const {
  const int64_t hidden = config_.hidden_size;
  const DType a = activation_dtype_;
  auto* at = activations_.as<std::byte>();
  const auto take = [&](int64_t width, DType dtype) {
    const Tensor tensor{at, dtype, Shape{num_tokens, width}};
    at += buffer_bytes(limits_.max_num_tokens, width, dtype);
    return tensor;
  };
  Activations v{};
  v.x = take(hidden, DType::kF32);
  v.normed = take(hidden, a);
  v.delta = take(hidden, a);
  const Tensor wide = take(wide_size(config_), a);
  v.qkv = {wide.data, a, Shape{num_tokens, 3 * hidden}};
  v.inner = {wide.data, a, Shape{num_tokens, config_.ffn_size}};
  v.gathered = at;
  return v;
}

int64_t Gpt2Model::bytes_per_decode_step() const {
  int64_t total = matrix_bytes(head_, false);
  for (const Layer& layer : layers_) {
    total += matrix_bytes(layer.c_attn, true) + matrix_bytes(layer.attn_c_proj, true) +
             matrix_bytes(layer.c_fc, true) + matrix_bytes(layer.mlp_c_proj, true) +
             4 * config_.hidden_size * static_cast<int64_t>(sizeof(float));
  }
  return total + 2 * config_.hidden_size * static_cast<int64_t>(sizeof(float));
}

int64_t Gpt2Model::num_weight_bytes() const {
  return bytes_per_decode_step() + static_cast<int64_t>(wpe_.num_bytes()) +
         (has_own_head_ ? matrix_bytes(wte_, false) : 0);
}

int64_t Gpt2Model::activation_bytes(const ModelConfig& config, const StepLimits& limits,
                                    DType activation_dtype) {
  const int64_t tokens = limits.max_num_tokens;
  const DType a = activation_dtype;
  int64_t total = 0;
  const auto add = [&](int64_t num_rows, int64_t width, DType dtype) {
    total = checked_add(total, static_cast<int64_t>(buffer_bytes(num_rows, width, dtype)),
                        "activations");
  };
  add(tokens, config.hidden_size, DType::kF32);
  add(tokens, config.hidden_size, a);
  add(tokens, config.hidden_size, a);
  add(tokens, wide_size(config), a);
  add(limits.max_num_logits, config.hidden_size, a);
  return total;
}

WorkspaceSpec Gpt2Model::workspace_spec(const ModelConfig& config, const StepLimits& limits) {
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

void Gpt2Model::reserve(const StepLimits& limits) {
  CARAVAN_CHECK(
      limits.max_num_tokens > 0 && limits.max_num_logits > 0 && limits.max_context_len > 0 &&
          limits.max_context_len <= config_.max_seq_len,
      "step limits: {} tokens, {} rows of logits, context {} (the model has {} positions)",
      limits.max_num_tokens, limits.max_num_logits, limits.max_context_len, config_.max_seq_len);
  activations_ =
      backend_->allocate(static_cast<size_t>(activation_bytes(config_, limits, activation_dtype_)));
  backend_->reserve_workspace(workspace_spec(config_, limits));
  limits_ = limits;
}

void Gpt2Model::forward(const BatchTensors& batch, const KvCache& cache,
                        const ForwardObserver& observer) {
  const int64_t num_tokens = batch.num_tokens();
  CARAVAN_CHECK(num_tokens > 0 && num_tokens <= limits_.max_num_tokens,
                "a batch of {} tokens, at most {} were reserved", num_tokens,
                limits_.max_num_tokens);
  num_tokens_ = num_tokens;
  Backend& backend = *backend_;
  const Activations v = activations(num_tokens);
  Observation observe(backend, observer);
  const auto norm = [&](const LayerNormWeights& weights, const ConstTensor& delta,
                        const float* delta_bias) {
    ops::layer_norm(backend, {.x = v.x,
                              .delta = delta,
                              .delta_bias = delta_bias,
                              .weight = weights.weight,
                              .bias = weights.bias,
                              .epsilon = config_.layer_norm_epsilon,
                              .y = v.normed});
  };
  const auto linear = [&](const Tensor& x, const LinearWeight& weight, Activation activation,
                          const Tensor& y) {
    ops::linear(backend, {.x = x, .weight = weight, .activation = activation, .y = y});
  };

  ops::embedding(backend, {.token_ids = batch.token_ids,
                           .positions = batch.positions,
                           .sampled = batch.sampled,
                           .wte = wte_,
                           .wpe = wpe_,
                           .out = v.x});
  observe("embedding", v.x);
  ConstTensor delta;  // of the layer before
  const float* delta_bias = nullptr;
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = layers_[static_cast<size_t>(i)];
    const KvLayer kv = cache.layer(i);
    const auto name = [&](int64_t index, const char* part) {
      return observer ? fmt::format("h.{}{}", index, part) : std::string();
    };
    norm(layer.ln_1, delta, delta_bias);
    if (i > 0) observe(name(i - 1, ""), v.x);
    observe(name(i, ".ln_1"), v.normed);
    linear(v.normed, layer.c_attn, Activation::kNone, v.qkv);
    observe(name(i, ".attn.c_attn"), v.qkv);
    ops::attention(backend, {.qkv = v.qkv,
                             .slot_mapping = batch.slot_mapping,
                             .batch = batch.attention,
                             .cache = kv,
                             .scale = config_.attention_scale(i),
                             .out = v.normed});
    observe(name(i, ".attn"), v.normed);
    linear(v.normed, layer.attn_c_proj, Activation::kNone, v.delta);
    norm(layer.ln_2, v.delta, layer.attn_c_proj_bias);
    observe(name(i, ".attn.residual"), v.x);
    observe(name(i, ".ln_2"), v.normed);
    linear(v.normed, layer.c_fc, config_.activation, v.inner);
    observe(name(i, ".mlp.act"), v.inner);
    linear(v.inner, layer.mlp_c_proj, Activation::kNone, v.delta);
    delta = v.delta;
    delta_bias = layer.mlp_c_proj_bias;
  }
  norm(ln_f_, delta, delta_bias);
  if (observer) observe(fmt::format("h.{}", config_.num_layers - 1), v.x);
  observe("ln_f", v.normed);
}

void Gpt2Model::logits(const ConstTensor& row_indices, const Tensor& logits) {
  const int64_t num_rows = row_indices.shape[0];
  CARAVAN_CHECK(num_rows <= limits_.max_num_logits,
                "logits of {} rows wanted, at most {} were reserved", num_rows,
                limits_.max_num_logits);
  if (num_rows == 0) return;
  const Activations v = activations(num_tokens_);
  Tensor rows{v.gathered, activation_dtype_, Shape{num_rows, config_.hidden_size}};
  if (row_indices.data != nullptr) {
    ops::gather_rows(*backend_, {.x = v.normed, .rows = row_indices, .out = rows});
  } else {
    CARAVAN_CHECK(num_rows <= num_tokens_, "logits of {} rows wanted, the batch had {} tokens",
                  num_rows, num_tokens_);
    rows.data = v.normed.data;
  }
  ops::linear(*backend_,
              {.x = rows, .weight = head_, .activation = Activation::kNone, .y = logits});
}

}  // namespace caravan
