#include "apps/bench_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/error.h"
#include "core/json_text.h"

namespace caravan {

namespace {

double to_double(int64_t n) { return static_cast<double>(n); }

double size_of(DType dtype) { return static_cast<double>(dtype_size(dtype)); }

// Multiply-adds of one token in all matrices of a layer.
double layer_products(const ModelConfig& c) {
  const double hidden = to_double(c.hidden_size);
  return 4 * hidden * hidden + 2 * hidden * to_double(c.ffn_size);
}

double head_products(const ModelConfig& c) {
  return to_double(c.hidden_size) * to_double(c.vocab_size);
}

struct Rate {
  double value;
  const char* unit;
};

// TFLOP/s where the arithmetic takes longer than the memory, GB/s elsewhere.
Rate rate_of(const BenchRow& row, double seconds, const Ceilings& ceilings) {
  bool is_arithmetic = row.bound == Bound::kMatmul;
  if (row.bound == Bound::kRoofline && ceilings.matmul_tflops > 0) {
    is_arithmetic = row.work.flops / (ceilings.matmul_tflops * 1e12) >
                    row.work.bytes / (ceilings.read_gb_per_s * 1e9);
  }
  if (is_arithmetic) return {row.work.flops / seconds * 1e-12, "TFLOP/s"};
  return {row.work.bytes / seconds * 1e-9, "GB/s"};
}

std::string time_text(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.2f} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.3f} ms", seconds * 1e3);
  return fmt::format("{:.3f} s", seconds);
}

std::string rate_text(const Rate& rate) {
  const int digits = rate.value < 0.01 ? 5 : rate.value < 10 ? 3 : 1;
  return fmt::format("{:.{}f} {}", rate.value, digits, rate.unit);
}

std::string ceilings_text(const Ceilings& c) {
  std::string text =
      fmt::format("read {:.1f} GB/s, copy {:.1f} GB/s", c.read_gb_per_s, c.copy_gb_per_s);
  if (c.matmul_tflops > 0) text += ", matmul " + rate_text({c.matmul_tflops, "TFLOP/s"});
  if (!c.note.empty()) text += fmt::format(" ({})", c.note);
  if (c.host_to_device_gb_per_s > 0) {
    text += fmt::format(", host to device {:.1f} GB/s", c.host_to_device_gb_per_s);
  }
  return text;
}

std::optional<double> share_of(const BenchRow& row, double seconds, const Ceilings& ceilings) {
  const std::optional<double> floor =
      row.floor_seconds ? row.floor_seconds : floor_seconds(row.work, row.bound, ceilings);
  if (!floor) return std::nullopt;
  return *floor / seconds;
}

}  // namespace

Work prefill_work(const ModelConfig& c, int64_t num_seqs, int64_t length, int64_t num_steps,
                  double weight_bytes, double kv_bytes_per_token) {
  const double tokens = to_double(num_seqs) * to_double(length);
  const double attention = 4.0 * to_double(c.hidden_size) * (to_double(length) + 1) / 2;
  return {.flops = tokens * to_double(c.num_layers) * (2 * layer_products(c) + attention) +
                   to_double(num_seqs) * 2 * head_products(c),
          .bytes = to_double(num_steps) * weight_bytes + tokens * kv_bytes_per_token};
}

Work decode_work(const ModelConfig& c, int64_t num_seqs, double context, double weight_bytes,
                 double kv_bytes_per_token) {
  const double attention = 4.0 * to_double(c.hidden_size) * context;
  return {.flops =
              to_double(num_seqs) * (to_double(c.num_layers) * (2 * layer_products(c) + attention) +
                                     2 * head_products(c)),
          .bytes = weight_bytes + to_double(num_seqs) * context * kv_bytes_per_token};
}

Work linear_work(int64_t num_tokens, const LinearWeight& w, DType x, DType y) {
  const double tokens = to_double(num_tokens);
  const double in = to_double(w.in_features);
  const double out = to_double(w.out_features);
  const double stored =
      to_double(linear_num_elements(w.layout, w.in_features, w.out_features)) * size_of(w.dtype);
  const double bias = w.bias != nullptr ? out * sizeof(float) : 0.0;
  return {.flops = 2 * tokens * in * out,
          .bytes = stored + bias + tokens * (in * size_of(x) + out * size_of(y))};
}

Work layer_norm_work(int64_t num_tokens, int64_t hidden_size, DType activation) {
  const double elements = to_double(num_tokens) * to_double(hidden_size);
  return {.flops = 8 * elements,  // two passes of a sum, the rest once
          .bytes = elements * (2 * sizeof(float) + 2 * size_of(activation))};
}

Work attention_decode_work(int64_t num_seqs, int64_t context, int64_t hidden_size, DType activation,
                           DType kv) {
  const double rows = to_double(num_seqs) * to_double(hidden_size);
  const double cached = rows * to_double(context);
  return {.flops = 4 * cached,
          .bytes = 2 * cached * size_of(kv) + rows * (4 * size_of(activation) + 2 * size_of(kv))};
}

Work attention_prefill_work(int64_t num_seqs, int64_t length, int64_t hidden_size, DType activation,
                            DType kv) {
  const double rows = to_double(num_seqs) * to_double(length) * to_double(hidden_size);
  return {.flops = 4 * rows * (to_double(length) + 1) / 2,
          .bytes = rows * (4 * size_of(activation) + 2 * size_of(kv))};
}

