#include "engine/model_runner.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "ops/ops.h"

namespace caravan {

namespace {

DType cache_dtype(const ModelDir& dir, const Gpt2Model& model, std::optional<DType> wanted) {
  if (wanted) return *wanted;
  return dir.build ? dir.build->kv_cache_dtype : model.weight_dtype();
}

DType checked_cache_dtype(const ModelDir& dir, const Backend& backend, const Gpt2Model& model,
                          std::optional<DType> wanted) {
  const DType dtype = cache_dtype(dir, model, wanted);
  CARAVAN_CHECK_CODE(backend.takes_kv_dtype(dtype, model.weight_dtype()), kUnsupported,
                     "a {} KV cache with {} weights: {} does not have it; use --kv-cache-dtype {}",
                     dtype_name(dtype), dtype_name(model.weight_dtype()), backend.description(),
                     dtype_name(backend.activation_dtype(model.weight_dtype())));
  return dtype;
}

// Options with the scales that a quantized cache will have; before the weights are read, because
// only a dtype that was asked for can be quantized.
ModelRunnerOptions with_kv_scales(const ModelDir& dir, ModelRunnerOptions options, bool is_random) {
  std::optional<DType> dtype = options.kv_cache_dtype;
  if (!dtype && dir.build) dtype = dir.build->kv_cache_dtype;
  if (!dtype || !options.kv_scales.is_empty()) return options;
  options.kv_scales =
      is_random ? random_model_kv_scales(dir.config, *dtype) : kv_scales_of(dir, *dtype);
  return options;
}

DeviceBatchLimits device_batch_limits(const StepLimits& limits, const Backend& backend) {
  return {.max_num_tokens = limits.max_num_tokens,
          .max_num_seqs = limits.max_num_seqs,
          .max_num_logits = limits.max_num_logits,
          .max_blocks_per_seq = ceil_div(limits.max_context_len, backend.kv_block_size())};
}

// Decode steps are recorded for these numbers of rows; smaller batches are padded.
int64_t row_bucket(int64_t num_rows, int64_t limit) {
  int64_t bucket = 1;
  while (bucket < num_rows)
    bucket = bucket < 8 ? bucket * 2 : bucket < 64 ? bucket + 8 : bucket + 32;
  return std::min(bucket, std::max(num_rows, limit));
}

// Contexts up to which a recorded step works: 256, 512, 1024, ...
int64_t context_bucket(int64_t context_len, int64_t limit) {
  int64_t bucket = 256;
  while (bucket < context_len) bucket *= 2;
  return std::min(bucket, std::max(context_len, limit));
}

// What Backend::sample() does not know.
bool is_chosen_by_host(const SamplingParams& p) {
  return p.min_p > 0 || p.presence_penalty != 0 || p.frequency_penalty != 0 ||
         !p.logit_bias.empty() || p.min_output_len > 0;
}

/// Of SampleOp::seen.
int64_t seen_bytes(int64_t num_slots, int64_t vocab_size) {
  return num_slots * ceil_div(vocab_size, 32) * static_cast<int64_t>(sizeof(uint32_t));
}

/// The last token of the batch is the last there is: a scored prompt chunk may have more after it.
bool ends_history(const Batch& batch, size_t row, const SampleRequest& request) {
  return batch.logits_position(row) + 1 >= static_cast<int64_t>(request.history.size());
}

}  // namespace

StepLimits step_limits(const ModelRunnerOptions& options) {
  return {.max_num_tokens = std::max(options.max_num_batched_tokens, options.max_batch_size),
          .max_num_seqs = options.max_batch_size,
          .max_num_logits = std::max(options.max_num_logits, options.max_batch_size),
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
                                     const StepLimits& limits, DType dtype) {
  const int64_t logits = checked_mul(
      checked_mul(limits.max_num_logits, backend.row_stride(config.vocab_size), "logits"),
      sizeof(float), "logits");
  const auto scratch =
      static_cast<int64_t>(backend.workspace_bytes(Gpt2Model::workspace_spec(config, limits)));
  const int64_t activations =
      Gpt2Model::activation_bytes(config, limits, backend.activation_dtype(dtype));
  int64_t total = checked_add(checked_add(activations, logits, "workspace"), scratch, "workspace");
  if (!backend.reads_host_memory()) {
    const int64_t tokens = 2 * limits.max_num_logits * static_cast<int64_t>(sizeof(int32_t));
    total += static_cast<int64_t>(DeviceBatch::num_bytes(device_batch_limits(limits, backend),
                                                         backend.query_tile())) +
             tokens;
  }
  if (backend.samples_on_device()) total += seen_bytes(limits.max_num_seqs, config.vocab_size);
  return total;
}

ModelRunner::ModelRunner(const ModelDir& dir, std::unique_ptr<Backend> backend,
                         const ModelRunnerOptions& options)
    : ModelRunner(dir, std::move(backend), with_kv_scales(dir, options, false), std::nullopt) {}

ModelRunner ModelRunner::random(const ModelDir& dir, std::unique_ptr<Backend> backend,
                                const ModelRunnerOptions& options) {
  return ModelRunner(dir, std::move(backend), with_kv_scales(dir, options, true), kRandomSeed);
}

ModelRunner::ModelRunner(const ModelDir& dir, std::unique_ptr<Backend> backend,
                         const ModelRunnerOptions& options, std::optional<uint64_t> seed)
    : backend_(std::move(backend)),
      model_(seed ? Gpt2Model::random(dir.config, *backend_, options.dtype.value_or(DType::kF16),
                                      *seed)
                  : Gpt2Model::load(dir, *backend_, options.dtype, options.verify_weights)),
      max_seq_len_(sequence_limit(dir, options.max_seq_len)),
      max_num_logits_(step_limits(options).max_num_logits),
      cache_(*backend_, dir.config,
             checked_cache_dtype(dir, *backend_, model_, options.kv_cache_dtype),
             options.num_kv_blocks > 0
                 ? options.num_kv_blocks
                 : options.max_batch_size * ceil_div(max_seq_len_, backend_->kv_block_size()),
             options.kv_scales),
      logits_stride_(backend_->row_stride(dir.config.vocab_size)),
      max_batch_size_(options.max_batch_size) {
  StepLimits limits = step_limits(options);
  limits.max_context_len = max_seq_len_;
  model_.reserve(limits);
  logits_ =
      backend_->allocate(static_cast<size_t>(max_num_logits_ * logits_stride_) * sizeof(float));
  row_indices_.resize(static_cast<size_t>(max_num_logits_));
  if (backend_->reads_host_memory()) return;
  device_batch_.emplace(*backend_, device_batch_limits(limits, *backend_));
  const size_t tokens_bytes = static_cast<size_t>(max_num_logits_) * sizeof(int32_t);
  device_rows_ = backend_->allocate(tokens_bytes);
  sampled_ = backend_->allocate(tokens_bytes);
  for (Step& step : steps_) step.device_tokens = backend_->allocate_host(tokens_bytes);
  if (!backend_->samples_on_device()) return;
  // Now, because later the cache may have taken what is free.
  seen_ = backend_->allocate(
      static_cast<size_t>(seen_bytes(options.max_batch_size, dir.config.vocab_size)));
  const auto num_ids = static_cast<size_t>(options.max_batch_size * max_seq_len_);
  for (Step& step : steps_) step.prompts = backend_->allocate_host(num_ids * sizeof(int32_t));
}

BatchTensors ModelRunner::prepare(const Batch& batch, int64_t num_rows, int64_t max_context_len,
                                  std::span<const RowSampling> sampling) {
  batch.validate(model_.config().vocab_size, max_seq_len_, cache_.num_blocks(), num_sampled_);
  if (!device_batch_) return batch.tensors();
  BatchTensors tensors = device_batch_->prepare(batch, num_rows, max_context_len, sampling.data(),
                                                sampling.size_bytes(), step_slot());
  if (num_sampled_ > 0) tensors.sampled = {sampled_.data(), DType::kI32, Shape{num_sampled_}};
  return tensors;
}

void ModelRunner::forward(const Batch& batch, const ForwardObserver& observer) {
  if (observer) model_.check_weights();
  num_sampled_ = 0;
  const BatchTensors tensors = prepare(batch, 0, batch.max_context_len(), {});
  if (device_batch_) device_batch_->copy(step_slot());
  model_.forward(tensors, cache_, observer);
  if (device_batch_) backend_->synchronize();
}

std::span<const float> ModelRunner::run(const Batch& batch) {
  num_sampled_ = 0;
  const BatchTensors tensors = prepare(batch, 0, batch.max_context_len(), {});
  if (device_batch_) device_batch_->copy(step_slot());
  model_.forward(tensors, cache_);
  return compute_logits(tensors.logits_rows);
}

std::span<const float> ModelRunner::logits(int64_t first_row, int64_t num_rows) {
  check_logits_rows(num_rows);
  const std::span<int32_t> rows(row_indices_.data(), static_cast<size_t>(num_rows));
  std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first_row));
  return logits(rows);
}

