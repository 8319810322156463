#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "format/model_config.h"
#include "format/weight_spec.h"

namespace caravan {

/// A model of random weights in Hugging Face form, for benchmarks and tests.
struct SynthOptions {
  ModelConfig config;
  uint64_t seed = 0;
  DType dtype = DType::kF32;                 // kF32, kF16 or kBF16
  int64_t max_shard_bytes = 10'000'000'000;  // as save_pretrained's max_shard_size
  std::string tokenizer_directory;           // tokenizer files to copy, or ""
  bool replace = false;                      // an existing output
};

/// Names of the known shapes, for --help.
const std::vector<std::string>& synth_shape_names();
/// Config of a known shape: "camel-5b" (Writer/camel-5b-hf), "palmyra-base", "camel-nano", "gpt2",
/// "gpt2-medium", "gpt2-large", "gpt2-xl".
std::optional<ModelConfig> synth_shape(std::string_view name);

/// Elements [first, first + count) of the tensor `spec` of the model of `seed`. Each value is a
/// function of (seed, spec.name, index) alone: mean 0 (LayerNorm weights: 1), standard deviation
/// 0.02, Irwin-Hall distribution of order 4 (the sum of four 16-bit uniforms of one 64-bit hash):
/// near normal, excess kurtosis -0.3, never beyond 3.47 standard deviations.
void synth_values(uint64_t seed, const WeightSpec& spec, int64_t first, int64_t count, float* out);

/// Writes model.safetensors, or shards with an index, and config.json into `output`, in memory
/// bounded by a few MiB. Errors: kInvalidArgument (an output that exists, a bad dtype), kIo.
void write_synthetic_model(const SynthOptions& options, const std::string& output);

}  // namespace caravan
