#include "server/metrics.h"

#include <fmt/core.h>

#include <algorithm>

#include "core/log.h"
#include "core/log_thread.h"

namespace caravan {

namespace {

// Buckets of vllm/v1/metrics/loggers.py, so that its dashboards read ours.
std::vector<double> first_token_bounds() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,  0.5,   0.75,
          1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0};
}
std::vector<double> gap_bounds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,  0.15, 0.2,  0.3,
          0.4,   0.5,    0.75,  1.0,  2.5,   5.0,  7.5,   10.0, 20.0, 40.0, 80.0};
}
std::vector<double> request_bounds() {
  return {0.01, 0.05, 0.1,  0.3,  0.5,  0.8,  1.0,   1.5,   2.0,   2.5,   5.0,    10.0,
          15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
}
std::vector<double> token_bounds() {
  return {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000};
}
std::vector<double> iteration_bounds() {
  return {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
}

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

}  // namespace

double kv_cache_usage(const EngineStats& stats) {
  return share(stats.num_blocks - stats.num_free_blocks, stats.num_blocks);
}

ServerMetrics::ServerMetrics()
    : time_to_first_token_(first_token_bounds()),
      inter_token_latency_(gap_bounds()),
      e2e_latency_(request_bounds()),
      queue_time_(request_bounds()),
      prefill_time_(request_bounds()),
      decode_time_(request_bounds()),
      inference_time_(request_bounds()),
      prompt_tokens_(token_bounds()),
      generation_tokens_(token_bounds()),
      params_n_({1, 2, 5, 10, 20}),
      params_max_tokens_(token_bounds()),
      iteration_tokens_(iteration_bounds()) {}

void ServerMetrics::observe_request(int64_t n, int64_t max_tokens) {
  params_n_.observe(static_cast<double>(n));
  params_max_tokens_.observe(static_cast<double>(max_tokens));
}
void ServerMetrics::observe_first_token(double ms) { time_to_first_token_.observe(ms / 1000); }
void ServerMetrics::observe_token_gap(double ms) { inter_token_latency_.observe(ms / 1000); }
void ServerMetrics::observe_step(const StepInfo& step) {
  iteration_tokens_.observe(static_cast<double>(step.num_tokens));
}

void ServerMetrics::observe_finished(const CompletionFigures& figures) {
  const auto reason = std::find(kReasons.begin(), kReasons.end(), figures.finish_reason);
  if (reason == kReasons.end()) return;
  num_finished_[static_cast<size_t>(reason - kReasons.begin())].fetch_add(
      1, std::memory_order_relaxed);
  const RequestTimings& t = figures.timings;
  e2e_latency_.observe(figures.total_ms / 1000);
  queue_time_.observe(t.queue_ms / 1000);
  prefill_time_.observe(t.prefill_ms / 1000);
  decode_time_.observe(t.decode_ms / 1000);
  inference_time_.observe((t.prefill_ms + t.decode_ms) / 1000);
  prompt_tokens_.observe(static_cast<double>(t.num_prompt_tokens));
  generation_tokens_.observe(static_cast<double>(t.num_output_tokens));
}

std::string ServerMetrics::text(const std::string& prefix, const std::string& model_name,
                                const EngineStats& stats, const HttpServerStats& http) const {
  PrometheusText out(prefix, {{"model_name", model_name}, {"engine", "0"}});
  out.gauge("num_requests_running", "Requests in the batch.",
            static_cast<double>(stats.num_running));
  out.gauge("num_requests_waiting", "Requests that wait for a place in the batch.",
            static_cast<double>(stats.num_waiting));
  out.gauge("kv_cache_usage_perc", "Share of the KV cache in use, 1 is all of it.",
            kv_cache_usage(stats));
  out.gauge("cache_config_info", "The KV cache: tokens of a block, number of blocks.", 1,
            {{"block_size", std::to_string(stats.block_size)},
             {"num_gpu_blocks", std::to_string(stats.num_blocks)}});
  out.counter("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
              static_cast<double>(stats.prefix_queries));
  out.counter("prefix_cache_hits_total", "Prompt tokens found there.",
              static_cast<double>(stats.prefix_hits));
  out.counter("prompt_tokens_total", "Prompt tokens of admitted requests.",
              static_cast<double>(stats.num_prompt_tokens));
  out.counter("generation_tokens_total", "Tokens written.",
              static_cast<double>(stats.num_generated_tokens));
  out.counter("num_preemptions_total", "Requests that had to give their place to others.",
              static_cast<double>(stats.num_preemptions));
  std::vector<std::pair<std::string, double>> finished;
  for (size_t i = 0; i < kReasons.size(); ++i) {
    finished.emplace_back(kReasons[i],
                          static_cast<double>(num_finished_[i].load(std::memory_order_relaxed)));
  }
  out.counter("request_success_total", "Completions that ended.", "finished_reason", finished);
  out.counter("request_refused_total", "Requests refused because the queue was full.",
              static_cast<double>(num_refused_.load(std::memory_order_relaxed)));
  out.gauge("http_connections", "Open connections.", static_cast<double>(http.num_connections));
  out.counter("http_connections_refused_total", "Connections answered with 503.",
              static_cast<double>(http.num_refused));
  out.counter("http_connections_evicted_total", "Idle connections that made room for others.",
              static_cast<double>(http.num_evicted));
  out.counter("http_disconnects_total",
              "Clients that left, or were cut, before their answer ended.",
              static_cast<double>(http.num_disconnects));
  out.gauge("http_memory_bytes", "Bytes of bodies, answers and what is not sent yet.",
            static_cast<double>(http.memory_bytes));
  out.gauge("http_memory_limit_bytes", "The most that there may be of them.",
            static_cast<double>(http.memory_limit));
  out.counter("http_memory_refused_total", "Bodies, answers and streams refused for that limit.",
              static_cast<double>(http.num_memory_refused));
  out.counter("dropped_log_lines_total", "Lines of the log that were dropped: stderr was not read.",
              static_cast<double>(num_dropped_log_lines()));
  out.histogram("time_to_first_token_seconds", "From arrival to the first token.",
                time_to_first_token_);
  out.histogram("inter_token_latency_seconds", "Between two tokens of a completion.",
                inter_token_latency_);
  out.histogram("e2e_request_latency_seconds", "From arrival to the last token.", e2e_latency_);
  out.histogram("request_queue_time_seconds", "From arrival to the first step.", queue_time_);
  out.histogram("request_prefill_time_seconds", "From the first step to the first token.",
                prefill_time_);
  out.histogram("request_decode_time_seconds", "From the first token to the last.", decode_time_);
  out.histogram("request_inference_time_seconds", "From the first step to the last token.",
                inference_time_);
  out.histogram("request_prompt_tokens", "Tokens of a prompt.", prompt_tokens_);
  out.histogram("request_generation_tokens", "Tokens of an output.", generation_tokens_);
  out.histogram("request_params_n", "n of a request.", params_n_);
  out.histogram("request_params_max_tokens", "Most tokens that a request allows.",
                params_max_tokens_);
  out.histogram("iteration_tokens_total", "Tokens of a step.", iteration_tokens_);
  return out.text();
}

std::optional<std::string> ThroughputLog::line(const EngineStats& stats, Clock::time_point now) {
  const EngineStats last = last_;
  const std::optional<Clock::time_point> last_time = last_time_;
  last_ = stats;
  last_time_ = now;
  const int64_t num_prompt = stats.num_prompt_tokens - last.num_prompt_tokens;
  const int64_t num_generated = stats.num_generated_tokens - last.num_generated_tokens;
  const bool is_idle =
      num_prompt == 0 && num_generated == 0 && stats.num_running == 0 && stats.num_waiting == 0;
  // As vLLM: one more line with zeros after the last that had work.
  const bool is_silent = is_idle && was_idle_;
  was_idle_ = is_idle;
  if (is_silent || !last_time) return std::nullopt;
  const double seconds = std::chrono::duration<double>(now - *last_time).count();
  return fmt::format(
      "Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: {:.1f} tokens/s, "
      "Running: {} reqs, Waiting: {} reqs, KV cache usage: {:.1f}%, Prefix cache hit rate: {:.1f}%",
      static_cast<double>(num_prompt) / seconds, static_cast<double>(num_generated) / seconds,
      stats.num_running, stats.num_waiting, 100 * kv_cache_usage(stats),
      100 *
          share(stats.prefix_hits - last.prefix_hits, stats.prefix_queries - last.prefix_queries));
}

}  // namespace caravan
