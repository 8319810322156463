#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "format/kv_scales.h"
#include "format/weight_spec.h"

namespace caravan {

/// Converts the values of one tensor piece by piece and watches for values that the conversion
/// breaks: finite in the source, infinite or NaN after it. Infinities and NaNs that the source
/// itself holds are kept and counted.
class ValueConverter {
 public:
  /// where: the tensor in messages, e.g. "model.safetensors: h.0.attn.c_attn.weight".
  ValueConverter(std::string where, DType src_dtype, DType dst_dtype);

  /// dst[i] = src[i] for i < count; `first_index` is the place of src[0] in the whole tensor. Uses
  /// all OpenMP threads for large counts.
  /// Errors: kInvalidArgument naming tensor, index, value and dtype when a value overflows.
  void convert(const void* src, void* dst, int64_t count, int64_t first_index);

  /// One warning when the source held infinities or NaNs.
  void finish() const;
  int64_t num_source_nonfinite() const { return num_source_nonfinite_; }

 private:
  void inspect(const void* src, const void* dst, int64_t count, int64_t first_index);

  std::string where_;
  DType src_dtype_;
  DType dst_dtype_;
  int64_t num_source_nonfinite_ = 0;
  int64_t first_source_nonfinite_ = -1;
};

/// The values of an attention bias (attention_bias_layer() has one) in float32 as a model with the
/// calibration's offsets needs them; `resolved` holds c_proj's weight.
std::vector<float> centered_bias(const ResolvedWeight& bias, const ResolvedWeights& resolved,
                                 const KvCalibration& calibration);

}  // namespace caravan
