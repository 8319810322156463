#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "convert/memory_plan.h"
#include "core/json.h"
#include "format/kv_scales.h"
#include "format/model_dir.h"

namespace caravan {

struct EngineBuildOptions {
  std::string input;   // Hugging Face or checkpoint directory
  std::string output;  // engine directory to make
  BuildConfig build;
  PlanInputs plan;
  bool replace = false;  // an existing output
  /// Scales to store; unset: those of a checkpoint directory that has some.
  std::optional<KvCalibration> kv_calibration;
  /// Called with the work directory once it is a complete engine without a certificate; what it
  /// returns becomes "certificate" in config.json, what it throws fails the build. May be null.
  std::function<boost::json::object(const std::string& engine_path)> certify;
};

struct EngineBuildResult {
  MemoryPlan plan;
  int64_t num_tensors = 0;
  int64_t num_bytes = 0;  // of rank0.safetensors
  std::vector<std::string> skipped;
  std::vector<std::string> copied_files;
};

/// Writes an engine directory: config.json (Hugging Face's fields, and "caravan" with limits,
/// tensor table with layout and XXH3, memory plan, certificate), rank0.safetensors with every
/// tensor as the target's kernels read it, 4 KiB aligned, and tokenizer files. Streams: beside a
/// few MiB it holds one linear weight twice in the engine's dtype. Needs no GPU. Killed or failing
/// it leaves nothing under `output`. Errors: kUnsupported for a target or dtype without kernels and
/// for a tensor-parallel checkpoint; kInvalidArgument for limits beyond the model, an int8
/// KV cache without scales and values outside the dtype's range; those of open_model_dir,
/// TensorSource and resolve_gpt2_weights; kIo.
EngineBuildResult build_engine(const EngineBuildOptions& options);

/// The dtype to build with when none was asked for: the source's own if it is 16 bit, else float16.
DType default_engine_dtype(const ModelDir& source);

}  // namespace caravan
