#include "apps/bench_serve_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "eval/quantile.h"

namespace caravan {

namespace {

constexpr size_t kWidth = 50;

std::string centered(const std::string& text, char fill) {
  const size_t missing = kWidth - std::min<size_t>(kWidth, text.size());
  return std::string(missing / 2, fill) + text + std::string(missing - missing / 2, fill) + "\n";
}

std::string row(const std::string& name, double value, int digits) {
  return fmt::format("{:<40} {:<10.{}f}\n", name, value, digits);
}

std::string section(const char* title, const char* name, const LatencySummary& summary) {
  return centered(title, '-') + row(fmt::format("Mean {} (ms):", name), summary.mean, 2) +
         row(fmt::format("Median {} (ms):", name), summary.median, 2) +
         row(fmt::format("P99 {} (ms):", name), summary.p99, 2);
}

double tpot_of(const LoadResult& result) {
  return (result.end_s - result.first_token_s) / static_cast<double>(result.num_output_tokens - 1);
}

bool is_good(const LoadResult& result, const std::map<std::string, double>& limits) {
  for (const auto& [name, limit_ms] : limits) {
    const double got_s = name == "ttft"                 ? result.first_token_s
                         : name == "e2el"               ? result.end_s
                         : result.num_output_tokens > 1 ? tpot_of(result)
                                                        : 0;
    if (got_s * 1000 > limit_ms) return false;
  }
  return true;
}

}  // namespace

LatencySummary summarize_latency(std::vector<double> seconds) {
  if (seconds.empty()) return {};
  std::sort(seconds.begin(), seconds.end());
  const double sum = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  return {.mean = 1000 * sum / static_cast<double>(seconds.size()),
          .median = 1000 * sorted_quantile(seconds, 0.5),
          .p99 = 1000 * sorted_quantile(seconds, 0.99)};
}

LoadSummary summarize_load(const std::vector<LoadResult>& results, double duration_s,
                           const std::map<std::string, double>& goodput) {
  LoadSummary summary;
  summary.duration_s = duration_s;
  std::vector<double> ttft, tpot, itl, e2el;
  int64_t num_good = 0;
  for (const LoadResult& result : results) {
    if (!result.error.empty() || !result.is_done) {
      ++summary.num_failed;
      ++summary.errors[result.is_done ? result.error : "not sent"];
      continue;
    }
    ++summary.num_succeeded;
    summary.num_input_tokens += std::max<int64_t>(0, result.num_prompt_tokens);
    summary.num_output_tokens += result.num_output_tokens;
    ttft.push_back(result.first_token_s);
    e2el.push_back(result.end_s);
    if (result.num_output_tokens > 1) tpot.push_back(tpot_of(result));
    itl.insert(itl.end(), result.gaps_s.begin(), result.gaps_s.end());
    if (is_good(result, goodput)) ++num_good;
  }
  const auto per_second = [&](int64_t count) {
    return duration_s > 0 ? static_cast<double>(count) / duration_s : 0;
  };
  summary.requests_per_s = per_second(summary.num_succeeded);
  summary.output_tokens_per_s = per_second(summary.num_output_tokens);
  summary.total_tokens_per_s = per_second(summary.num_input_tokens + summary.num_output_tokens);
  summary.good_requests_per_s = per_second(num_good);
  summary.ttft = summarize_latency(std::move(ttft));
  summary.tpot = summarize_latency(std::move(tpot));
  summary.itl = summarize_latency(std::move(itl));
  summary.e2el = summarize_latency(std::move(e2el));
  return summary;
}

std::string load_report(const LoadSummary& s, int64_t max_concurrency, double request_rate,
                        bool has_goodput) {
  std::string out = centered(" Serving Benchmark Result ", '=');
  out += row("Successful requests:", static_cast<double>(s.num_succeeded), 0);
  out += row("Failed requests:", static_cast<double>(s.num_failed), 0);
  if (max_concurrency > 0) {
    out += row("Maximum request concurrency:", static_cast<double>(max_concurrency), 0);
  }
  if (request_rate > 0) out += row("Request rate configured (RPS):", request_rate, 2);
  out += row("Benchmark duration (s):", s.duration_s, 2);
  out += row("Total input tokens:", static_cast<double>(s.num_input_tokens), 0);
  out += row("Total generated tokens:", static_cast<double>(s.num_output_tokens), 0);
  out += row("Request throughput (req/s):", s.requests_per_s, 2);
  if (has_goodput) out += row("Request goodput (req/s):", s.good_requests_per_s, 2);
  out += row("Output token throughput (tok/s):", s.output_tokens_per_s, 2);
  out += row("Total token throughput (tok/s):", s.total_tokens_per_s, 2);
  out += section("Time to First Token", "TTFT", s.ttft);
  out += section("Time per Output Token (excl. 1st token)", "TPOT", s.tpot);
  out += section("Inter-token Latency", "ITL", s.itl);
  out += section("End-to-end Latency", "E2EL", s.e2el);
  out += std::string(kWidth, '=') + "\n";
  return out;
}

boost::json::object load_json(const LoadSummary& s) {
  boost::json::object object{{"completed", s.num_succeeded},
                             {"failed", s.num_failed},
                             {"duration", s.duration_s},
                             {"total_input_tokens", s.num_input_tokens},
                             {"total_output_tokens", s.num_output_tokens},
                             {"request_throughput", s.requests_per_s},
                             {"request_goodput", s.good_requests_per_s},
                             {"output_throughput", s.output_tokens_per_s},
                             {"total_token_throughput", s.total_tokens_per_s}};
  const auto add = [&](const std::string& name, const LatencySummary& summary) {
    object["mean_" + name + "_ms"] = summary.mean;
    object["median_" + name + "_ms"] = summary.median;
    object["p99_" + name + "_ms"] = summary.p99;
  };
  add("ttft", s.ttft);
  add("tpot", s.tpot);
  add("itl", s.itl);
  add("e2el", s.e2el);
  boost::json::object errors;
  for (const auto& [message, count] : s.errors) errors[message] = count;
  object["errors"] = errors;
  return object;
}

}  // namespace caravan