std::span<const float> ModelRunner::logits(std::span<const int32_t> rows) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  check_logits_rows(num_rows);
  const void* data = rows.data();
  if (device_batch_) {
    data = device_rows_.data();
    backend_->copy_from_host(rows.data(), device_rows_.data(), rows.size_bytes());
  }
  return compute_logits({data, DType::kI32, Shape{num_rows}});
}

void ModelRunner::check_logits_rows(int64_t num_rows) const {
  CARAVAN_CHECK(num_rows >= 0 && num_rows <= max_num_logits_,
                "logits of {} rows wanted, at most {} were reserved", num_rows, max_num_logits_);
}

Tensor ModelRunner::logits_tensor(int64_t num_rows) const {
  return {logits_.data(), DType::kF32, Shape{num_rows, logits_stride_}};
}

std::span<const float> ModelRunner::compute_logits(const ConstTensor& rows) {
  const int64_t num_rows = rows.shape[0];
  const auto vocab_size = static_cast<size_t>(model_.config().vocab_size);
  model_.logits(rows, logits_tensor(num_rows));
  backend_->synchronize();
  model_.check_weights();
  const auto size = static_cast<size_t>(num_rows) * vocab_size;
  if (!device_batch_) return {logits_.as<float>(), size};
  for (int64_t row = 0; row < num_rows; ++row) copy_logits_to_host(row);
  return {host_logits_.as<float>(), size};
}

