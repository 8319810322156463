#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
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
  WorkerThread* worker = nullptr;  // makes texts and answers, apart from the engine's thread
  std::string model_name;
  std::string system_fingerprint;
};

/// One completion request from its submission to the engine to its last byte: n outputs of each
/// prompt, as one answer or a stream. Ends early when its client goes away.
class CompletionJob : public std::enable_shared_from_this<CompletionJob> {
 public:
  using Clock = std::chrono::steady_clock;

  /// Log probabilities of one answer, those of the tokens themselves included: 100 bytes of JSON
  /// each.
  static constexpr int64_t kMaxLogprobs = 1'000'000;

  /// max_tokens: of each output, decided by the caller.
  CompletionJob(const JobContext& context, GenerateRequest request,
                std::vector<PreparedPrompt> prompts, int64_t max_tokens,
                std::shared_ptr<HttpExchange> exchange, Clock::time_point arrival);

  /// Submits all outputs, or none. Errors: ApiError 429 when the queue is full, 400 for what the
  /// engine refuses and for more than kMaxLogprobs.
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
    std::vector<ShownToken> tokens;          // not yet sent; when log probabilities are wanted
    std::vector<int32_t> token_ids;          // not yet sent; when wanted
    std::vector<ScoredToken> prompt_tokens;  // scored; of the first run of a prompt only
    bool has_output = false;                 // its first output came, and with it these
    std::vector<std::pair<GenerationOutput, Clock::time_point>> held;  // until they are there
    double sum_logprob = 0;
    int64_t num_cached = 0;
    bool has_echoed = false;
    bool has_sent = false;  // its first event
    bool is_done = false;
    FinishReason finish_reason = FinishReason::kNone;
    std::optional<int32_t> stop_token;
    RequestTimings timings;
    Clock::time_point last_token;
  };

  // All below run on the worker's thread with mutex_ held, start() with mutex_ held.
  void take_output(size_t run, GenerationOutput output, Clock::time_point time);
  void on_output(Run& run, GenerationOutput output, Clock::time_point time);
  void take_tokens(Run& run, GenerationOutput& output, Clock::time_point time);
  void echo_prompt(Run& run);
  void finish_run(Run& run, const GenerationOutput& output, Clock::time_point time);
  void cancel_runs();
  void check_answer_size();
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
  bool send(boost::json::object event, boost::json::object choice);
  void send_end();
  void respond();
  std::vector<Run*> chosen_runs();
  boost::json::object head(bool is_chunk) const;
  void add_first(const Run& run, boost::json::object& event, boost::json::object& choice) const;
  void add_last(const Run& run, boost::json::object& choice) const;
  boost::json::value logprobs_of(const Run& run) const;
  boost::json::object whole_choice(const Run& run, int64_t index) const;
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
  const int64_t created_;  // seconds since 1970

  std::mutex mutex_;
  std::vector<Run> runs_;
  size_t num_done_ = 0;
  bool has_stream_ = false;  // its head was sent
  std::atomic<bool> is_over_{false};
};

}  // namespace caravan
