#include "apps/kv_calibration_flags.h"

#include <algorithm>

#include "backend/create_backend.h"
#include "core/error.h"
#include "core/log.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

void KvCalibrationFlags::add_to(CLI::App& command) {
  const std::string group = "Scales of an int8 or fp8 KV cache";
  // "-kv FILE" of hf_gpt_convert.py arrives as -k with the values "v" and FILE.
  calibrate =
      command
          .add_option("--calibrate-kv-cache,--calibrate_kv_cache,-k", file,
                      "Run this text through the model, one layer in memory at a time, and "
                      "store scales of K and V: JSON lines with \"text\" (LAMBADA), or plain "
                      "text")
          ->expected(0, 2)
          ->type_name("FILE")
          ->group(group);
  command.add_option("--calib-size,--calib_size", num_samples, "Samples of the text")
      ->capture_default_str()
      ->group(group);
  command
      .add_option(
          "--calib-max-len,--calib_max_len", max_len,
          "Tokens of one sample, the rest is cut off; 0: as many as the model has positions, "
          "which K and V differ along")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--kv-calib-method", method,
                  "absmax: nothing is clipped; percentile: the largest values are; mse: the least "
                  "mean squared error")
      ->capture_default_str()
      ->group(group);
  command.add_option("--kv-calib-percentile", percentile, "Share of the values that is kept, in %")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--kv-scale-granularity", granularity,
                  "head: K and V of each head have their own scale; layer-2023: one scale a layer "
                  "from the largest magnitude of q, k and v, as hf_gpt_convert.py stored it")
      ->capture_default_str()
      ->group(group);
  command
      .add_flag("--no-kv-centering", is_uncentered,
                "Leave the biases as they are. Otherwise the middle of each channel of K and V is "
                "taken from it and given back behind attention (absmax of heads only): the same "
                "model, a smaller range")
      ->group(group);
  command.add_option("--calib-device", device, "Where the text runs: cpu, cuda or cuda:N")
      ->capture_default_str()
      ->group(group);
}

std::string KvCalibrationFlags::path() const {
  const bool is_short = !file.empty() && file.front() == "v";
  CARAVAN_CHECK(file.size() == (is_short ? 2u : 1u) && !file.back().empty(),
                "--calibrate-kv-cache: got no FILE, expected the text to calibrate on, for example "
                "LAMBADA as JSON lines with \"text\": --calibrate-kv-cache lambada.jsonl");
  return file.back();
}

KvCalibrationOptions KvCalibrationFlags::options(const ModelDir& dir, DType dtype) const {
  KvCalibrationOptions options;
  options.dtype = dtype;
  const auto parsed_method = parse_kv_calib_method(method);
  CARAVAN_CHECK(parsed_method, "--kv-calib-method {}: expected absmax, percentile or mse",
                printable(method));
  options.method = *parsed_method;
  CARAVAN_CHECK(percentile > 0 && percentile <= 100,
                "--kv-calib-percentile {}: expected above 0, at most 100", percentile);
  options.percentile = percentile;
  const auto parsed_granularity = parse_kv_granularity(granularity);
  CARAVAN_CHECK(parsed_granularity, "--kv-scale-granularity {}: expected head or layer-2023",
                printable(granularity));
  options.granularity = *parsed_granularity;
  options.is_centered = !is_uncentered;
  CARAVAN_CHECK(num_samples >= 1 && num_samples <= 1'000'000,
                "--calib-size {}: expected 1 to 1000000", num_samples);
  CARAVAN_CHECK(max_len >= 0, "--calib-max-len {}: expected at least 1, or 0", max_len);
  options.num_samples = num_samples;
  options.max_len = dir.config.max_seq_len;
  if (max_len > 0) options.max_len = std::min(max_len, options.max_len);
  return options;
}

KvCalibration KvCalibrationFlags::run(const ModelDir& dir, DType dtype,
                                      std::optional<DType> weight_dtype) const {
  KvCalibrationOptions calibration = options(dir, dtype);
  calibration.weight_dtype = weight_dtype;
  const Tokenizer tokenizer = Tokenizer::from_directory(dir.path);
  const CalibrationText text = read_calibration_text(path(), tokenizer, dir.config.vocab_size,
                                                     calibration.num_samples, calibration.max_len);
  log_info("calibrate: {} samples, {} tokens of {}", text.samples.size(), text.num_tokens(),
           printable(path()));
  size_t longest = 0;
  for (const std::vector<int32_t>& sample : text.samples) {
    longest = std::max(longest, sample.size());
  }
  if (static_cast<int64_t>(longest) < dir.config.max_seq_len) {
    log_warning(
        "--calibrate-kv-cache {}: the longest sample has {} tokens, the model {} positions; K and "
        "V of later ones may be clipped: take a longer text, or plain text in place of JSON lines",
        printable(path()), longest, dir.config.max_seq_len);
  }
  return calibrate_kv_cache(dir, create_backend({.device = device}), text, calibration);
}

}  // namespace caravan
