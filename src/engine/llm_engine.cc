#include "engine/llm_engine.h"

#include <algorithm>

#include "core/error.h"
#include "sampling/sampler.h"

namespace caravan {

namespace {

EngineLimits limits_of(const ModelRunner& runner, const LlmEngineOptions& engine_options) {
  const ModelRunnerOptions& options = engine_options.runner;
  return {.vocab_size = runner.model().config().vocab_size,
          .max_seq_len = runner.max_seq_len(),
          .scheduler = {.max_batch_size = options.max_batch_size,
                        .max_num_batched_tokens = options.max_num_batched_tokens,
                        .block_size = runner.cache().block_size(),
                        .num_blocks = runner.cache().num_blocks(),
                        .enable_prefix_caching = engine_options.enable_prefix_caching}};
}

double milliseconds(Sequence::Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

}  // namespace

LlmEngine::LlmEngine(const ModelDir& dir, std::unique_ptr<Backend> backend,
                     const LlmEngineOptions& options)
    : LlmEngine(ModelRunner(dir, std::move(backend), options.runner), options) {}

LlmEngine::LlmEngine(ModelRunner runner, const LlmEngineOptions& options)
    : eos_token_ids_(options.eos_token_ids),
      limits_(limits_of(runner, options)),
      scheduler_(limits_.scheduler),
      batch_(limits_.scheduler.block_size) {
  auto owned = std::make_unique<ModelRunner>(std::move(runner));
  model_runner_ = owned.get();
  runner_ = std::move(owned);
}

LlmEngine::LlmEngine(std::unique_ptr<StepRunner> runner, const EngineLimits& limits,
                     const LlmEngineOptions& options)
    : eos_token_ids_(options.eos_token_ids),
      limits_(limits),
      runner_(std::move(runner)),
      scheduler_(limits_.scheduler),
      batch_(limits_.scheduler.block_size) {}

ModelRunner& LlmEngine::runner() {
  CARAVAN_CHECK_CODE(model_runner_ != nullptr, kInternal, "the engine runs no model");
  return *model_runner_;
}

const ModelRunner& LlmEngine::runner() const {
  CARAVAN_CHECK_CODE(model_runner_ != nullptr, kInternal, "the engine runs no model");
  return *model_runner_;
}

void LlmEngine::check_request(std::span<const int32_t> prompt, const SamplingParams& params) const {
  validate(params, limits_.vocab_size);
  const auto num_prompt_tokens = static_cast<int64_t>(prompt.size());
  CARAVAN_CHECK(num_prompt_tokens > 0, "the prompt is empty");
  CARAVAN_CHECK(num_prompt_tokens <= limits_.max_seq_len &&
                    params.max_output_len <= limits_.max_seq_len - num_prompt_tokens,
                "a prompt of {} tokens with {} of output makes {}, at most {} fit: shorten one, or "
                "cut the prompt with --truncate head|tail",
                num_prompt_tokens, params.max_output_len, num_prompt_tokens + params.max_output_len,
                limits_.max_seq_len);
  for (const int32_t id : prompt) {
    CARAVAN_CHECK(id >= 0 && id < limits_.vocab_size, "token id {} is outside the vocabulary of {}",
                  id, limits_.vocab_size);
  }
  scheduler_.check_fits(num_prompt_tokens + params.max_output_len);
}

int64_t LlmEngine::add_request(std::span<const int32_t> prompt, const SamplingParams& params,
                               int32_t priority, Clock::time_point arrival,
                               std::string_view prefix_scope) {
  check_request(prompt, params);
  const auto num_prompt_tokens = static_cast<int64_t>(prompt.size());
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->params = params;
  sequence->params.seed = resolve_seed(params.seed);
  sequence->priority = priority;
  sequence->root = scheduler_.root(prefix_scope);
  sequence->arrival = arrival;
  sequence->token_ids.reserve(static_cast<size_t>(num_prompt_tokens + params.max_output_len));
  sequence->token_ids.assign(prompt.begin(), prompt.end());
  sequence->num_prompt_tokens = num_prompt_tokens;
  if (params.min_output_len > 0) {
    sequence->banned = params.stop_token_ids;
    if (!params.ignore_eos) {
      sequence->banned.insert(sequence->banned.end(), eos_token_ids_.begin(), eos_token_ids_.end());
    }
  }
  if (params.num_prompt_logprobs >= 0) {
    sequence->prompt_scored.push_back(
        {.token_id = prompt.front(), .logprob = {}, .top_logprobs = {}});
  }
  sequence->needs_host = runner_->needs_host(params);
  const int64_t id = sequence->id;
  scheduler_.add(std::move(sequence));
  return id;
}

bool LlmEngine::may_launch() const {
  if (in_flight_.empty()) return true;
  return static_cast<int>(in_flight_.size()) < runner_->max_steps_in_flight() &&
         !scheduler_.wants_host();
}

bool LlmEngine::launch() {
  const Clock::time_point launched = Clock::now();
  const std::vector<ScheduledRow>& rows = scheduler_.schedule(batch_, !in_flight_.empty());
  if (batch_.num_tokens() == 0) return false;
  requests_.clear();
  for (const ScheduledRow& row : rows) {
    Sequence& s = *row.sequence;
    SampleRequest request{.params = &s.params,
                          .num_tokens = s.num_tokens(),
                          .history = s.token_ids,
                          .num_prompt_tokens = s.num_prompt_tokens,
                          .slot = s.slot,
                          .is_first_output = row.has_token && !s.has_device_state,
                          .banned = {},
                          .wants_prompt_logprobs = row.is_scored};
    if (s.num_output_tokens() < s.params.min_output_len) request.banned = s.banned;
    s.has_device_state = s.has_device_state || row.has_token;
    requests_.push_back(request);
  }
  runner_->launch(batch_, requests_);
  StepInFlight step{.rows = {},
                    .summary = {.num_tokens = batch_.num_tokens(), .num_seqs = batch_.num_seqs()},
                    .launched = launched};
  step.rows.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    Sequence& s = *rows[i].sequence;
    step.rows.push_back({.sequence_id = s.id,
                         .token_index = s.token_ids.size(),
                         .has_token = rows[i].has_token,
                         .is_scored = rows[i].is_scored,
                         .first_position = rows[i].first_position});
    if (rows[i].has_token && s.params.max_output_len > 0) {
      s.token_ids.push_back(-1 - static_cast<int32_t>(i));
    }
  }
  in_flight_.push_back(std::move(step));
  return true;
}

bool LlmEngine::ends_output(const SamplingParams& params, int32_t token) const {
  const auto is_in = [token](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  return is_in(params.stop_token_ids) || (!params.ignore_eos && is_in(eos_token_ids_));
}

bool LlmEngine::is_finished(Sequence& sequence, size_t token_index, const OnToken& on_token) const {
  const int32_t token = sequence.token_ids[token_index];
  const auto num_output = static_cast<int64_t>(token_index) + 1 - sequence.num_prompt_tokens;
  const bool is_stopped = on_token && on_token(sequence, token);
  if (ends_output(sequence.params, token) || is_stopped) {
    sequence.finish_reason = FinishReason::kStop;
  } else if (num_output >= sequence.params.max_output_len) {
    sequence.finish_reason = FinishReason::kLength;
  }
  return sequence.finish_reason != FinishReason::kNone;
}

std::unique_ptr<Sequence> LlmEngine::cancel(int64_t id) {
  Sequence* sequence = scheduler_.find(id);
  if (sequence == nullptr) return nullptr;
  std::unique_ptr<Sequence> owned = scheduler_.remove(sequence);
  owned->token_ids.resize(static_cast<size_t>(owned->num_known_tokens()));
  owned->finish_reason = FinishReason::kAbort;
  return owned;
}

EngineStats LlmEngine::stats() const {
  EngineStats stats = counters_;
  const SchedulerCounters& counters = scheduler_.counters();
  stats.prefix_queries = counters.prefix_queries;
  stats.prefix_hits = counters.prefix_hits;
  stats.num_prompt_tokens = counters.num_prompt_tokens;
  stats.num_preemptions = counters.num_preemptions;
  stats.num_running = scheduler_.num_running();
  stats.num_waiting = scheduler_.num_waiting();
  stats.block_size = limits_.scheduler.block_size;
  stats.num_blocks = limits_.scheduler.num_blocks;
  stats.num_free_blocks = scheduler_.num_free_blocks();
  return stats;
}

/// True when the sequence has come to its end.
bool LlmEngine::take_output(Sequence& sequence, const StepInFlight::Row& row,
                            const StepOutput& output, const OnToken& on_token) {
  sequence.last_token = last_step_end_;
  if (output.token.token_id == StepOutput::kNotFinite) {
    sequence.token_ids.resize(std::min(row.token_index, sequence.token_ids.size()));
    sequence.finish_reason = FinishReason::kError;
    return true;
  }
  if (row.is_scored) {
    // A chunk that is computed again after a preemption scores some a second time.
    for (size_t i = 0; i < output.prompt_tokens.size(); ++i) {
      const size_t position = static_cast<size_t>(row.first_position) + 1 + i;
      if (position == sequence.prompt_scored.size()) {
        sequence.prompt_scored.push_back(output.prompt_tokens[i]);
      }
    }
  }
  if (!row.has_token) return false;
  if (sequence.params.max_output_len == 0) {
    sequence.first_token = last_step_end_;
    sequence.finish_reason = FinishReason::kLength;
    return true;
  }
  sequence.token_ids[row.token_index] = output.token.token_id;
  ++counters_.num_generated_tokens;
  if (row.token_index == static_cast<size_t>(sequence.num_prompt_tokens)) {
    sequence.first_token = last_step_end_;
  }
  if (sequence.params.num_logprobs >= 0) sequence.scored.push_back(output.token);
  if (!is_finished(sequence, row.token_index, on_token)) return false;
  sequence.token_ids.resize(row.token_index + 1);
  return true;
}

std::vector<std::unique_ptr<Sequence>> LlmEngine::step(const OnToken& on_token) {
  while (may_launch() && launch()) {
  }
  std::vector<std::unique_ptr<Sequence>> finished;
  last_step_ = {};
  if (in_flight_.empty()) return finished;
  const StepInFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  const std::span<const StepOutput> outputs = runner_->collect();
  const Clock::time_point end = Clock::now();
  last_step_ = step.summary;
  last_step_.duration_ms = milliseconds(end - std::max(step.launched, last_step_end_));
  last_step_end_ = end;
  ++counters_.num_steps;
  for (size_t i = 0; i < step.rows.size(); ++i) {
    Sequence* sequence = scheduler_.find(step.rows[i].sequence_id);
    if (sequence == nullptr) continue;  // ended while this step was on its way
    if (!take_output(*sequence, step.rows[i], outputs[i], on_token)) continue;
    const bool is_trusted = sequence->finish_reason != FinishReason::kError;
    finished.push_back(scheduler_.remove(sequence, is_trusted));
  }
  return finished;
}

}  // namespace caravan