void ModelRunner::copy_logits_to_host(int64_t row) {
  const int64_t vocab_size = model_.config().vocab_size;
  const size_t row_bytes = static_cast<size_t>(vocab_size) * sizeof(float);
  if (host_logits_.data() == nullptr) {
    host_logits_ = backend_->allocate_host(static_cast<size_t>(max_num_logits_) * row_bytes);
  }
  backend_->copy_to_host(logits_.as<float>() + row * logits_stride_,
                         host_logits_.as<float>() + row * vocab_size, row_bytes);
}

bool ModelRunner::needs_host(const SamplingParams& params) const {
  return !backend_->samples_on_device() || is_chosen_by_host(params) || params.num_logprobs >= 0 ||
         params.num_prompt_logprobs >= 0;
}

void ModelRunner::launch(const Batch& batch, std::span<const SampleRequest> requests) {
  CARAVAN_CHECK_CODE(num_launched_ - num_collected_ < max_steps_in_flight() &&
                         static_cast<int64_t>(requests.size()) == batch.num_logits(),
                     kInternal, "{} steps in flight, {} requests for {} rows of logits",
                     num_launched_ - num_collected_, requests.size(), batch.num_logits());
  Step& step = steps_[static_cast<size_t>(num_launched_) % steps_.size()];
  step.outputs.assign(requests.size(), StepOutput{});
  if (backend_->samples_on_device()) {
    launch_on_device(batch, requests, step);
  } else {
    const std::span<const float> logits = run(batch);
    const auto vocab_size = static_cast<size_t>(model_.config().vocab_size);
    for (size_t i = 0; i < requests.size(); ++i) {
      if (!ends_history(batch, i, requests[i])) continue;
      const auto row = logits.subspan(i * vocab_size, vocab_size);
      choose_on_host(row, requests[i], step.outputs[i]);
      score_output(row, requests[i], step.outputs[i]);
    }
    score_prompts(batch, requests, step);
  }
  ++num_launched_;
}

