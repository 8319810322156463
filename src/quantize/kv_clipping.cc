#include "quantize/kv_clipping.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "format/kv_scales.h"

namespace caravan {

namespace {

// Candidates of the search, in parts of the largest value.
constexpr int kMseSteps = 256;
constexpr int kMseFirst = 16;

float percentile_clip(const AbsHistogram& histogram, double percentile) {
  CARAVAN_CHECK(percentile > 0 && percentile <= 100,
                "--kv-calib-percentile {}: expected above 0, at most 100", percentile);
  const auto wanted =
      static_cast<uint64_t>(std::ceil(percentile / 100 * static_cast<double>(histogram.count())));
  uint64_t seen = 0;
  for (size_t i = 0; i < histogram.bins().size(); ++i) {
    seen += histogram.bins()[i];
    if (seen >= wanted) {
      return std::min(histogram.max(), static_cast<float>(i + 1) * histogram.bin_width());
    }
  }
  return histogram.max();
}

float mse_clip(const AbsHistogram& histogram, DType dtype) {
  float best = histogram.max();
  double least = std::numeric_limits<double>::infinity();
  for (int i = kMseSteps; i >= kMseFirst; --i) {
    const float clip = histogram.max() * (static_cast<float>(i) / kMseSteps);
    const double error = clipping_error(histogram, clip, dtype);
    if (error < least) {
      least = error;
      best = clip;
    }
  }
  return best;
}

}  // namespace

const char* kv_calib_method_name(KvCalibMethod method) {
  switch (method) {
    case KvCalibMethod::kAbsMax:
      return "absmax";
    case KvCalibMethod::kPercentile:
      return "percentile";
    case KvCalibMethod::kMse:
      return "mse";
  }
  return "unknown";
}

std::optional<KvCalibMethod> parse_kv_calib_method(std::string_view name) {
  for (const KvCalibMethod method :
       {KvCalibMethod::kAbsMax, KvCalibMethod::kPercentile, KvCalibMethod::kMse}) {
    if (name == kv_calib_method_name(method)) return method;
  }
  return std::nullopt;
}

double clipping_error(const AbsHistogram& histogram, float clip, DType dtype) {
  const float scale = std::max(clip, kSmallestClip) / kv_element_max(dtype);
  const float reciprocal = 1.0f / scale;
  double sum = 0;
  for (size_t i = 0; i < histogram.bins().size(); ++i) {
    if (histogram.bins()[i] == 0) continue;
    const float value = (static_cast<float>(i) + 0.5f) * histogram.bin_width();
    const float element = dtype == DType::kI8 ? std::min(std::nearbyint(value * reciprocal), 127.0f)
                                              : f8e4m3_to_f32(f32_to_f8e4m3(value * reciprocal));
    const double difference = static_cast<double>(value) - static_cast<double>(element * scale);
    sum += static_cast<double>(histogram.bins()[i]) * difference * difference;
  }
  return histogram.count() == 0 ? 0.0 : sum / static_cast<double>(histogram.count());
}

float choose_clip(const AbsHistogram& histogram, KvCalibMethod method, double percentile,
                  DType dtype) {
  float clip = histogram.max();
  if (method == KvCalibMethod::kPercentile) clip = percentile_clip(histogram, percentile);
  if (method == KvCalibMethod::kMse) clip = mse_clip(histogram, dtype);
  return std::max(clip, kSmallestClip);
}

}  // namespace caravan
