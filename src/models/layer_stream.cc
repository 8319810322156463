#include "models/layer_stream.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "ops/ops.h"

namespace caravan {

namespace {

// The cache has one layer at a time.
ModelConfig one_layer(ModelConfig config) {
  config.num_layers = 1;
  return config;
}

StepLimits limits_of(const ModelConfig& config, const LayerStreamOptions& options,
                     int64_t max_seq_len) {
  CARAVAN_CHECK(
      options.max_num_batched_tokens > 0 && options.max_num_seqs > 0 && options.max_num_logits > 0,
      "layer stream: steps of {} tokens, {} sequences and {} rows of logits, expected at "
      "least 1 of each",
      options.max_num_batched_tokens, options.max_num_seqs, options.max_num_logits);
  return {.max_num_tokens = std::max(options.max_num_batched_tokens, options.max_num_logits),
          .max_num_seqs = options.max_num_seqs,
          .max_num_logits = options.max_num_logits,
          .max_context_len = max_seq_len > 0 ? max_seq_len : config.max_seq_len};
}

int64_t checked_seq_len(const ModelDir& dir, int64_t wanted) {
  int64_t limit = dir.config.max_seq_len;
  if (dir.build) limit = std::min(limit, dir.build->max_input_len + dir.build->max_output_len);
  CARAVAN_CHECK(wanted <= limit, "{}: sequences of {} tokens wanted, the {} allows {}", dir.path,
                wanted, dir.build ? "engine" : "model", limit);
  return wanted > 0 ? wanted : limit;
}

// Blocks for one sequence of the longest kind or a step of many, each of which wastes less than a
// block.
int64_t num_cache_blocks(const StepLimits& limits, int64_t block_size) {
  const int64_t many = limits.max_num_tokens / block_size + limits.max_num_seqs;
  return std::max(ceil_div(limits.max_context_len, block_size), many);
}

DType cache_dtype(const ModelDir& dir, const Backend& backend, DType weights,
                  std::optional<DType> wanted) {
  const DType dtype = wanted.value_or(dir.build ? dir.build->kv_cache_dtype : weights);
  CARAVAN_CHECK_CODE(backend.takes_kv_dtype(dtype, weights), kUnsupported,
                     "a {} KV cache with {} weights: {} does not have it; use --kv-cache-dtype {}",
                     dtype_name(dtype), dtype_name(weights), backend.description(),
                     dtype_name(backend.activation_dtype(weights)));
  return dtype;
}

DeviceBatchLimits batch_limits(const StepLimits& limits, int64_t block_size) {
  return {.max_num_tokens = limits.max_num_tokens,
          .max_num_seqs = limits.max_num_seqs,
          .max_num_logits = limits.max_num_logits,
          .max_blocks_per_seq = ceil_div(limits.max_context_len, block_size)};
}

KvScales scales_of_layer(const KvScales& all, int64_t layer, int64_t num_heads) {
  if (all.is_empty()) return {};
  const auto cut = [&](const std::vector<float>& values) {
    const auto first = static_cast<size_t>(layer * num_heads);
    const auto last = first + static_cast<size_t>(num_heads);
    CARAVAN_CHECK(last <= values.size(), "KV scales of {} heads, layer {} needs heads {} to {}",
                  values.size(), layer, first, last);
    return std::vector<float>(values.begin() + static_cast<std::ptrdiff_t>(first),
                              values.begin() + static_cast<std::ptrdiff_t>(last));
  };
  return {.k = cut(all.k), .v = cut(all.v)};
}

}  // namespace

LayerStreamBytes LayerStream::num_bytes(const ModelConfig& config, const Backend& backend,
                                        DType dtype, const LayerStreamOptions& options) {
  const StepLimits limits = limits_of(config, options, options.max_seq_len);
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  LayerStreamBytes bytes;
  int64_t embedding = 0;
  int64_t layer = 0;
  int64_t head = 0;  // an own one is as large as wte, a tied one is wte
  for (const WeightSpec& spec : gpt2_weight_specs(one_layer(config), false)) {
    int64_t size = checked_mul(spec.shape.num_elements(), element, "weights");
    if (spec.role == WeightRole::kVector) {
      size = spec.shape.num_elements() * static_cast<int64_t>(sizeof(float));
    } else if (spec.role != WeightRole::kPositionEmbedding) {
      size = checked_mul(
          linear_num_elements(backend.linear_layout(dtype), spec.in_features, spec.out_features),
          element, "weights");
    }
    int64_t& part = spec.name.starts_with("h.")     ? layer
                    : spec.name.starts_with("ln_f") ? head
                                                    : embedding;
    part = checked_add(part, size, "weights");
    if (spec.role == WeightRole::kTokenEmbedding) head = checked_add(head, size, "weights");
    bytes.source =
        std::max(bytes.source, spec.shape.num_elements() * static_cast<int64_t>(sizeof(float)));
  }
  bytes.weights = std::max({embedding, layer, head});
  const DType kv_dtype = options.kv_cache_dtype.value_or(dtype);
  bytes.kv_cache =
      checked_mul(KvCache::block_bytes(one_layer(config), kv_dtype, backend.kv_block_size()),
                  num_cache_blocks(limits, backend.kv_block_size()), "KV cache");
  if (is_quantized_kv(kv_dtype)) {
    bytes.kv_cache += 2 * config.num_heads * static_cast<int64_t>(sizeof(float));
  }
  const DType activation = backend.activation_dtype(dtype);
  const int64_t zeros =
      limits.max_num_tokens * config.hidden_size * static_cast<int64_t>(dtype_size(activation));
  const int64_t logits = limits.max_num_logits * backend.row_stride(config.vocab_size) *
                         static_cast<int64_t>(sizeof(float));
  bytes.workspace =
      Gpt2Activations::num_bytes(config, limits, activation) + zeros + logits +
      static_cast<int64_t>(backend.workspace_bytes(gpt2_workspace_spec(config, limits)));
  if (!backend.reads_host_memory()) {
    bytes.workspace += static_cast<int64_t>(DeviceBatch::num_bytes(
        batch_limits(limits, backend.kv_block_size()), backend.query_tile()));
  }
  return bytes;
}

LayerStream::LayerStream(const ModelDir& dir, std::unique_ptr<Backend> backend,
                         const LayerStreamOptions& options)
    : backend_(std::move(backend)),
      weights_(
          Gpt2Weights::open(dir, *backend_, options.dtype,
                            options.verify_weights ? WeightCheck::kAtLoad : WeightCheck::kNone)),
      activation_dtype_(backend_->activation_dtype(weights_.dtype())),
      kv_dtype_(cache_dtype(dir, *backend_, weights_.dtype(), options.kv_cache_dtype)),
      kv_scales_(options.kv_scales.is_empty() ? kv_scales_of(dir, kv_dtype_) : options.kv_scales),
      limits_(limits_of(config(), options, checked_seq_len(dir, options.max_seq_len))),
      num_blocks_(num_cache_blocks(limits_, backend_->kv_block_size())),
      logits_stride_(backend_->row_stride(config().vocab_size)),
      batch_(backend_->kv_block_size()) {
  activations_ = backend_->allocate(
      static_cast<size_t>(Gpt2Activations::num_bytes(config(), limits_, activation_dtype_)));
  zeros_ = backend_->allocate(static_cast<size_t>(limits_.max_num_tokens * config().hidden_size) *
                              dtype_size(activation_dtype_));
  logits_ = backend_->allocate(static_cast<size_t>(limits_.max_num_logits * logits_stride_) *
                               sizeof(float));
  backend_->reserve_workspace(gpt2_workspace_spec(config(), limits_));
  if (!backend_->reads_host_memory()) {
    device_batch_.emplace(*backend_, batch_limits(limits_, backend_->kv_block_size()));
  }
}

void LayerStream::unload() {
  part_ = Part::kNone;
  buffers_.clear();
  weights_.release_pages();
}

void LayerStream::load_embedding() {
  unload();
  embedding_ = weights_.load_embedding(buffers_);
  part_ = Part::kEmbedding;
}

void LayerStream::load_layer(int64_t index) {
  CARAVAN_CHECK(index >= 0 && index < config().num_layers, "layer {}: the model has {}", index,
                config().num_layers);
  unload();
  // One layer's cache serves all of them: every sequence starts anew in each. The scales of a
  // quantized one are the layer's own.
  if (!cache_ || is_quantized_kv(kv_dtype_)) {
    cache_.reset();
    cache_.emplace(*backend_, one_layer(config()), kv_dtype_, num_blocks_,
                   scales_of_layer(kv_scales_, index, config().num_heads));
  }
  layer_ = weights_.load_layer(index, buffers_);
  layer_index_ = index;
  part_ = Part::kLayer;
}

void LayerStream::load_head() {
  unload();
  head_ = weights_.load_head(nullptr, buffers_);
  part_ = Part::kHead;
}

void LayerStream::check_loaded(Part part, const char* name) const {
  CARAVAN_CHECK(part_ == part, "layer stream: the {} is not loaded", name);
}

void LayerStream::embed(std::span<const int32_t> ids, std::span<const int64_t> lengths,
                        std::span<float> states, const Hook& hook) {
  check_loaded(Part::kEmbedding, "embedding");
  CARAVAN_CHECK(static_cast<int64_t>(ids.size()) * config().hidden_size ==
                    static_cast<int64_t>(states.size()),
                "layer stream: states of {} values for {} tokens of {}", states.size(), ids.size(),
                config().hidden_size);
  for (const int32_t id : ids) {
    CARAVAN_CHECK(id >= 0 && id < config().vocab_size,
                  "token id {} is outside the vocabulary of {}", id, config().vocab_size);
  }
  run_steps(ids, lengths, states, hook);
}

void LayerStream::run_layer(std::span<const int64_t> lengths, std::span<float> states,
                            const Hook& hook) {
  check_loaded(Part::kLayer, "layer");
  // Layers read no ids.
  const std::vector<int32_t> ids(states.size() / static_cast<size_t>(config().hidden_size), 0);
  run_steps(ids, lengths, states, hook);
}

void LayerStream::run_steps(std::span<const int32_t> ids, std::span<const int64_t> lengths,
                            std::span<float> states, const Hook& hook) {
  const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  CARAVAN_CHECK(total * config().hidden_size == static_cast<int64_t>(states.size()),
                "layer stream: sequences of {} tokens in all, states of {} values, expected {}",
                total, states.size(), total * config().hidden_size);
  int64_t first_token = 0;  // of the step
  int64_t next_block = 0;
  batch_.clear();
  const auto flush = [&] {
    if (batch_.num_tokens() == 0) return;
    run_step(first_token, states.data() + first_token * config().hidden_size, hook);
    first_token += batch_.num_tokens();
    next_block = 0;
    batch_.clear();
  };
  int64_t sequence_start = 0;
  for (const int64_t length : lengths) {
    CARAVAN_CHECK(length > 0 && length <= limits_.max_context_len,
                  "layer stream: a sequence of {} tokens, expected 1 to {}", length,
                  limits_.max_context_len);
    if (batch_.num_tokens() + length > limits_.max_num_tokens ||
        batch_.num_seqs() == limits_.max_num_seqs) {
      flush();
    }
    const int64_t num_blocks = ceil_div(length, backend_->kv_block_size());
    std::vector<int32_t> block_table(static_cast<size_t>(num_blocks));
    std::iota(block_table.begin(), block_table.end(), static_cast<int32_t>(next_block));
    next_block += num_blocks;
    for (int64_t begin = 0; begin < length; begin += limits_.max_num_tokens) {
      if (begin > 0) flush();
      batch_.add_sequence(ids.data() + sequence_start + begin,
                          std::min(limits_.max_num_tokens, length - begin), begin, block_table,
                          LogitsWanted::kNone);
    }
    if (length > limits_.max_num_tokens) flush();  // its blocks may fill the cache
    sequence_start += length;
  }
  flush();
  weights_.check_unchanged();
}

BatchTensors LayerStream::prepare() {
  batch_.validate(config().vocab_size, limits_.max_context_len, num_blocks_);
  if (!device_batch_) return batch_.tensors();
  const BatchTensors tensors =
      device_batch_->prepare(batch_, 0, batch_.max_context_len(), nullptr, 0, 0);
  device_batch_->copy(0);
  return tensors;
}

Gpt2Activations LayerStream::activations(int64_t num_tokens) const {
  return Gpt2Activations::at(activations_.data(), config(), limits_, activation_dtype_, num_tokens);
}

// The batch through the resident part; `states` are its rows.
void LayerStream::run_step(int64_t first_token, float* states, const Hook& hook) {
  const BatchTensors tensors = prepare();
  const int64_t num_tokens = batch_.num_tokens();
  OpHook op_hook;
  if (hook) {
    op_hook = [&](std::string_view name, const Tensor& value) {
      return hook(name, first_token, value);
    };
  }
  const Gpt2Activations values = activations(num_tokens);
  Gpt2Step step(config(), *backend_, values, op_hook);
  if (part_ == Part::kEmbedding) {
    step.embed(embedding_, tensors);
  } else {
    backend_->copy_from_host(states, values.x.data, values.x.num_bytes());
    if (layer_index_ > 0) {
      step.continue_after_layer({zeros_.data(), activation_dtype_, values.normed.shape});
    }
    step.layer(layer_index_, layer_, tensors, cache_->layer(0));
    step.finish_layer(layer_.ln_1);
  }
  backend_->synchronize();
  backend_->copy_to_host(values.x.data, states, values.x.num_bytes());
}

void LayerStream::run_head(std::span<const float> states, const OnLogits& on_logits,
                           const Hook& hook) {
  check_loaded(Part::kHead, "head");
  const int64_t hidden = config().hidden_size;
  const int64_t vocab = config().vocab_size;
  const int64_t total = static_cast<int64_t>(states.size()) / hidden;
  CARAVAN_CHECK(total * hidden == static_cast<int64_t>(states.size()),
                "layer stream: states of {} values, expected rows of {}", states.size(), hidden);
  for (int64_t first = 0; first < total; first += limits_.max_num_logits) {
    const int64_t num_rows = std::min(limits_.max_num_logits, total - first);
    OpHook op_hook;
    if (hook) {
      op_hook = [&](std::string_view name, const Tensor& value) {
        return hook(name, first, value);
      };
    }
    const Gpt2Activations values = activations(num_rows);
    Gpt2Step step(config(), *backend_, values, op_hook);
    backend_->copy_from_host(states.data() + first * hidden, values.x.data, values.x.num_bytes());
    step.continue_after_layer({zeros_.data(), activation_dtype_, values.normed.shape});
    step.final_norm(head_.ln_f);
    ops::linear(*backend_, {.x = values.normed,
                            .weight = head_.head,
                            .activation = Activation::kNone,
                            .y = {logits_.data(), DType::kF32, Shape{num_rows, logits_stride_}}});
    backend_->synchronize();
    const float* logits = logits_.as<float>();
    if (!backend_->reads_host_memory() || logits_stride_ != vocab) {
      host_logits_.resize(static_cast<size_t>(num_rows * vocab));
      for (int64_t i = 0; i < num_rows; ++i) {
        backend_->copy_to_host(logits_.as<float>() + i * logits_stride_,
                               host_logits_.data() + i * vocab,
                               static_cast<size_t>(vocab) * sizeof(float));
      }
      logits = host_logits_.data();
    }
    weights_.check_unchanged();
    on_logits(first, {const_cast<float*>(logits), DType::kF32, Shape{num_rows, vocab}});
  }
}

}  // namespace caravan
