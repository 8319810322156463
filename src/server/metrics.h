#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "caravan/llm.h"
#include "engine/engine_loop.h"
#include "server/http_server.h"
#include "server/prometheus_text.h"

namespace caravan {

/// What one finished completion counts for.
struct CompletionFigures {
  RequestTimings timings;
  int64_t num_cached_tokens = 0;
  double total_ms = 0;  // from the request's arrival to its last token
  std::string finish_reason;
};

/// The server's figures, under vLLM's names. Thread safe; observing takes no lock.
class ServerMetrics {
 public:
  ServerMetrics();

  void observe_request(int64_t n, int64_t max_tokens);  // one HTTP request
  void observe_first_token(double ms);
  void observe_token_gap(double ms);
  void observe_step(const StepInfo& step);
  void observe_finished(const CompletionFigures& figures);
  void observe_refused() { num_refused_.fetch_add(1, std::memory_order_relaxed); }

  /// Prometheus' text. The figures of the engine and the HTTP server are those of the moment.
  std::string text(const std::string& prefix, const std::string& model_name,
                   const EngineStats& stats, const HttpServerStats& http) const;

 private:
  static constexpr std::array<const char*, 4> kReasons{"stop", "length", "abort", "error"};

  MetricHistogram time_to_first_token_;
  MetricHistogram inter_token_latency_;
  MetricHistogram e2e_latency_;
  MetricHistogram queue_time_;
  MetricHistogram prefill_time_;
  MetricHistogram decode_time_;
  MetricHistogram inference_time_;
  MetricHistogram prompt_tokens_;
  MetricHistogram generation_tokens_;
  MetricHistogram params_n_;
  MetricHistogram params_max_tokens_;
  MetricHistogram iteration_tokens_;
  std::array<std::atomic<int64_t>, kReasons.size()> num_finished_{};
  std::atomic<int64_t> num_refused_{0};
};

/// vLLM's log line, about what happened since the line before.
class ThroughputLog {
 public:
  using Clock = std::chrono::steady_clock;
  /// The line, or nothing while the engine was and is idle.
  std::optional<std::string> line(const EngineStats& stats, Clock::time_point now);

 private:
  EngineStats last_;
  std::optional<Clock::time_point> last_time_;
  bool was_idle_ = true;
};

/// Share of the cache's blocks that running requests hold, in [0, 1].
double kv_cache_usage(const EngineStats& stats);

}  // namespace caravan
