#include "format/kv_scales.h"

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/log.h"
#include "core/op_params.h"
#include "format/tensor_source.h"

namespace caravan {

namespace {

// Where the values of `spec` begin: specs alternate K and V, layer by layer.
struct Place {
  bool is_k;
  size_t first;
};

Place place_of(const WeightSpec& spec, const ModelConfig& config) {
  const std::vector<WeightSpec> specs = kv_scale_specs(config);
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].name == spec.name) {
      return {i % 2 == 0, i / 2 * static_cast<size_t>(config.num_heads)};
    }
  }
  CARAVAN_FAIL(kInternal, "{} is no KV scale", spec.name);
}

void check_scale(float scale, const std::string& where, const std::string& name, int64_t head) {
  CARAVAN_CHECK_CODE(std::isfinite(scale) && scale > 0, kCorrupt,
                     "{}: {} of head {}: got {}, expected a positive number: calibrate again",
                     where, name, head, scale);
}

const float* offsets_of_layer(const std::vector<float>& offsets, int64_t layer, size_t hidden) {
  const size_t first = static_cast<size_t>(layer) * hidden;
  CARAVAN_CHECK(first + hidden <= offsets.size(), "{} offsets, layer {} needs {} from {}",
                offsets.size(), layer, hidden, first);
  return offsets.data() + first;
}

}  // namespace

float kv_element_max(DType dtype) {
  CARAVAN_CHECK_CODE(is_quantized_kv(dtype), kInternal, "a {} KV cache is not quantized",
                     dtype_name(dtype));
  return dtype == DType::kI8 ? 127.0f : 448.0f;
}

KvScales uniform_kv_scales(const ModelConfig& config, float scale) {
  const auto count = static_cast<size_t>(config.num_layers * config.num_heads);
  return {.k = std::vector<float>(count, scale), .v = std::vector<float>(count, scale)};
}

KvScales random_model_kv_scales(const ModelConfig& config, DType dtype) {
  if (!is_quantized_kv(dtype)) return {};
  return uniform_kv_scales(config, kRandomKvMax / kv_element_max(dtype));
}

KvScales kv_scales_for(const KvCalibration& calibration, DType dtype) {
  KvScales scales = calibration.scales;
  if (dtype == calibration.dtype) return scales;
  const float ratio = kv_element_max(calibration.dtype) / kv_element_max(dtype);
  for (std::vector<float>* values : {&scales.k, &scales.v}) {
    for (float& value : *values) value *= ratio;
  }
  return scales;
}

std::optional<KvCalibration> load_kv_calibration(const ModelDir& dir) {
  if (!dir.kv_scale_dtype) return std::nullopt;
  CARAVAN_CHECK_CODE(dir.tensor_parallel == 1, kUnsupported,
                     "{}: KV scales of {} tensor-parallel ranks; this version runs one rank",
                     dir.path, dir.tensor_parallel);
  const std::string where = dir.rank_path(0);
  const TensorSource source = TensorSource::open_file(where);
  KvCalibration calibration;
  calibration.dtype = *dir.kv_scale_dtype;
  calibration.record = dir.caravan.at("kv_calibration").as_object();
  for (const WeightSpec& spec : kv_scale_specs(dir.config)) {
    const StoredTensor* tensor = source.find(spec.name);
    CARAVAN_CHECK_CODE(tensor != nullptr, kCorrupt, "{}: {} is missing", where, spec.name);
    CARAVAN_CHECK_CODE(tensor->dtype == DType::kF32 && tensor->shape == spec.shape, kCorrupt,
                       "{}: {}: {} of shape {}, expected float32 of shape {}", where, spec.name,
                       dtype_name(tensor->dtype), tensor->shape.to_string(),
                       spec.shape.to_string());
    std::vector<float>& values =
        place_of(spec, dir.config).is_k ? calibration.scales.k : calibration.scales.v;
    for (int64_t h = 0; h < dir.config.num_heads; ++h) {
      float scale;
      std::memcpy(&scale, tensor->data() + static_cast<size_t>(h) * sizeof(float), sizeof(float));
      check_scale(scale, where, spec.name, h);
      values.push_back(scale);
    }
  }
  return calibration;
}

void center_qkv_bias(const KvCalibration& calibration, int64_t layer, std::vector<float>& bias) {
  if (calibration.key_offsets.empty()) return;
  const size_t hidden = bias.size() / 3;
  const float* keys = offsets_of_layer(calibration.key_offsets, layer, hidden);
  const float* values = offsets_of_layer(calibration.value_offsets, layer, hidden);
  for (size_t i = 0; i < hidden; ++i) {
    bias[hidden + i] -= keys[i];
    bias[2 * hidden + i] -= values[i];
  }
}

void center_proj_bias(const KvCalibration& calibration, int64_t layer, const void* weight,
                      DType dtype, std::vector<float>& bias) {
  if (calibration.value_offsets.empty()) return;
  const size_t hidden = bias.size();
  const float* values = offsets_of_layer(calibration.value_offsets, layer, hidden);
  std::vector<double> sums(bias.begin(), bias.end());
  for (size_t k = 0; k < hidden; ++k) {
    for (size_t n = 0; n < hidden; ++n) {
      sums[n] += static_cast<double>(values[k]) *
                 static_cast<double>(load_as_f32(weight, dtype, k * hidden + n));
    }
  }
  for (size_t n = 0; n < hidden; ++n) bias[n] = static_cast<float>(sums[n]);
}

KvScales kv_scales_of(const ModelDir& dir, DType dtype) {
  if (!is_quantized_kv(dtype)) return {};
  if (const auto calibration = load_kv_calibration(dir)) return kv_scales_for(*calibration, dtype);
  CARAVAN_CHECK(dtype != DType::kI8,
                "{}: an int8 KV cache needs scales and none are stored: convert or build the model "
                "with --calibrate-kv-cache FILE (text of the kind it will read)",
                dir.path);
  log_warning(
      "{}: no scales for the float8 KV cache: 1 is used and values beyond 448 are clipped; convert "
      "or build with --calibrate-kv-cache FILE",
      dir.path);
  return uniform_kv_scales(dir.config, 1.0f);
}

std::vector<float> kv_scale_values(const KvScales& scales, const ModelConfig& config,
                                   const WeightSpec& spec) {
  const auto count = static_cast<size_t>(config.num_layers * config.num_heads);
  CARAVAN_CHECK(scales.k.size() == count && scales.v.size() == count,
                "{} and {} KV scales, expected one for each of {} heads", scales.k.size(),
                scales.v.size(), count);
  const Place place = place_of(spec, config);
  const std::vector<float>& values = place.is_k ? scales.k : scales.v;
  const auto first = values.begin() + static_cast<std::ptrdiff_t>(place.first);
  return {first, first + config.num_heads};
}

}  // namespace caravan