Work embedding_work(int64_t num_tokens, int64_t hidden_size, DType weight) {
  const double elements = to_double(num_tokens) * to_double(hidden_size);
  return {.flops = elements, .bytes = elements * (2 * size_of(weight) + sizeof(float))};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double deviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  const auto count = static_cast<double>(values.size());
  double mean = 0;
  for (const double v : values) mean += v / count;
  double squares = 0;
  for (const double v : values) squares += (v - mean) * (v - mean);
  return std::sqrt(squares / (count - 1));
}

std::optional<double> floor_seconds(const Work& work, Bound bound, const Ceilings& ceilings) {
  const auto at = [](double amount, double rate) -> std::optional<double> {
    if (rate <= 0) return std::nullopt;
    return amount / rate;
  };
  const auto arithmetic = at(work.flops, ceilings.matmul_tflops * 1e12);
  const auto memory = at(work.bytes, ceilings.read_gb_per_s * 1e9);
  switch (bound) {
    case Bound::kRead:
      return memory;
    case Bound::kCopy:
      return at(work.bytes, ceilings.copy_gb_per_s * 1e9);
    case Bound::kMatmul:
      return arithmetic;
    case Bound::kHostToDevice:
      return at(work.bytes, ceilings.host_to_device_gb_per_s * 1e9);
    case Bound::kRoofline:
      return arithmetic && memory ? std::max(*arithmetic, *memory) : memory;
    case Bound::kNone:
      break;
  }
  return std::nullopt;
}

boost::json::object bench_row_to_json(const BenchRow& row, const BenchSubject& subject) {
  const double seconds = median(row.seconds);
  const Ceilings& c = subject.ceilings;
  boost::json::object json{{"test", row.test}, {"label", row.label}};
  for (const auto& [name, value] : row.fields) json[name] = value;
  json["ms"] = seconds * 1e3;
  json["ms_deviation"] = deviation(row.seconds) * 1e3;
  json["num_measurements"] = row.seconds.size();
  if (row.num_tokens > 0) {
    json["tokens_per_s"] = row.num_tokens / seconds;
    json["tokens_per_s_deviation"] = row.num_tokens / seconds * deviation(row.seconds) / seconds;
  }
  if (row.work.bytes > 0) {
    const Rate rate = rate_of(row, seconds, c);
    json["flops"] = row.work.flops;
    json["bytes"] = row.work.bytes;
    json["rate"] = rate.value;
    json["unit"] = rate.unit;
  }
  const std::optional<double> share = share_of(row, seconds, c);
  json["share_of_ceiling"] = share ? boost::json::value(*share) : boost::json::value(nullptr);
  json["read_gb_per_s"] = c.read_gb_per_s;
  json["copy_gb_per_s"] = c.copy_gb_per_s;
  json["matmul_tflops"] = c.matmul_tflops;
  json["matmul_note"] = c.note;
  json["host_to_device_gb_per_s"] = c.host_to_device_gb_per_s;
  json["model"] = subject.model;
  json["weight_bytes"] = subject.weight_bytes;
  json["backend"] = subject.backend;
  json["dtype"] = subject.dtype;
  json["kv_cache_dtype"] = subject.kv_cache_dtype;
  return json;
}

BenchReport::BenchReport(BenchSubject subject, bool is_json)
    : subject_(std::move(subject)), is_json_(is_json) {
  if (is_json_) return;
  std::printf("# %s, %s weights, %s KV cache\n", subject_.backend.c_str(), subject_.dtype.c_str(),
              subject_.kv_cache_dtype.c_str());
  std::printf("# ceilings of this run: %s\n", ceilings_text(subject_.ceilings).c_str());
  std::printf("| model | size | backend | test | time | ± | t/s | ± | rate | of ceiling |\n");
  std::printf("|---|--:|---|---|--:|--:|--:|--:|--:|--:|\n");
  std::fflush(stdout);
}

void BenchReport::add(const BenchRow& row) {
  if (is_json_) {
    std::printf("%s\n", to_json_text(bench_row_to_json(row, subject_)).c_str());
    std::fflush(stdout);
    return;
  }
  const double seconds = median(row.seconds);
  const double spread = deviation(row.seconds);
  const double rate = row.num_tokens / seconds;
  const std::optional<double> share = share_of(row, seconds, subject_.ceilings);
  const std::string line = fmt::format(
      "| {} | {} | {} | {} | {} | {:.1f} % | {} | {} | {} | {} |", subject_.model,
      subject_.weight_bytes > 0 ? fmt::format("{:.2f} GB", subject_.weight_bytes * 1e-9) : "-",
      subject_.backend.substr(0, subject_.backend.find(' ')), row.label, time_text(seconds),
      spread / seconds * 100, row.num_tokens > 0 ? fmt::format("{:.2f}", rate) : "-",
      row.num_tokens > 0 ? fmt::format("{:.2f}", rate * spread / seconds) : "-",
      row.work.bytes > 0 ? rate_text(rate_of(row, seconds, subject_.ceilings)) : "-",
      share ? fmt::format("{:.1f} %", *share * 100) : "-");
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

}  // namespace caravan
