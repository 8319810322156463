#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace caravan {

/// Counts observations in buckets of given upper bounds. Thread safe, without locks.
class MetricHistogram {
 public:
  /// Bounds rise; one more bucket takes what is above the last.
  explicit MetricHistogram(std::vector<double> bounds);
  /// A NaN is left out.
  void observe(double value);

  const std::vector<double>& bounds() const { return bounds_; }
  /// Observations in bucket i alone, i in [0, bounds().size()].
  uint64_t bucket(size_t i) const { return buckets_[i].load(std::memory_order_relaxed); }
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::vector<double> bounds_;
  std::unique_ptr<std::atomic<uint64_t>[]> buckets_;  // [bounds_.size() + 1]
  std::atomic<double> sum_{0};
};

/// Writes metrics in Prometheus' text format, version 0.0.4.
class PrometheusText {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;

  /// prefix: "vllm" gives vllm:name. The labels go on every sample.
  PrometheusText(std::string prefix, const Labels& labels);

  void gauge(std::string_view name, std::string_view help, double value, const Labels& labels = {});
  /// As counters are named: with "_total" at the end of the sample, and of `name`.
  void counter(std::string_view name, std::string_view help, double value);
  /// One counter with a label of several values.
  void counter(std::string_view name, std::string_view help, const std::string& label,
               const std::vector<std::pair<std::string, double>>& values);
  void histogram(std::string_view name, std::string_view help, const MetricHistogram& histogram);

  const std::string& text() const { return text_; }

 private:
  void head(std::string_view name, std::string_view help, std::string_view type);
  void sample(std::string_view name, std::string_view suffix, const Labels& labels, double value);

  std::string prefix_;
  std::string labels_;  // model_name="camel",engine="0"
  std::string text_;
};

}  // namespace caravan