void ModelRunner::choose_on_host(std::span<const float> logits, const SampleRequest& request,
                                 StepOutput& output) {
  output.token.token_id = sampler_.sample(logits, *request.params, request.history,
                                          request.num_prompt_tokens, request.banned);
}

void ModelRunner::score_output(std::span<const float> logits, const SampleRequest& request,
                               StepOutput& output) {
  if (request.params->num_logprobs < 0 || output.token.token_id == StepOutput::kNotFinite) return;
  output.token = score_token(logits, output.token.token_id, request.params->num_logprobs);
}

// Overwrites the logits of the step.
void ModelRunner::score_prompts(const Batch& batch, std::span<const SampleRequest> requests,
                                Step& step) {
  for (const Batch::ScoredRows& scored : batch.scored_rows()) {
    const SampleRequest& request = requests[scored.logits_row];
    if (!request.wants_prompt_logprobs) continue;
    score_prompt(scored, request, step.outputs[scored.logits_row]);
  }
}

// As many rows at a time as there is room for.
void ModelRunner::score_prompt(const Batch::ScoredRows& scored, const SampleRequest& request,
                               StepOutput& output) {
  const auto vocab_size = static_cast<size_t>(model_.config().vocab_size);
  // The row at a position predicts the token after it.
  const int64_t num_rows =
      std::min(scored.num_rows, request.num_prompt_tokens - 1 - scored.first_position);
  for (int64_t done = 0; done < num_rows;) {
    const int64_t count = std::min(max_num_logits_, num_rows - done);
    const std::span<const float> rows = logits(scored.first_row + done, count);
    for (int64_t i = 0; i < count; ++i) {
      const auto row = rows.subspan(static_cast<size_t>(i) * vocab_size, vocab_size);
      if (!is_finite(row)) {
        output.token = {.token_id = StepOutput::kNotFinite, .logprob = {}, .top_logprobs = {}};
        output.prompt_tokens.clear();
        return;
      }
      const auto next = static_cast<size_t>(scored.first_position + done + i + 1);
      output.prompt_tokens.push_back(
          score_token(row, request.history[next], request.params->num_prompt_logprobs));
    }
    done += count;
  }
}

void ModelRunner::prepare_seen(std::span<const SampleRequest> requests, Step& step) {
  const auto has_penalty = [](const SampleRequest& r) {
    return r.params->repetition_penalty != 1.0f && !is_chosen_by_host(*r.params);
  };
  if (std::none_of(requests.begin(), requests.end(), has_penalty)) return;
  const int64_t vocab_size = model_.config().vocab_size;
  auto* ids = step.prompts.as<int32_t>();
  for (const SampleRequest& r : requests) {
    if (!has_penalty(r) || !r.is_first_output) continue;
    std::copy(r.history.begin(), r.history.end(), ids);
    backend_->mark_seen(seen_.as<uint32_t>(), r.slot, vocab_size, ids,
                        static_cast<int64_t>(r.history.size()));
    ids += r.history.size();
  }
}

