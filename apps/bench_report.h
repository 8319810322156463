#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/json.h"
#include "format/model_config.h"

namespace caravan {

/// What a measured piece of work has to do at least, however it is done.
struct Work {
  double flops = 0;
  double bytes = 0;  // of the device's memory, read and written

  Work& operator+=(const Work& other) {
    flops += other.flops;
    bytes += other.bytes;
    return *this;
  }
};

/// `num_seqs` prompts of `length` tokens in `num_steps` steps: matrices, causal attention, logits
/// of each last token; the weights once a step and the cache as it is written.
Work prefill_work(const ModelConfig& config, int64_t num_seqs, int64_t length, int64_t num_steps,
                  double weight_bytes, double kv_bytes_per_token);
/// One token of `num_seqs` sequences, each with `context` tokens in the cache, its own included.
Work decode_work(const ModelConfig& config, int64_t num_seqs, double context, double weight_bytes,
                 double kv_bytes_per_token);
/// y = x W + bias; W's bytes are those stored, padding included.
Work linear_work(int64_t num_tokens, const LinearWeight& weight, DType x, DType y);
/// x += delta, y = LayerNorm(x): x read and written, delta read, y written.
Work layer_norm_work(int64_t num_tokens, int64_t hidden_size, DType activation);
/// One query a sequence: q, k and v read, K and V of the token written, those of the context read.
Work attention_decode_work(int64_t num_seqs, int64_t context, int64_t hidden_size, DType activation,
                           DType kv);
/// Causal attention of prompts of `length` tokens each.
Work attention_prefill_work(int64_t num_seqs, int64_t length, int64_t hidden_size, DType activation,
                            DType kv);
Work embedding_work(int64_t num_tokens, int64_t hidden_size, DType weight);

/// Of an even number of values the mean of the middle two. `values` is not empty.
double median(std::vector<double> values);
/// Standard deviation of the sample; 0 for one value.
double deviation(const std::vector<double>& values);

/// Which ceiling a figure is a share of.
enum class Bound {
  kRead,          // bytes / read ceiling
  kCopy,          // bytes / copy ceiling
  kMatmul,        // flops / matmul ceiling
  kHostToDevice,  // bytes / host to device ceiling
  kRoofline,      // kMatmul or kRead, whichever takes longer
  kNone,          // nothing to compare with
};
/// Seconds that `work` takes at the ceiling; nullopt without one.
std::optional<double> floor_seconds(const Work& work, Bound bound, const Ceilings& ceilings);

/// One line of a report.
struct BenchRow {
  std::string test;             // "prefill"
  std::string label;            // "32 x pp512"
  boost::json::object fields;   // what else the JSON line tells: batch_size, tokens, ...
  std::vector<double> seconds;  // of each measurement
  double num_tokens = 0;        // of one measurement; 0: tokens a second mean nothing here
  Work work;                    // of one measurement
  Bound bound = Bound::kRead;
  /// Instead of that of `bound`, for work of several kinds.
  std::optional<double> floor_seconds;
};

/// What all rows of a run share.
struct BenchSubject {
  std::string model;        // a path, or a shape of random weights
  double weight_bytes = 0;  // of the whole model
  std::string backend;      // Backend::description()
  std::string dtype;        // of the weights
  std::string kv_cache_dtype;
  Ceilings ceilings;
};

/// The row as one flat JSON object, ceilings and subject included. share_of_ceiling is null where
/// there is no ceiling.
boost::json::object bench_row_to_json(const BenchRow& row, const BenchSubject& subject);

/// Prints rows as they come: a table in the manner of llama-bench, or JSON Lines.
class BenchReport {
 public:
  BenchReport(BenchSubject subject, bool is_json);
  void add(const BenchRow& row);
  const BenchSubject& subject() const { return subject_; }

 private:
  BenchSubject subject_;
  bool is_json_;
};

}  // namespace caravan
