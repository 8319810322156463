#pragma once

#include <optional>
#include <vector>

#include "core/dtype.h"
#include "core/json.h"
#include "format/model_dir.h"

namespace caravan {

/// What the elements of a quantized KV cache are multiplied with: one number for each head of each
/// layer, for K and for V.
struct KvScales {
  std::vector<float> k;  // [num_layers, num_heads], each finite and > 0
  std::vector<float> v;

  bool is_empty() const { return k.empty() && v.empty(); }
};

/// Scales as a directory stores them, and where they come from.
struct KvCalibration {
  KvScales scales;
  DType dtype = DType::kI8;  // the cache dtype that they are for
  /// Taken from every key and value, [num_layers, hidden_size] each; empty: nothing. Softmax does
  /// not see a vector that is taken from every key, and what is taken from every value comes back
  /// with c_proj's bias; the range that is left to the cache is smaller. Not stored: the biases
  /// are.
  std::vector<float> key_offsets;
  std::vector<float> value_offsets;
  boost::json::object record;  // "caravan.kv_calibration": dtype, method, data, ...
};

/// Largest magnitude of an element: 127 for kI8, 448 for kF8E4M3.
float kv_element_max(DType dtype);

/// The same scale everywhere.
KvScales uniform_kv_scales(const ModelConfig& config, float scale);

/// Fixed scales for models of random weights: room for values up to 8 in every head.
inline constexpr float kRandomKvMax = 8.0f;
KvScales random_model_kv_scales(const ModelConfig& config, DType dtype);

/// The scales for a cache of `dtype`: the same clipping values, divided by its own largest element.
KvScales kv_scales_for(const KvCalibration& calibration, DType dtype);

/// What the directory stores; nullopt when it has no scales. Reads the tensors h.N.attn.k_scale and
/// h.N.attn.v_scale of rank 0, [num_heads] float32. Requires: tensor_parallel == 1.
/// Errors: kCorrupt naming the tensor when one is missing, of another dtype or shape, or holds a
/// value that is not finite or not above 0.
std::optional<KvCalibration> load_kv_calibration(const ModelDir& dir);

/// The bias of c_attn of `layer` ([3 * hidden_size]: q, k, v) less the calibration's offsets.
void center_qkv_bias(const KvCalibration& calibration, int64_t layer, std::vector<float>& bias);
/// The bias of attn.c_proj ([hidden_size]) plus the value offsets through its weight, [hidden_size
/// (in), hidden_size (out)] of `dtype`; sums in double.
void center_proj_bias(const KvCalibration& calibration, int64_t layer, const void* weight,
                      DType dtype, std::vector<float>& bias);

/// The scales of the directory for a cache of `dtype`; empty unless it is quantized. A float8 cache
/// without stored scales gets 1 everywhere and a warning, as in vLLM. Errors: those of
/// load_kv_calibration(); kInvalidArgument for an int8 cache without stored scales.
KvScales kv_scales_of(const ModelDir& dir, DType dtype);

/// Values [num_heads] of the tensor `spec`, one of kv_scale_specs(), within `scales`.
std::vector<float> kv_scale_values(const KvScales& scales, const ModelConfig& config,
                                   const WeightSpec& spec);

}  // namespace caravan
