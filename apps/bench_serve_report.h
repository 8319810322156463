#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "apps/bench_serve_client.h"
#include "core/json.h"

namespace caravan {

/// Of one kind of time, milliseconds.
struct LatencySummary {
  double mean = 0, median = 0, p99 = 0;
};
/// Zeros without values.
LatencySummary summarize_latency(std::vector<double> seconds);

/// What vLLM's benchmark prints. A request is good when it keeps every limit of `goodput`
/// (milliseconds for ttft, tpot, e2el).
struct LoadSummary {
  int64_t num_succeeded = 0;
  int64_t num_failed = 0;
  std::map<std::string, int64_t> errors;  // message -> requests
  double duration_s = 0;
  int64_t num_input_tokens = 0;
  int64_t num_output_tokens = 0;
  double requests_per_s = 0;
  double output_tokens_per_s = 0;
  double total_tokens_per_s = 0;
  double good_requests_per_s = 0;
  LatencySummary ttft;  // to the first text
  LatencySummary tpot;  // (whole - TTFT) / (output tokens - 1), requests of two tokens and more
  LatencySummary itl;   // between two events with text
  LatencySummary e2el;  // whole
};
LoadSummary summarize_load(const std::vector<LoadResult>& results, double duration_s,
                           const std::map<std::string, double>& goodput);

/// The block of lines that vLLM prints; goodput only when it has limits.
std::string load_report(const LoadSummary& summary, int64_t max_concurrency, double request_rate,
                        bool has_goodput);
/// Under vLLM's names, milliseconds.
boost::json::object load_json(const LoadSummary& summary);

}  // namespace caravan
