#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"
#include "server/generator.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/openai_request.h"
#include "server/openai_response.h"
#include "server/output_text.h"
#include "server/worker_thread.h"

namespace caravan {

/// Token ids of one prompt, as they go to the engine.
struct PreparedPrompt {
  std::vector<int32_t> ids;
  int64_t num_dropped = 0;  // tokens that overflow or truncation left out
};

/// What all jobs of a server share; it outlives them.
struct JobContext {
  Generator* generator = nullptr;
  const Tokenizer* tokenizer = nullptr;
  ServerMetrics* metrics = nullptr;
  OutputThreads* threads = nullptr;  // make texts and answers, apart from the engine's thread
  int64_t max_answer_bytes = 0;
  std::string model_name;
  std::string system_fingerprint;
};

/// One completion request from its submission to the engine to its last byte: n outputs of each
/// prompt, as one answer or a stream. Ends early when its client goes away.
class CompletionJob : public std::enable_shared_from_this<CompletionJob> {
 public:
  using Clock = std::chrono::steady_clock;

  /// max_tokens: of each output, decided by the caller.
  CompletionJob(const JobContext& context, GenerateRequest request,
                std::vector<PreparedPrompt> prompts, int64_t max_tokens,
                std::shared_ptr<HttpExchange> exchange, Clock::time_point arrival);

  /// Submits all outputs, or none; a stream begins at once, so that its client knows that it waits
  /// its turn. Errors: ApiError 429 when the queue is full, 503 when there is no memory for the
  /// answer, 400 for what can never run and for an answer of more than max_answer_bytes.
  void start();
  /// Ends the outputs; the client is told with this status, in a stream by an error event.
  void fail(int status, const std::string& type, const std::string& message);

  bool is_over() const { return is_over_.load(std::memory_order_relaxed); }
  Clock::time_point arrival() const { return arrival_; }

 private:
  /// One output that the engine makes.
  struct Run {
    explicit Run(OutputText output_text) : text(std::move(output_text)) {}
    size_t prompt = 0;
    int64_t index = 0;  // of the choice
    std::optional<int64_t> engine_id;
    OutputText text;
    std::string shown;                       // not yet sent
    std::vector<ShownToken> tokens;          // not yet sent; when a chat wants log probabilities
    LogprobItems logprobs;                   // not yet sent; when a completion wants them
    std::vector<int32_t> token_ids;          // not yet sent; when wanted
    std::vector<ScoredToken> prompt_tokens;  // scored; of the first run of a prompt only
    // Of the first run of a prompt only, written once for all its choices:
    std::optional<std::string> prompt_logprobs;  // JSON
    std::string echo_text;
    LogprobItems echo_logprobs;
    int64_t num_echo_code_points = 0;
    bool has_output = false;  // its first output came, and with it these
    std::vector<std::pair<GenerationOutput, Clock::time_point>> held;  // until they are there
    double sum_logprob = 0;
    int64_t num_cached = 0;
    bool has_echoed = false;  // the prompt was written, or it was for the first of its runs
    bool has_sent = false;    // its first event
    bool is_done = false;
    FinishReason finish_reason = FinishReason::kNone;
    std::optional<int32_t> stop_token;
    RequestTimings timings;
    Clock::time_point last_token;
  };

  // All below run on the job's output thread with mutex_ held, start() with mutex_ held.
  void take_output(size_t run, GenerationOutput output, Clock::time_point time);
  void on_output(Run& run, GenerationOutput output, Clock::time_point time);
  void take_tokens(Run& run, GenerationOutput& output, Clock::time_point time);
  void echo_prompt(Run& run);
  void finish_run(Run& run, const GenerationOutput& output, Clock::time_point time);
  void cancel_runs();
  int64_t answer_bytes() const;
  void submit_runs();
  void start_stream();
  void post(std::function<void()> task);
  int32_t num_prompt_logprobs() const;
  bool is_first_of_prompt(const Run& run) const { return run.index % request_.num_runs() == 0; }
  Run& first_of_prompt(const Run& run) {
    return runs_[static_cast<size_t>(run.index - run.index % request_.num_runs())];
  }
  const Run& first_of_prompt(const Run& run) const {
    return runs_[static_cast<size_t>(run.index - run.index % request_.num_runs())];
  }
  void fail_locked(int status, const std::string& type, const std::string& message);
  void end(bool is_answered);

  // completion_answer.cc: what the client gets.
  void send_events(Run& run);
  JsonWriter begin_event(const Run& run, bool is_first);
  bool send(const JsonWriter& event);
  void send_end();
  void respond();
  std::vector<Run*> chosen_runs();
  void write_head(bool is_chunk, JsonWriter& writer) const;
  void write_first(const Run& run, JsonWriter& writer);
  void write_text(const Run& run, bool is_first, JsonWriter& writer) const;
  void write_logprobs(const Run& run, bool is_first, JsonWriter& writer) const;
  void write_last(const Run& run, JsonWriter& writer) const;
  void write_choice(const Run& run, int64_t index, JsonWriter& writer);
  std::string finish_reason_of(const Run& run) const;
  Usage usage() const;
  int64_t num_dropped() const;
  boost::json::object drop_report() const;
  HttpHeaders headers() const;
  bool wants_tokens() const { return request_.num_logprobs >= 0; }

  const JobContext* context_;
  const GenerateRequest request_;
  std::vector<PreparedPrompt> prompts_;
  const int64_t max_tokens_;
  const std::shared_ptr<HttpExchange> exchange_;
  const Clock::time_point arrival_;
  const std::string id_;
  const int64_t created_;       // seconds since 1970
  const int64_t answer_bytes_;  // estimated
  WorkerThread* const thread_;

  std::mutex mutex_;
  std::vector<Run> runs_;
  size_t num_done_ = 0;
  bool has_stream_ = false;  // its head was sent
  std::atomic<bool> is_over_{false};
};

}  // namespace caravan
