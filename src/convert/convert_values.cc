#include "convert/convert_values.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace {

constexpr int64_t kBlock = 32768;

// Exponent all ones: infinity or NaN. A reduction without a branch, so that it runs as vectors.
template <typename T>
bool has_nonfinite(const void* data, int64_t count, T exponent_mask) {
  const T* values = static_cast<const T*>(data);
  bool found = false;
  for (int64_t i = 0; i < count; ++i) found |= (values[i] & exponent_mask) == exponent_mask;
  return found;
}

bool has_nonfinite(const void* data, DType dtype, int64_t count) {
  switch (dtype) {
    case DType::kF16:
      return has_nonfinite<uint16_t>(data, count, 0x7c00u);
    case DType::kBF16:
      return has_nonfinite<uint16_t>(data, count, 0x7f80u);
    case DType::kF32:
      return has_nonfinite<uint32_t>(data, count, 0x7f800000u);
    default:
      CARAVAN_FAIL(kUnsupported, "cannot convert weights to {}", dtype_name(dtype));
  }
}

// Mapped data has no alignment.
double load_f64(const void* data, size_t i) {
  double value;
  std::memcpy(&value, static_cast<const char*>(data) + i * sizeof(value), sizeof(value));
  return value;
}

}  // namespace

ValueConverter::ValueConverter(std::string where, DType src_dtype, DType dst_dtype)
    : where_(std::move(where)), src_dtype_(src_dtype), dst_dtype_(dst_dtype) {}

void ValueConverter::convert(const void* src, void* dst, int64_t count, int64_t first_index) {
  const auto src_size = static_cast<int64_t>(dtype_size(src_dtype_));
  const auto dst_size = static_cast<int64_t>(dtype_size(dst_dtype_));
  bool found = false;
#pragma omp parallel for schedule(static) reduction(|| : found) if (count > 4 * kBlock)
  for (int64_t b = 0; b < count; b += kBlock) {
    const int64_t n = std::min(kBlock, count - b);
    const auto* block_src = static_cast<const char*>(src) + b * src_size;
    auto* block_dst = static_cast<char*>(dst) + b * dst_size;
    convert_elements(block_src, src_dtype_, block_dst, dst_dtype_, static_cast<size_t>(n));
    found = found || has_nonfinite(block_dst, dst_dtype_, n);
  }
  if (found) inspect(src, dst, count, first_index);
}

void ValueConverter::inspect(const void* src, const void* dst, int64_t count, int64_t first_index) {
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    if (std::isfinite(load_as_f32(dst, dst_dtype_, at))) continue;
    // A float64 source is read as it is: 1e300 is finite there and infinite as float32.
    const double value =
        src_dtype_ == DType::kF64 ? load_f64(src, at) : load_as_f32(src, src_dtype_, at);
    CARAVAN_CHECK(!std::isfinite(value),
                  "{}: value {} at index {} is outside the range of {}; choose --dtype bfloat16 or "
                  "float32",
                  where_, value, first_index + i, dtype_name(dst_dtype_));
    if (num_source_nonfinite_++ == 0) first_source_nonfinite_ = first_index + i;
  }
}

void ValueConverter::finish() const {
  if (num_source_nonfinite_ == 0) return;
  log_warning(
      "{}: {} values are infinite or NaN in the source already, the first at index {}; kept",
      where_, num_source_nonfinite_, first_source_nonfinite_);
}

std::vector<float> centered_bias(const ResolvedWeight& bias, const ResolvedWeights& resolved,
                                 const KvCalibration& calibration) {
  const int64_t count = bias.spec.shape.num_elements();
  std::vector<float> values(static_cast<size_t>(count));
  std::vector<std::byte> scratch;
  convert_elements(bias.tensor->read(0, count, scratch), bias.tensor->dtype, values.data(),
                   DType::kF32, values.size());
  const int64_t layer = *attention_bias_layer(bias.spec);
  if (bias.spec.name.ends_with("c_attn.bias")) {
    center_qkv_bias(calibration, layer, values);
    return values;
  }
  const std::string name = fmt::format("h.{}.attn.c_proj.weight", layer);
  for (const ResolvedWeight& weight : resolved.weights) {
    if (weight.spec.name != name) continue;
    const int64_t size = weight.spec.shape.num_elements();
    center_proj_bias(calibration, layer, weight.tensor->read(0, size, scratch),
                     weight.tensor->dtype, values);
    weight.tensor->release(0, size);
    return values;
  }
  CARAVAN_FAIL(kInternal, "{} is missing", name);
}

}  // namespace caravan