void ModelRunner::launch_on_device(const Batch& batch, std::span<const SampleRequest> requests,
                                   Step& step) {
  prepare_seen(requests, step);
  std::vector<RowSampling> sampling(requests.size());
  bool is_greedy = true;
  bool has_penalty = false;
  bool is_host_step = false;
  for (size_t i = 0; i < requests.size(); ++i) {
    const SamplingParams& p = *requests[i].params;
    is_host_step = is_host_step || needs_host(p);
    sampling[i].history_slot = static_cast<int32_t>(requests[i].slot);
    if (is_chosen_by_host(p)) continue;  // what the device chooses is not used
    sampling[i] = {.temperature = p.temperature,
                   .top_k = p.top_k,
                   .top_p = p.top_p,
                   .repetition_penalty = p.repetition_penalty,
                   .seed = p.seed,
                   .counter = static_cast<uint64_t>(requests[i].num_tokens),
                   .history_slot = static_cast<int32_t>(requests[i].slot)};
    has_penalty = has_penalty || p.repetition_penalty != 1.0f;
    is_greedy = is_greedy && p.temperature == 0.0f;
  }
  is_greedy = is_greedy && !has_penalty;
  const bool is_decode = batch.is_decode();
  const int64_t num_rows =
      is_decode ? row_bucket(batch.num_seqs(), max_batch_size_) : batch.num_logits();
  const int64_t max_context_len =
      is_decode ? context_bucket(batch.max_context_len(), max_seq_len_) : batch.max_context_len();
  // What the rows that only fill the batch choose is in no sequence's history.
  sampling.resize(static_cast<size_t>(num_rows));
  const BatchTensors tensors = prepare(batch, is_decode ? num_rows : 0, max_context_len, sampling);
  const auto* rows = static_cast<const RowSampling*>(device_batch_->extra());
  const int slot = step_slot();
  const auto run_step = [&] {
    device_batch_->copy(slot);
    BatchTensors step_tensors = tensors;
    // Every id of a recorded step may refer to the tokens of the step before it.
    step_tensors.sampled = {sampled_.data(), DType::kI32, Shape{max_num_logits_}};
    model_.forward(step_tensors, cache_);
    if (num_rows == 0) return;
    ConstTensor logits_rows = tensors.logits_rows;
    if (is_decode) logits_rows.data = nullptr;
    const Tensor logits = logits_tensor(num_rows);
    model_.logits(logits_rows, logits);
    ops::sample(*backend_, {.logits = logits,
                            .vocab_size = model_.config().vocab_size,
                            .rows = rows,
                            .is_greedy = is_greedy,
                            .seen = has_penalty ? seen_.as<uint32_t>() : nullptr,
                            .tokens = {sampled_.data(), DType::kI32, Shape{num_rows}},
                            .host_tokens = step.device_tokens.as<int32_t>()});
  };
  if (is_decode) {
    const uint64_t key =
        static_cast<uint64_t>(num_rows) << 32 | static_cast<uint64_t>(max_context_len) << 8 |
        static_cast<uint64_t>(slot) << 2 | (is_greedy ? 2u : 0u) | (has_penalty ? 1u : 0u);
    backend_->run_captured(key, run_step);
  } else {
    run_step();
  }
  num_sampled_ = num_rows;
  step.marker = backend_->mark();
  step.is_waiting = true;
  if (!is_host_step) return;
  wait_for_tokens(step);
  num_sampled_ = 0;
  const auto vocab_size = static_cast<size_t>(model_.config().vocab_size);
  for (size_t i = 0; i < requests.size(); ++i) {
    const SamplingParams& p = *requests[i].params;
    if ((!is_chosen_by_host(p) && p.num_logprobs < 0) || !ends_history(batch, i, requests[i])) {
      continue;
    }
    copy_logits_to_host(static_cast<int64_t>(i));
    const std::span<const float> row{host_logits_.as<float>() + i * vocab_size, vocab_size};
    if (is_chosen_by_host(p)) choose_on_host(row, requests[i], step.outputs[i]);
    score_output(row, requests[i], step.outputs[i]);
  }
  score_prompts(batch, requests, step);
}

void ModelRunner::wait_for_tokens(Step& step) {
  backend_->wait_for(step.marker);
  step.is_waiting = false;
  const auto* tokens = step.device_tokens.as<int32_t>();
  for (size_t i = 0; i < step.outputs.size(); ++i) step.outputs[i].token.token_id = tokens[i];
}

std::span<const StepOutput> ModelRunner::collect() {
  CARAVAN_CHECK_CODE(num_collected_ < num_launched_, kInternal, "no step is in flight");
  Step& step = steps_[static_cast<size_t>(num_collected_++) % steps_.size()];
  if (step.is_waiting) wait_for_tokens(step);
  model_.check_weights();
  return step.outputs;
}

}  // namespace caravan
