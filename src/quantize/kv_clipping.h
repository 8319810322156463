#pragma once

#include <optional>
#include <string_view>

#include "core/dtype.h"
#include "quantize/abs_histogram.h"

namespace caravan {

/// How the largest magnitude that a quantized cache keeps is chosen; what is beyond it is clipped.
enum class KvCalibMethod : uint8_t {
  kAbsMax,      // nothing is clipped
  kPercentile,  // a share of the values, the largest, is
  kMse,         // the one with the least mean squared error of dtype's elements
};
const char* kv_calib_method_name(KvCalibMethod method);  // "absmax", "percentile", "mse"
std::optional<KvCalibMethod> parse_kv_calib_method(std::string_view name);

/// Scales stay normal numbers and their reciprocals finite: no clipping value is below this.
inline constexpr float kSmallestClip = 0x1p-100f;

/// Mean squared difference between the values, at the middle of their bins, and what a cache of
/// `dtype` with this clipping value keeps of them.
double clipping_error(const AbsHistogram& histogram, float clip, DType dtype);

/// The clipping value, above 0. percentile: of kPercentile, in (0, 100]; its bin's upper edge, at
/// most the largest value. kMse searches 1/16, 17/256, ... of the largest value up to all of it.
/// dtype: kI8 or kF8E4M3. The scale of a head is clip / kv_element_max(dtype).
/// Source: Wu et al. 2020, "Integer quantization for deep learning inference", section 3.2.
float choose_clip(const AbsHistogram& histogram, KvCalibMethod method, double percentile,
                  DType dtype);

}  // namespace caravan
