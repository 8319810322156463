#include "server/completion_job.h"

#include <fmt/core.h>

#include <algorithm>
#include <random>
#include <utility>

#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "server/api_error.h"
#include "server/json_schema.h"
#include "server/memory_budget.h"

namespace caravan {

namespace json = boost::json;

namespace {

uint64_t random_number() {
  thread_local std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

std::string make_id(const GenerateRequest& request) {
  const std::string prefix = request.is_chat ? "chatcmpl-" : "cmpl-";
  if (!request.request_id.empty()) return prefix + request.request_id;
  return fmt::format("{}{:016x}{:016x}", prefix, random_number(), random_number());
}

double milliseconds(CompletionJob::Clock::time_point from, CompletionJob::Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

int64_t seconds_since_1970() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

CompletionJob::CompletionJob(const JobContext& context, GenerateRequest request,
                             std::vector<PreparedPrompt> prompts, int64_t max_tokens,
                             std::shared_ptr<HttpExchange> exchange, Clock::time_point arrival)
    : context_(&context),
      request_(std::move(request)),
      prompts_(std::move(prompts)),
      max_tokens_(max_tokens),
      exchange_(std::move(exchange)),
      arrival_(arrival),
      id_(make_id(request_)),
      created_(seconds_since_1970()),
      answer_bytes_(answer_bytes()),
      thread_(&context.threads->choose(answer_bytes_)) {
  const OutputTextOptions options{.stops = request_.stop,
                                  .skips_special_tokens = request_.skips_special_tokens,
                                  .includes_stop = request_.includes_stop,
                                  .min_tokens = request_.params.min_output_len};
  for (size_t prompt = 0; prompt < prompts_.size(); ++prompt) {
    for (int64_t i = 0; i < request_.num_runs(); ++i) {
      Run& run = runs_.emplace_back(OutputText(*context.tokenizer, options));
      run.prompt = prompt;
      run.index = static_cast<int64_t>(runs_.size()) - 1;
    }
  }
}

void CompletionJob::start() {
  const std::lock_guard lock(mutex_);
  is_over_ = true;  // unless all of it goes well
  if (answer_bytes_ > context_->max_answer_bytes) {
    throw_bad_request(
        "",
        fmt::format("the answer could have {} bytes, at most {} are allowed (--max-answer-bytes): "
                    "ask for fewer choices, tokens or log probabilities",
                    answer_bytes_, context_->max_answer_bytes));
  }
  if (answer_bytes_ > MemoryBudget::kSmallBytes && !exchange_->reserve(answer_bytes_)) {
    throw ApiError(503, "server_error", "there is no memory for the answer now: try again later",
                   "", "overloaded");
  }
  try {
    submit_runs();
    is_over_ = false;
    if (request_.stream) start_stream();
    context_->metrics->observe_request(request_.n, max_tokens_);
    // The exchange belongs to the job: its callback must not own the job in turn.
    exchange_->on_disconnect([weak = weak_from_this()] {
      const std::shared_ptr<CompletionJob> job = weak.lock();
      if (job) job->post([job] { job->end(false); });
    });
  } catch (...) {
    cancel_runs();  // nobody would read what they write
    throw;
  }
}

void CompletionJob::post(std::function<void()> task) {
  thread_->post([job = shared_from_this(), task = std::move(task)] {
    const std::lock_guard lock(job->mutex_);
    task();
  });
}

void CompletionJob::submit_runs() {
  int64_t num_tokens = 0;
  for (const Run& run : runs_) {
    num_tokens += static_cast<int64_t>(prompts_[run.prompt].ids.size());
  }
  try {
    context_->generator->check_queue(static_cast<int64_t>(runs_.size()), num_tokens);
  } catch (const Error& error) {
    throw_bad_request("n", error.what());
  }
  const bool chooses = request_.best_of > request_.n;
  for (size_t i = 0; i < runs_.size(); ++i) {
    const auto copy = static_cast<uint64_t>(i) % static_cast<uint64_t>(request_.num_runs());
    GenerationRequest generation{.prompt_ids = prompts_[runs_[i].prompt].ids,
                                 .params = request_.params,
                                 .priority = request_.priority,
                                 .prefix_scope = request_.prefix_scope};
    SamplingParams& params = generation.params;
    params.max_output_len = max_tokens_;
    params.min_output_len = std::min(params.min_output_len, max_tokens_);
    params.seed = request_.seed ? static_cast<uint64_t>(*request_.seed) + copy : random_number();
    params.num_logprobs = chooses ? std::max(0, request_.num_logprobs) : request_.num_logprobs;
    // The copies of a prompt have the scores of the first.
    params.num_prompt_logprobs = is_first_of_prompt(runs_[i]) ? num_prompt_logprobs() : -1;
    if (max_tokens_ == 0) params.num_prompt_logprobs = std::max(0, params.num_prompt_logprobs);
    const auto on_output = [job = shared_from_this(), i](GenerationOutput output) {
      // The engine's thread does no more than this.
      job->thread_->post([job, i, time = Clock::now(), output = std::move(output)]() mutable {
        const std::lock_guard task_lock(job->mutex_);
        job->take_output(i, std::move(output), time);
      });
    };
    std::string refusal;
    try {
      runs_[i].engine_id = context_->generator->submit(std::move(generation), on_output);
    } catch (const Error& error) {
      refusal = error.what();
    }
    if (runs_[i].engine_id) continue;
    if (!refusal.empty()) throw_bad_request("", refusal);
    context_->metrics->observe_refused();
    throw ApiError(429, "rate_limit_error", "the queue is full: try again later", "",
                   "rate_limit_exceeded");
  }
}

/// What the answer has at most, as JSON of usual texts. Log probabilities are most of one that has
/// them.
int64_t CompletionJob::answer_bytes() const {
  constexpr int64_t kBase = 1024, kChoice = 256, kTokenText = 8, kTokenId = 7, kEntry = 24;
  const int64_t num_logprobs = request_.num_logprobs + 1;
  const int64_t each = request_.is_chat ? kChatLogprobBytes : kCompletionLogprobBytes;
  int64_t of_output = kChoice + max_tokens_ * (kTokenText + num_logprobs * each);
  if (wants_tokens()) of_output += max_tokens_ * kEntry;
  if (request_.returns_token_ids) of_output += max_tokens_ * kTokenId;
  int64_t sum = kBase;
  for (const PreparedPrompt& prompt : prompts_) {
    const auto num_tokens = static_cast<int64_t>(prompt.ids.size());
    int64_t of_prompt = 0;
    if (request_.num_prompt_logprobs >= 0) {
      of_prompt += num_tokens * (num_prompt_logprobs() + 1) * kPromptLogprobBytes;
    }
    if (request_.echo) {
      for (const int32_t id : prompt.ids) {
        of_prompt += static_cast<int64_t>(context_->tokenizer->token_bytes(id).size());
      }
      if (wants_tokens()) of_prompt += num_tokens * (num_logprobs * each + kEntry);
    }
    if (request_.returns_token_ids) of_prompt += num_tokens * kTokenId;
    sum += request_.n * (of_output + of_prompt);
  }
  return sum;
}

int32_t CompletionJob::num_prompt_logprobs() const {
  return request_.echo ? std::max(request_.num_prompt_logprobs, request_.num_logprobs)
                       : request_.num_prompt_logprobs;
}

void CompletionJob::fail(int status, const std::string& type, const std::string& message) {
  const std::lock_guard lock(mutex_);
  fail_locked(status, type, message);
}

void CompletionJob::fail_locked(int status, const std::string& type, const std::string& message) {
  if (is_over_) return;
  if (has_stream_) {
    const json::object event{
        {"error", {{"message", message}, {"type", type}, {"param", nullptr}, {"code", status}}}};
    exchange_->write(sse_event(to_json_text(event)) + kSseDone);
    exchange_->finish();
  } else {
    exchange_->respond(error_response(status, message, type));
  }
  end(true);
}

void CompletionJob::end(bool is_answered) {
  if (is_over_) return;
  is_over_ = true;
  cancel_runs();
  for (Run& run : runs_) {
    if (run.is_done) continue;
    run.timings.num_prompt_tokens = static_cast<int64_t>(prompts_[run.prompt].ids.size());
    run.timings.num_output_tokens = run.text.num_tokens();
    context_->metrics->observe_finished({.timings = run.timings,
                                         .num_cached_tokens = run.num_cached,
                                         .total_ms = milliseconds(arrival_, Clock::now()),
                                         .finish_reason = is_answered ? "error" : "abort"});
  }
}

void CompletionJob::cancel_runs() {
  for (const Run& run : runs_) {
    if (run.engine_id && !run.is_done) context_->generator->cancel(*run.engine_id);
  }
}

void CompletionJob::take_output(size_t index, GenerationOutput output, Clock::time_point time) {
  try {
    Run& run = runs_[index];
    Run& first = first_of_prompt(run);
    if (num_prompt_logprobs() >= 0 && &run != &first && !first.has_output) {
      run.held.emplace_back(std::move(output), time);
      return;
    }
    const bool was_waited_for = !std::exchange(run.has_output, true);
    on_output(run, std::move(output), time);
    if (&run != &first || !was_waited_for) return;
    for (int64_t i = 1; i < request_.num_runs(); ++i) {
      Run& copy = runs_[static_cast<size_t>(run.index + i)];
      for (auto& [held, held_time] : std::exchange(copy.held, {})) {
        on_output(copy, std::move(held), held_time);
      }
    }
  } catch (const std::exception& error) {
    log_line(LogLevel::kError, fmt::format("{}: {}", id_, error.what()));
    fail_locked(500, "server_error", "the answer could not be made");
  }
}

void CompletionJob::on_output(Run& run, GenerationOutput output, Clock::time_point time) {
  if (is_over_) return;
  if (output.finish_reason == FinishReason::kError) {
    return fail_locked(500, "server_error", output.error);
  }
  run.num_cached = std::max(run.num_cached, output.num_cached_tokens);
  if (!output.prompt_tokens.empty()) run.prompt_tokens = std::move(output.prompt_tokens);
  take_tokens(run, output, time);
  if (output.finish_reason != FinishReason::kNone) finish_run(run, output, time);
  if (request_.stream) {
    send_events(run);
    if (is_over_ || num_done_ < runs_.size()) return;
    send_end();
    is_over_ = true;
  } else if (num_done_ == runs_.size()) {
    respond();
    is_over_ = true;
  }
}

void CompletionJob::take_tokens(Run& run, GenerationOutput& output, Clock::time_point time) {
  if (request_.echo && !run.has_echoed) echo_prompt(run);
  const bool has_stopped = output.finish_reason == FinishReason::kStop;
  for (size_t i = 0; i < output.tokens.size() && !run.text.found_stop(); ++i) {
    ScoredToken& token = output.tokens[i];
    if (run.text.num_tokens() == 0) {
      context_->metrics->observe_first_token(milliseconds(arrival_, time));
    } else {
      context_->metrics->observe_token_gap(milliseconds(run.last_token, time));
    }
    run.last_token = time;
    const bool ends_output = has_stopped && i + 1 == output.tokens.size();
    const int64_t offset = run.text.num_code_points();
    run.shown += run.text.push(token.token_id, ends_output);
    if (token.logprob) run.sum_logprob += token.logprob->logprob;
    if (request_.returns_token_ids) run.token_ids.push_back(token.token_id);
    if (ends_output) {
      const std::vector<int32_t>& stops = request_.params.stop_token_ids;
      const bool was_asked = std::find(stops.begin(), stops.end(), token.token_id) != stops.end();
      if (was_asked) run.stop_token = token.token_id;
    }
    if (!wants_tokens()) continue;
    if (request_.is_chat) {
      run.tokens.push_back({std::move(token), offset});
    } else {
      run.logprobs.add(*context_->tokenizer, {std::move(token), offset});
    }
  }
  const bool goes_on = output.finish_reason == FinishReason::kNone;
  if (run.text.found_stop() && goes_on) context_->generator->cancel(*run.engine_id);
}

void CompletionJob::echo_prompt(Run& run) {
  run.has_echoed = true;
  Run& first = first_of_prompt(run);
  if (&run != &first) {
    if (!first.has_echoed) echo_prompt(first);
    return run.text.start_at(first.num_echo_code_points);
  }
  const std::vector<int32_t>& ids = prompts_[run.prompt].ids;
  const std::vector<ScoredToken>& scored = run.prompt_tokens;
  // The first token may be left out: it has no score.
  const size_t num_unscored = scored.size() + 1 == ids.size() ? 1 : 0;
  Detokenizer detokenizer(*context_->tokenizer, /*skip_special=*/false);
  int64_t offset = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (wants_tokens()) {
      ScoredToken token{.token_id = ids[i], .logprob = {}, .top_logprobs = {}};
      if (i >= num_unscored && i - num_unscored < scored.size()) token = scored[i - num_unscored];
      const auto num_wanted = static_cast<size_t>(request_.num_logprobs);
      if (token.top_logprobs.size() > num_wanted) token.top_logprobs.resize(num_wanted);
      run.echo_logprobs.add(*context_->tokenizer, {std::move(token), offset});
    }
    const std::string text = detokenizer.push(ids[i]);
    offset += static_cast<int64_t>(num_code_points(text));
    run.echo_text += text;
  }
  const std::string rest = detokenizer.flush();
  run.echo_text += rest;
  run.num_echo_code_points = offset + static_cast<int64_t>(num_code_points(rest));
  run.text.start_at(run.num_echo_code_points);
}

void CompletionJob::finish_run(Run& run, const GenerationOutput& output, Clock::time_point time) {
  run.shown += run.text.finish();
  run.is_done = true;
  run.finish_reason = output.finish_reason;
  run.timings = output.timings;
  run.timings.num_prompt_tokens = static_cast<int64_t>(prompts_[run.prompt].ids.size());
  run.timings.num_output_tokens = run.text.num_tokens();  // without what came after a stop string
  ++num_done_;
  context_->metrics->observe_finished({.timings = run.timings,
                                       .num_cached_tokens = run.num_cached,
                                       .total_ms = milliseconds(arrival_, time),
                                       .finish_reason = finish_reason_of(run)});
}

}  // namespace caravan
