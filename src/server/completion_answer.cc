#include <algorithm>

#include "core/json_text.h"
#include "server/completion_job.h"

namespace caravan {

namespace json = boost::json;

std::string CompletionJob::finish_reason_of(const Run& run) const {
  if (run.text.found_stop() || run.finish_reason == FinishReason::kStop) return "stop";
  return run.finish_reason == FinishReason::kLength ? "length" : "abort";
}

json::object CompletionJob::head(bool is_chunk) const {
  const char* object = !request_.is_chat ? "text_completion"
                       : is_chunk        ? "chat.completion.chunk"
                                         : "chat.completion";
  return {{"id", id_},
          {"object", object},
          {"created", created_},
          {"model", context_->model_name},
          {"system_fingerprint", context_->system_fingerprint}};
}

json::value CompletionJob::logprobs_of(const Run& run) const {
  if (!wants_tokens()) return nullptr;
  if (request_.is_chat) return chat_logprobs(*context_->tokenizer, run.tokens);
  return completion_logprobs(*context_->tokenizer, run.tokens);
}

Usage CompletionJob::usage() const {
  Usage usage;
  for (const PreparedPrompt& prompt : prompts_) {
    usage.num_prompt_tokens += static_cast<int64_t>(prompt.ids.size());
  }
  for (const Run& run : runs_) {
    usage.num_completion_tokens += run.text.num_tokens();
    if (is_first_of_prompt(run)) usage.num_cached_tokens += run.num_cached;
  }
  return usage;
}

int64_t CompletionJob::num_dropped() const {
  int64_t total = 0;
  for (const PreparedPrompt& prompt : prompts_) total += prompt.num_dropped;
  return total;
}

json::object CompletionJob::drop_report() const {
  json::array dropped;
  for (const PreparedPrompt& prompt : prompts_) dropped.push_back(prompt.num_dropped);
  return {{"num_dropped_tokens", num_dropped()}, {"num_dropped_by_prompt", std::move(dropped)}};
}

HttpHeaders CompletionJob::headers() const {
  if (num_dropped() == 0) return {};
  return {{"x-caravan-dropped-tokens", std::to_string(num_dropped())}};
}

/// What comes once for a choice, in its first event or in the whole answer.
void CompletionJob::add_first(const Run& run, json::object& event, json::object& choice) const {
  if (num_dropped() > 0) event["caravan"] = drop_report();
  if (request_.returns_token_ids) {
    choice["prompt_token_ids"] = json::value_from(prompts_[run.prompt].ids);
  }
  if (request_.num_prompt_logprobs >= 0) {
    choice["prompt_logprobs"] =
        prompt_logprobs(*context_->tokenizer, first_of_prompt(run).prompt_tokens);
  }
}

void CompletionJob::add_last(const Run& run, json::object& choice) const {
  if (!run.is_done) {
    choice["finish_reason"] = nullptr;
    return;
  }
  choice["finish_reason"] = finish_reason_of(run);
  choice["stop_reason"] = nullptr;
  if (run.stop_token) choice["stop_reason"] = *run.stop_token;
  if (run.text.found_stop()) choice["stop_reason"] = run.text.stop_string();
}

bool CompletionJob::send(json::object event, json::object choice) {
  if (!has_stream_) {
    HttpHeaders more = headers();
    more.emplace_back("cache-control", "no-cache");
    exchange_->start_stream({.status = 200,
                             .content_type = "text/event-stream; charset=utf-8",
                             .body = "",
                             .headers = std::move(more)});
    has_stream_ = true;
  }
  event["choices"] = json::array{std::move(choice)};
  if (request_.has_continuous_usage) {
    event["usage"] = usage_json(usage());
  } else if (request_.includes_usage) {
    event["usage"] = nullptr;
  }
  if (exchange_->write(sse_event(event))) return true;
  end(false);  // the client is gone, or reads too slowly
  return false;
}

void CompletionJob::send_events(Run& run) {
  const bool has_news = !run.shown.empty() || !run.tokens.empty() || !run.token_ids.empty();
  if (!has_news && !run.is_done) return;
  json::object event = head(true);
  json::object choice{{"index", run.index}};
  const bool is_first = !run.has_sent;
  run.has_sent = true;
  if (is_first) add_first(run, event, choice);
  if (is_first && request_.is_chat) {
    choice["delta"] = {{"role", "assistant"}, {"content", ""}};
    choice["logprobs"] = nullptr;
    choice["finish_reason"] = nullptr;
    if (!send(std::move(event), std::move(choice))) return;
    event = head(true);
    choice = {{"index", run.index}};
  }
  if (request_.is_chat) {
    json::object delta;
    if (!run.shown.empty()) delta["content"] = run.shown;
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = run.shown;
  }
  choice["logprobs"] = run.tokens.empty() ? json::value(nullptr) : logprobs_of(run);
  if (request_.returns_token_ids) choice["token_ids"] = json::value_from(run.token_ids);
  add_last(run, choice);
  if (run.is_done) event["timings"] = timings_json(run.timings, run.num_cached);
  run.shown.clear();
  run.tokens.clear();
  run.token_ids.clear();
  send(std::move(event), std::move(choice));
}

void CompletionJob::send_end() {
  std::string rest;
  if (request_.includes_usage) {
    json::object event = head(true);
    event["choices"] = json::array();
    event["usage"] = usage_json(usage());
    rest = sse_event(event);
  }
  exchange_->write(rest + kSseDone);
  exchange_->finish();
}

/// All runs, or of each prompt the n with the highest mean log probability.
std::vector<CompletionJob::Run*> CompletionJob::chosen_runs() {
  const auto mean_logprob = [](const Run* run) {
    return run->sum_logprob / static_cast<double>(std::max<int64_t>(1, run->text.num_tokens()));
  };
  std::vector<Run*> chosen;
  const auto num_runs = static_cast<size_t>(request_.num_runs());
  for (size_t first = 0; first < runs_.size(); first += num_runs) {
    std::vector<Run*> candidates;
    for (size_t i = 0; i < num_runs; ++i) candidates.push_back(&runs_[first + i]);
    if (request_.best_of > request_.n) {
      std::stable_sort(candidates.begin(), candidates.end(), [&](const Run* a, const Run* b) {
        return mean_logprob(a) > mean_logprob(b);
      });
    }
    chosen.insert(chosen.end(), candidates.begin(), candidates.begin() + request_.n);
  }
  return chosen;
}

json::object CompletionJob::whole_choice(const Run& run, int64_t index) const {
  json::object choice{{"index", index}};
  if (request_.is_chat) {
    choice["message"] = {{"role", "assistant"}, {"content", run.shown}, {"refusal", nullptr}};
  } else {
    choice["text"] = run.shown;
  }
  choice["logprobs"] = logprobs_of(run);
  add_last(run, choice);
  if (request_.returns_token_ids) choice["token_ids"] = json::value_from(run.token_ids);
  return choice;
}

void CompletionJob::respond() {
  json::object answer = head(false);
  json::array choices;
  RequestTimings total;  // of several outputs: all their tokens, the longest of their times
  for (const Run* run : chosen_runs()) {
    json::object choice = whole_choice(*run, static_cast<int64_t>(choices.size()));
    add_first(*run, answer, choice);
    choices.push_back(std::move(choice));
  }
  for (const Run& run : runs_) {
    total.num_output_tokens += run.timings.num_output_tokens;
    total.queue_ms = std::max(total.queue_ms, run.timings.queue_ms);
    total.prefill_ms = std::max(total.prefill_ms, run.timings.prefill_ms);
    total.decode_ms = std::max(total.decode_ms, run.timings.decode_ms);
  }
  const Usage used = usage();
  total.num_prompt_tokens = used.num_prompt_tokens;
  answer["choices"] = std::move(choices);
  answer["usage"] = usage_json(used);
  answer["timings"] = timings_json(total, used.num_cached_tokens);
  exchange_->respond({.status = 200,
                      .content_type = "application/json",
                      .body = to_json_text(answer),
                      .headers = headers()});
}

}  // namespace caravan
