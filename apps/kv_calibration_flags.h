#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "format/kv_scales.h"
#include "quantize/kv_calibrator.h"

namespace caravan {

/// The flags of `convert`, `build` and `plan` about scales of a quantized KV cache:
/// --calibrate-kv-cache --calib-size --calib-max-len --kv-calib-method --kv-calib-percentile
/// --kv-scale-granularity --no-kv-centering --calib-device.
struct KvCalibrationFlags {
  std::vector<std::string> file;  // what followed --calibrate-kv-cache
  int64_t num_samples = KvCalibrationOptions{}.num_samples;
  int64_t max_len = KvCalibrationOptions{}.max_len;
  std::string method = kv_calib_method_name(KvCalibrationOptions{}.method);
  double percentile = 99.99;
  std::string granularity = kv_granularity_name(KvCalibrationOptions{}.granularity);
  bool is_uncentered = false;
  std::string device = "cpu";

  void add_to(CLI::App& command);
  bool is_wanted() const { return calibrate->count() > 0; }
  /// The text to calibrate on. Errors: kInvalidArgument when the flag came without one.
  std::string path() const;
  /// Errors: kInvalidArgument for a flag's value; dtype: of the cache, kI8 or kF8E4M3.
  KvCalibrationOptions options(const ModelDir& dir, DType dtype) const;
  /// Reads the text and runs it through the model.
  KvCalibration run(const ModelDir& dir, DType dtype, std::optional<DType> weight_dtype) const;

 private:
  CLI::Option* calibrate = nullptr;
};

}  // namespace caravan
