#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"
#include "format/kv_scales.h"
#include "quantize/abs_histogram.h"
#include "quantize/calibration_text.h"
#include "quantize/kv_clipping.h"

namespace caravan {

/// What the heads of one layer share.
enum class KvScaleGranularity : uint8_t {
  kHead,       // nothing: a scale for K and for V of each head
  kLayer2023,  // one scale: the largest magnitude of all of q, k and v, as TensorRT-LLM's
               // hf_gpt_convert.py of July 2023 stores it
};
const char* kv_granularity_name(KvScaleGranularity granularity);  // "head", "layer-2023"
std::optional<KvScaleGranularity> parse_kv_granularity(std::string_view name);

struct KvCalibrationOptions {
  DType dtype = DType::kI8;  // of the cache: kI8 or kF8E4M3
  KvScaleGranularity granularity = KvScaleGranularity::kHead;
  KvCalibMethod method = KvCalibMethod::kAbsMax;  // of kHead
  double percentile = 99.99;                      // of kPercentile
  bool is_centered = true;  // of kHead and kAbsMax: see KvCalibration::key_offsets
  int64_t num_samples = 128;
  int64_t max_len = 0;  // tokens of one sample, cut to the positions; 0: all positions
  std::optional<DType> weight_dtype = std::nullopt;  // unset: choose_weight_dtype()
};

/// What the K and V of one layer are like.
class KvLayerStatistics {
 public:
  KvLayerStatistics(int64_t num_heads, int64_t head_dim, const KvCalibrationOptions& options);

  /// qkv: [T, 3 * num_heads * head_dim] float32: "h.N.attn.c_attn" of a ForwardObserver.
  /// Errors: kInvalidArgument for a value that is not finite.
  void add(const Tensor& qkv);
  /// Appends num_heads scales to K and V, and num_heads * head_dim offsets to each when centered:
  /// the middle of what a channel was, so that the channel needs the least range.
  void append_to(KvCalibration& calibration) const;

  bool has_histograms() const {
    return options_.granularity == KvScaleGranularity::kHead &&
           options_.method != KvCalibMethod::kAbsMax;
  }
  bool is_centered() const { return uses_ranges() && options_.is_centered; }

 private:
  bool uses_ranges() const {
    return options_.granularity == KvScaleGranularity::kHead &&
           options_.method == KvCalibMethod::kAbsMax;
  }
  void add_ranges(const float* qkv, int64_t num_tokens);
  void add_histograms(const float* qkv, int64_t num_tokens);

  int64_t num_heads_;
  int64_t head_dim_;
  KvCalibrationOptions options_;
  std::vector<AbsHistogram> histograms_;  // [2 (K, V), num_heads]
  std::vector<float> lowest_;             // [2 (K, V), num_heads * head_dim]
  std::vector<float> highest_;
  float max_ = 0;  // of all of q, k and v
};

/// "caravan.kv_calibration" of config.json: what decides the scales, no dates or paths.
boost::json::object kv_calibration_record(const KvCalibrationOptions& options,
                                          const CalibrationText& text);

/// What calibrate_kv_cache() holds at most, in bytes.
struct KvCalibrationBytes {
  int64_t model = 0;       // one layer, or the embedding, with what a step needs: LayerStreamBytes
  int64_t states = 0;      // hidden states of all tokens, in host memory
  int64_t statistics = 0;  // one layer's histograms, and a step's q, k and v
  int64_t program = int64_t{96} << 20;  // code, tokenizer and text: measured, rounded up
  int64_t total() const { return model + states + statistics + program; }
};
/// For a text of `num_tokens` tokens; dtype: of the weights. `backend` may be one that only plans.
KvCalibrationBytes kv_calibration_bytes(const ModelConfig& config, const Backend& backend,
                                        DType dtype, int64_t num_tokens, int64_t max_len);

/// Runs `text` through the model with one layer of weights in memory at a time and chooses the
/// scales. The result depends on model, text and options alone.
/// Memory: kv_calibration_bytes(). Errors: those of Gpt2Model::load; kInvalidArgument for
/// activations that are not finite.
KvCalibration calibrate_kv_cache(const ModelDir& dir, std::unique_ptr<Backend> backend,
                                 const CalibrationText& text, const KvCalibrationOptions& options);

}  // namespace caravan
