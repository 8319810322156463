#include "quantize/kv_calibrator.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/progress.h"
#include "format/checksum.h"
#include "models/layer_stream.h"

namespace caravan {

namespace {

// Tokens of one step: matrix kernels are near their best, activations stay small.
constexpr int64_t kStepTokens = 512;

LayerStreamOptions stream_options(std::optional<DType> dtype, int64_t max_len) {
  return {.dtype = dtype,
          .max_num_batched_tokens = kStepTokens,
          .max_num_logits = 1,
          .max_seq_len = max_len};
}

}  // namespace

const char* kv_granularity_name(KvScaleGranularity granularity) {
  return granularity == KvScaleGranularity::kHead ? "head" : "layer-2023";
}

std::optional<KvScaleGranularity> parse_kv_granularity(std::string_view name) {
  for (const auto granularity : {KvScaleGranularity::kHead, KvScaleGranularity::kLayer2023}) {
    if (name == kv_granularity_name(granularity)) return granularity;
  }
  return std::nullopt;
}

KvLayerStatistics::KvLayerStatistics(int64_t num_heads, int64_t head_dim,
                                     const KvCalibrationOptions& options)
    : num_heads_(num_heads), head_dim_(head_dim), options_(options) {
  if (has_histograms()) histograms_.resize(static_cast<size_t>(2 * num_heads));
  if (uses_ranges()) {
    lowest_.assign(static_cast<size_t>(2 * num_heads * head_dim),
                   std::numeric_limits<float>::infinity());
    highest_.assign(lowest_.size(), -std::numeric_limits<float>::infinity());
  }
}

void KvLayerStatistics::add(const Tensor& qkv) {
  const int64_t hidden = num_heads_ * head_dim_;
  const int64_t num_tokens = qkv.shape[0];
  CARAVAN_CHECK_CODE(qkv.dtype == DType::kF32 && qkv.shape == Shape({num_tokens, 3 * hidden}),
                     kInternal, "calibration: qkv has shape {}, expected {} columns",
                     qkv.shape.to_string(), 3 * hidden);
  const auto* values = qkv.as<float>();
  bool is_finite = true;
  for (int64_t i = 0; i < num_tokens * 3 * hidden; ++i) {
    is_finite = is_finite && std::isfinite(values[i]);
    max_ = std::max(max_, std::fabs(values[i]));
  }
  CARAVAN_CHECK(is_finite,
                "calibration: q, k or v is not finite: the model overflows its dtype; choose "
                "--dtype bfloat16 or float32");
  if (uses_ranges()) add_ranges(values, num_tokens);
  if (has_histograms()) add_histograms(values, num_tokens);
}

void KvLayerStatistics::add_ranges(const float* qkv, int64_t num_tokens) {
  const int64_t hidden = num_heads_ * head_dim_;
  for (int64_t t = 0; t < num_tokens; ++t) {
    const float* row = qkv + t * 3 * hidden + hidden;  // k, then v
    for (int64_t i = 0; i < 2 * hidden; ++i) {
      const auto at = static_cast<size_t>(i);
      lowest_[at] = std::min(lowest_[at], row[i]);
      highest_[at] = std::max(highest_[at], row[i]);
    }
  }
}

void KvLayerStatistics::add_histograms(const float* qkv, int64_t num_tokens) {
  const int64_t hidden = num_heads_ * head_dim_;
#pragma omp parallel for schedule(static)
  for (int64_t h = 0; h < 2 * num_heads_; ++h) {
    AbsHistogram& histogram = histograms_[static_cast<size_t>(h)];
    for (int64_t t = 0; t < num_tokens; ++t) {
      histogram.add(qkv + t * 3 * hidden + hidden + h * head_dim_, head_dim_);
    }
  }
}

void KvLayerStatistics::append_to(KvCalibration& calibration) const {
  const float element_max = kv_element_max(options_.dtype);
  const auto heads = static_cast<size_t>(num_heads_);
  const auto dim = static_cast<size_t>(head_dim_);
  std::vector<float> clips(2 * heads, max_);
  std::vector<float> offsets(2 * heads * dim);
#pragma omp parallel for schedule(dynamic)
  for (size_t h = 0; h < 2 * heads; ++h) {
    if (has_histograms()) {
      clips[h] = choose_clip(histograms_[h], options_.method, options_.percentile, options_.dtype);
      continue;
    }
    if (!uses_ranges()) continue;
    clips[h] = 0;
    for (size_t i = h * dim; i < (h + 1) * dim; ++i) {
      if (is_centered()) offsets[i] = 0.5f * lowest_[i] + 0.5f * highest_[i];
      clips[h] = std::max({clips[h], highest_[i] - offsets[i], offsets[i] - lowest_[i]});
    }
  }
  for (size_t h = 0; h < 2 * heads; ++h) {
    std::vector<float>& scales = h < heads ? calibration.scales.k : calibration.scales.v;
    scales.push_back(std::max(clips[h], kSmallestClip) / element_max);
  }
  if (!is_centered()) return;
  const auto middle = offsets.begin() + static_cast<std::ptrdiff_t>(heads * dim);
  calibration.key_offsets.insert(calibration.key_offsets.end(), offsets.begin(), middle);
  calibration.value_offsets.insert(calibration.value_offsets.end(), middle, offsets.end());
}

boost::json::object kv_calibration_record(const KvCalibrationOptions& options,
                                          const CalibrationText& text) {
  boost::json::object record = {{"dtype", dtype_name(options.dtype)},
                                {"granularity", kv_granularity_name(options.granularity)}};
  if (options.granularity == KvScaleGranularity::kHead) {
    record["method"] = kv_calib_method_name(options.method);
    record["is_centered"] = options.is_centered && options.method == KvCalibMethod::kAbsMax;
    if (options.method == KvCalibMethod::kPercentile) record["percentile"] = options.percentile;
  } else {
    record["method"] = kv_calib_method_name(KvCalibMethod::kAbsMax);
  }
  record["num_samples"] = text.samples.size();
  size_t longest = 0;
  for (const std::vector<int32_t>& sample : text.samples) {
    longest = std::max(longest, sample.size());
  }
  record["longest_sample"] = longest;
  record["num_tokens"] = text.num_tokens();
  record["data_xxh3"] = checksum_text(text.xxh3);
  return record;
}

KvCalibrationBytes kv_calibration_bytes(const ModelConfig& config, const Backend& backend,
                                        DType dtype, int64_t num_tokens, int64_t max_len) {
  KvCalibrationBytes bytes;
  bytes.model =
      LayerStream::num_bytes(config, backend, dtype, stream_options(dtype, max_len)).total();
  bytes.states = checked_mul(checked_mul(num_tokens, config.hidden_size, "calibration states"),
                             sizeof(float), "calibration states");
  const auto histogram = static_cast<int64_t>(sizeof(AbsHistogram)) +
                         AbsHistogram::kNumBins * static_cast<int64_t>(sizeof(uint64_t));
  bytes.statistics = 2 * config.num_heads * histogram;
  if (!backend.reads_host_memory()) {  // as stored, and as float32
    bytes.statistics +=
        kStepTokens * 3 * config.hidden_size *
        static_cast<int64_t>(dtype_size(backend.activation_dtype(dtype)) + sizeof(float));
  }
  return bytes;
}

KvCalibration calibrate_kv_cache(const ModelDir& dir, std::unique_ptr<Backend> backend,
                                 const CalibrationText& text, const KvCalibrationOptions& options) {
  CARAVAN_CHECK(dir.kind != ModelDirKind::kEngine,
                "{}: an engine cannot be calibrated: calibrate when it is built", dir.path);
  LayerStreamOptions stream = stream_options(options.weight_dtype, options.max_len);
  LayerStream model(dir, std::move(backend), stream);
  const ModelConfig& config = model.config();
  std::vector<int32_t> ids;
  std::vector<int64_t> lengths;
  for (const std::vector<int32_t>& sample : text.samples) {
    ids.insert(ids.end(), sample.begin(), sample.end());
    lengths.push_back(static_cast<int64_t>(sample.size()));
  }
  std::vector<float> states(ids.size() * static_cast<size_t>(config.hidden_size));
  KvCalibration calibration;
  calibration.dtype = options.dtype;
  calibration.record = kv_calibration_record(options, text);
  Progress progress("calibrate", static_cast<uint64_t>(config.num_layers) * ids.size(), "tokens");
  model.load_embedding();
  model.embed(ids, lengths, states);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    model.load_layer(layer);
    KvLayerStatistics statistics(config.num_heads, config.head_dim(), options);
    const std::string wanted = fmt::format("h.{}.attn.c_attn", layer);
    model.run_layer(lengths, states, [&](std::string_view name, int64_t, const Tensor& value) {
      if (name != wanted) return false;
      statistics.add(value);
      progress.add(static_cast<uint64_t>(value.shape[0]));
      return false;
    });
    statistics.append_to(calibration);
  }
  progress.finish();
  return calibration;
}

}  // namespace caravan
