#include "server/prometheus_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace caravan {

namespace {

std::string escaped(std::string_view value) {
  std::string text;
  for (const char c : value) {
    if (c == '\\' || c == '"') text += '\\';
    if (c == '\n') {
      text += "\\n";
    } else {
      text += c;
    }
  }
  return text;
}

std::string label_list(const PrometheusText::Labels& labels) {
  std::string text;
  for (const auto& [name, value] : labels) {
    text += fmt::format("{}{}=\"{}\"", text.empty() ? "" : ",", name, escaped(value));
  }
  return text;
}

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return fmt::format("{}", value);  // the shortest text that reads back as this double
}

}  // namespace

MetricHistogram::MetricHistogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), buckets_(new std::atomic<uint64_t>[bounds_.size() + 1]()) {}

void MetricHistogram::observe(double value) {
  if (std::isnan(value)) return;
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  buckets_[static_cast<size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
  double sum = sum_.load(std::memory_order_relaxed);
  while (!sum_.compare_exchange_weak(sum, sum + value, std::memory_order_relaxed)) {
  }
}

PrometheusText::PrometheusText(std::string prefix, const Labels& labels)
    : prefix_(std::move(prefix)), labels_(label_list(labels)) {}

void PrometheusText::head(std::string_view name, std::string_view help, std::string_view type) {
  text_ +=
      fmt::format("# HELP {}:{} {}\n# TYPE {}:{} {}\n", prefix_, name, help, prefix_, name, type);
}

void PrometheusText::sample(std::string_view name, std::string_view suffix, const Labels& labels,
                            double value) {
  const std::string more = label_list(labels);
  text_ += fmt::format("{}:{}{}{{{}{}{}}} {}\n", prefix_, name, suffix, labels_,
                       labels_.empty() || more.empty() ? "" : ",", more, number(value));
}

void PrometheusText::gauge(std::string_view name, std::string_view help, double value,
                           const Labels& labels) {
  head(name, help, "gauge");
  sample(name, "", labels, value);
}

void PrometheusText::counter(std::string_view name, std::string_view help, double value) {
  head(name, help, "counter");
  sample(name, "", {}, value);
}

void PrometheusText::counter(std::string_view name, std::string_view help, const std::string& label,
                             const std::vector<std::pair<std::string, double>>& values) {
  head(name, help, "counter");
  for (const auto& [value, count] : values) sample(name, "", {{label, value}}, count);
}

void PrometheusText::histogram(std::string_view name, std::string_view help,
                               const MetricHistogram& histogram) {
  head(name, help, "histogram");
  uint64_t total = 0;  // the sum of the buckets, so that a scrape among observations is consistent
  for (size_t i = 0; i <= histogram.bounds().size(); ++i) {
    total += histogram.bucket(i);
    const bool is_last = i == histogram.bounds().size();
    sample(name, "_bucket", {{"le", is_last ? "+Inf" : number(histogram.bounds()[i])}},
           static_cast<double>(total));
  }
  sample(name, "_sum", {}, histogram.sum());
  sample(name, "_count", {}, static_cast<double>(total));
}

}  // namespace caravan
