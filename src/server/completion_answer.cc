#include <algorithm>

#include "server/completion_job.h"

namespace caravan {

namespace json = boost::json;

std::string CompletionJob::finish_reason_of(const Run& run) const {
  if (run.text.found_stop() || run.finish_reason == FinishReason::kStop) return "stop";
  return run.finish_reason == FinishReason::kLength ? "length" : "abort";
}

/// The first members of an object, which the caller ends.
void CompletionJob::write_head(bool is_chunk, JsonWriter& writer) const {
  const char* object = !request_.is_chat ? "text_completion"
                       : is_chunk        ? "chat.completion.chunk"
                                         : "chat.completion";
  writer.begin_object().key("id").text(id_).key("object").text(object);
  writer.key("created").integer(created_).key("model").text(context_->model_name);
  writer.key("system_fingerprint").text(context_->system_fingerprint);
}

/// What the choice wrote, after the prompt when that is wanted and was not sent yet.
void CompletionJob::write_text(const Run& run, bool is_first, JsonWriter& writer) const {
  const std::string& echo = first_of_prompt(run).echo_text;
  if (is_first && !echo.empty()) {
    writer.text(echo + run.shown);
  } else {
    writer.text(run.shown);
  }
}

void CompletionJob::write_logprobs(const Run& run, bool is_first, JsonWriter& writer) const {
  writer.key("logprobs");
  if (!wants_tokens()) {
    writer.null();
  } else if (request_.is_chat) {
    write_chat_logprobs(*context_->tokenizer, run.tokens, writer);
  } else {
    const bool has_echo = is_first && request_.echo;
    write_completion_logprobs(has_echo ? &first_of_prompt(run).echo_logprobs : nullptr,
                              run.logprobs, writer);
  }
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
void CompletionJob::write_first(const Run& run, JsonWriter& writer) {
  if (request_.returns_token_ids) {
    writer.key("prompt_token_ids").ids(prompts_[run.prompt].ids);
  }
  if (request_.num_prompt_logprobs < 0) return;
  Run& first = first_of_prompt(run);
  if (!first.prompt_logprobs) {
    first.prompt_logprobs = prompt_logprobs_json(*context_->tokenizer, first.prompt_tokens);
    std::vector<ScoredToken>().swap(first.prompt_tokens);
  }
  writer.key("prompt_logprobs").raw(*first.prompt_logprobs);
}

void CompletionJob::write_last(const Run& run, JsonWriter& writer) const {
  writer.key("finish_reason");
  if (!run.is_done) {
    writer.null();
    return;
  }
  writer.text(finish_reason_of(run)).key("stop_reason");
  if (run.text.found_stop()) {
    writer.text(run.text.stop_string());
  } else if (run.stop_token) {
    writer.integer(*run.stop_token);
  } else {
    writer.null();
  }
}

void CompletionJob::start_stream() {
  HttpHeaders more = headers();
  more.emplace_back("cache-control", "no-cache");
  exchange_->start_stream({.status = 200,
                           .content_type = "text/event-stream; charset=utf-8",
                           .body = "",
                           .headers = std::move(more)});
  has_stream_ = true;
}

/// An event up to the members of its one choice, which the caller writes and send() ends.
JsonWriter CompletionJob::begin_event(const Run& run, bool is_first) {
  JsonWriter event;
  write_head(true, event);
  if (is_first && num_dropped() > 0) event.key("caravan").raw(json::serialize(drop_report()));
  if (request_.has_continuous_usage) {
    event.key("usage").raw(json::serialize(usage_json(usage())));
  } else if (request_.includes_usage) {
    event.key("usage").null();
  }
  if (run.is_done && run.has_sent) {
    event.key("timings").raw(json::serialize(timings_json(run.timings, run.num_cached)));
  }
  event.key("choices").begin_array().begin_object().key("index").integer(run.index);
  return event;
}

bool CompletionJob::send(const JsonWriter& event) {
  if (exchange_->write(sse_event(event.str() + "}]}"))) return true;
  end(false);  // the client is gone, or reads too slowly
  return false;
}

void CompletionJob::send_events(Run& run) {
  const bool has_news = !run.shown.empty() || !run.tokens.empty() || run.logprobs.num_bytes() > 0 ||
                        !run.token_ids.empty() ||
                        (request_.echo && run.has_echoed && !run.has_sent);
  if (!has_news && !run.is_done) return;
  bool is_first = !run.has_sent;
  if (is_first && request_.is_chat) {
    JsonWriter event = begin_event(run, true);
    write_first(run, event);
    event.key("delta").begin_object().key("role").text("assistant");
    event.key("content").text("").end_object();
    event.key("logprobs").null().key("finish_reason").null();
    if (!send(event)) return;
    is_first = false;
  }
  run.has_sent = true;
  JsonWriter event = begin_event(run, is_first);
  if (is_first) write_first(run, event);
  if (request_.is_chat) {
    event.key("delta").begin_object();
    if (!run.shown.empty()) event.key("content").text(run.shown);
    event.end_object();
  } else {
    event.key("text");
    write_text(run, is_first, event);
  }
  const bool has_logprobs =
      !run.tokens.empty() || run.logprobs.num_bytes() > 0 || (is_first && request_.echo);
  if (has_logprobs) {
    write_logprobs(run, is_first, event);
  } else {
    event.key("logprobs").null();
  }
  if (request_.returns_token_ids) event.key("token_ids").ids(run.token_ids);
  write_last(run, event);
  run.shown.clear();
  run.tokens.clear();
  run.logprobs = {};
  run.token_ids.clear();
  send(event);
}

void CompletionJob::send_end() {
  std::string rest;
  if (request_.includes_usage) {
    JsonWriter event;
    write_head(true, event);
    event.key("choices").begin_array().end_array();
    event.key("usage").raw(json::serialize(usage_json(usage()))).end_object();
    rest = sse_event(event.str());
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

void CompletionJob::write_choice(const Run& run, int64_t index, JsonWriter& writer) {
  writer.begin_object().key("index").integer(index);
  if (request_.is_chat) {
    writer.key("message").begin_object().key("role").text("assistant").key("content");
    write_text(run, true, writer);
    writer.key("refusal").null().end_object();
  } else {
    writer.key("text");
    write_text(run, true, writer);
  }
  write_logprobs(run, true, writer);
  write_last(run, writer);
  if (request_.returns_token_ids) writer.key("token_ids").ids(run.token_ids);
  write_first(run, writer);
  writer.end_object();
}

void CompletionJob::respond() {
  JsonWriter answer;
  answer.reserve(static_cast<size_t>(std::min(answer_bytes_, int64_t{1} << 20)));
  write_head(false, answer);
  if (num_dropped() > 0) answer.key("caravan").raw(json::serialize(drop_report()));
  RequestTimings total;  // of several outputs: all their tokens, the longest of their times
  for (const Run& run : runs_) {
    total.num_output_tokens += run.timings.num_output_tokens;
    total.queue_ms = std::max(total.queue_ms, run.timings.queue_ms);
    total.prefill_ms = std::max(total.prefill_ms, run.timings.prefill_ms);
    total.decode_ms = std::max(total.decode_ms, run.timings.decode_ms);
  }
  const Usage used = usage();
  total.num_prompt_tokens = used.num_prompt_tokens;
  answer.key("choices").begin_array();
  int64_t index = 0;
  for (Run* run : chosen_runs()) {
    write_choice(*run, index++, answer);
    // Nobody needs them again, and the answer has just grown by them.
    run->tokens = {};
    run->logprobs = {};
  }
  answer.end_array();
  answer.key("usage").raw(json::serialize(usage_json(used)));
  answer.key("timings").raw(json::serialize(timings_json(total, used.num_cached_tokens)));
  answer.end_object();
  exchange_->respond({.status = 200,
                      .content_type = "application/json",
                      .body = answer.take(),
                      .headers = headers()});
}

}  // namespace caravan
