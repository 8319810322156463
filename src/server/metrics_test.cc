#include "server/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>
#include <thread>

namespace caravan {
namespace {

TEST(MetricHistogramTest, BoundsBelongToTheBucketBelow) {
  MetricHistogram histogram({1, 2, 5});
  for (const double value : {0.5, 1.0, 1.5, 5.0, 5.5}) histogram.observe(value);
  histogram.observe(NAN);
  EXPECT_EQ(histogram.bucket(0), 2u);
  EXPECT_EQ(histogram.bucket(1), 1u);
  EXPECT_EQ(histogram.bucket(2), 1u);
  EXPECT_EQ(histogram.bucket(3), 1u);
  EXPECT_EQ(histogram.sum(), 13.5);
}

TEST(MetricHistogramTest, NoObservationIsLostAmongThreads) {
  MetricHistogram histogram({10});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20000; ++i) histogram.observe(i % 2 == 0 ? 1 : 100);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(histogram.bucket(0), 40000u);
  EXPECT_EQ(histogram.bucket(1), 40000u);
  EXPECT_EQ(histogram.sum(), 40000.0 + 4000000.0);
}

TEST(PrometheusTextTest, WritesTheTextFormat) {
  PrometheusText out("vllm", {{"model_name", "a\"b\\c\nd"}, {"engine", "0"}});
  out.gauge("running", "Running.", 2);
  out.counter("done_total", "Done.", "reason", {{"stop", 3}, {"length", 0.5}});
  MetricHistogram histogram({0.1, 1});
  histogram.observe(0.05);
  histogram.observe(7);
  out.histogram("time_seconds", "Time.", histogram);
  const std::string labels = "model_name=\"a\\\"b\\\\c\\nd\",engine=\"0\"";
  EXPECT_EQ(out.text(),
            "# HELP vllm:running Running.\n# TYPE vllm:running gauge\n"
            "vllm:running{" +
                labels +
                "} 2\n"
                "# HELP vllm:done_total Done.\n# TYPE vllm:done_total counter\n"
                "vllm:done_total{" +
                labels +
                ",reason=\"stop\"} 3\n"
                "vllm:done_total{" +
                labels +
                ",reason=\"length\"} 0.5\n"
                "# HELP vllm:time_seconds Time.\n# TYPE vllm:time_seconds histogram\n"
                "vllm:time_seconds_bucket{" +
                labels +
                ",le=\"0.1\"} 1\n"
                "vllm:time_seconds_bucket{" +
                labels +
                ",le=\"1\"} 1\n"
                "vllm:time_seconds_bucket{" +
                labels +
                ",le=\"+Inf\"} 2\n"
                "vllm:time_seconds_sum{" +
                labels +
                "} 7.05\n"
                "vllm:time_seconds_count{" +
                labels + "} 2\n");
}

TEST(ServerMetricsTest, FinishedCompletionsAreCountedByReason) {
  ServerMetrics metrics;
  CompletionFigures figures;
  figures.timings.num_prompt_tokens = 12;
  figures.timings.num_output_tokens = 34;
  figures.timings.prefill_ms = 250;
  figures.timings.decode_ms = 750;
  figures.finish_reason = "stop";
  metrics.observe_finished(figures);
  figures.finish_reason = "abort";
  metrics.observe_finished(figures);
  EngineStats stats;
  stats.num_blocks = 100;
  stats.num_free_blocks = 75;
  stats.num_running = 3;
  const std::string text = metrics.text("x", "m", stats, {.num_evicted = 7, .memory_limit = 5});
  const std::string labels = "{model_name=\"m\",engine=\"0\"";
  for (const std::string& line :
       {"x:request_success_total" + labels + ",finished_reason=\"stop\"} 1\n",
        "x:request_success_total" + labels + ",finished_reason=\"abort\"} 1\n",
        "x:request_success_total" + labels + ",finished_reason=\"length\"} 0\n",
        "x:kv_cache_usage_perc" + labels + "} 0.25\n", "x:num_requests_running" + labels + "} 3\n",
        "x:request_inference_time_seconds_sum" + labels + "} 2\n",
        "x:request_prompt_tokens_sum" + labels + "} 24\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line;
  }
}

TEST(ThroughputLogTest, SaysWhatHappenedSinceAndIsSilentWhenIdle) {
  ThroughputLog log;
  ThroughputLog::Clock::time_point now;
  EngineStats stats;
  EXPECT_EQ(log.line(stats, now), std::nullopt);
  stats.num_prompt_tokens = 50;
  stats.num_generated_tokens = 100;
  stats.prefix_queries = 40;
  stats.prefix_hits = 10;
  stats.num_running = 2;
  stats.num_blocks = 10;
  stats.num_free_blocks = 5;
  now += std::chrono::seconds(5);
  EXPECT_EQ(
      log.line(stats, now),
      "Avg prompt throughput: 10.0 tokens/s, Avg generation throughput: 20.0 tokens/s, "
      "Running: 2 reqs, Waiting: 0 reqs, KV cache usage: 50.0%, Prefix cache hit rate: 25.0%");
  stats.num_running = 0;
  now += std::chrono::seconds(5);
  EXPECT_TRUE(log.line(stats, now).has_value());
  now += std::chrono::seconds(5);
  EXPECT_EQ(log.line(stats, now), std::nullopt);
}

}  // namespace
}  // namespace caravan
