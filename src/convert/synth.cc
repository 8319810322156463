#include "convert/synth.h"

#include <algorithm>
#include <cmath>

#include "convert/model_files.h"
#include "core/atomic_directory.h"
#include "core/error.h"
#include "core/progress.h"
#include "core/split_mix.h"
#include "format/model_dir.h"
#include "format/safetensors.h"

namespace caravan {

namespace {

constexpr float kStandardDeviation = 0.02f;
// Sum of four uniform integers in [0, 65535]: mean 2 * 65535, variance 4 * (2^32 - 1) / 12.
constexpr int32_t kSumMean = 131070;
constexpr double kSumDeviation = 37837.2272;  // sqrt(4 * (2^32 - 1) / 12)
constexpr int64_t kPieceElements = int64_t{1} << 20;

struct KnownShape {
  const char* name;
  int64_t hidden_size, num_layers, num_heads, max_seq_len, vocab_size;
  const char* activation_function;
};

// Writer/camel-5b-hf and Writer/palmyra-base: their config.json; gpt2*: openai-community/gpt2*.
constexpr KnownShape kShapes[] = {
    {"camel-5b", 4096, 24, 32, 2048, 50258, "gelu"},
    {"palmyra-base", 4096, 24, 32, 2048, 50257, "gelu"},
    {"camel-nano", 192, 8, 3, 1024, 50258, "gelu"},
    {"gpt2", 768, 12, 12, 1024, 50257, "gelu_new"},
    {"gpt2-medium", 1024, 24, 16, 1024, 50257, "gelu_new"},
    {"gpt2-large", 1280, 36, 20, 1024, 50257, "gelu_new"},
    {"gpt2-xl", 1600, 48, 25, 1024, 50257, "gelu_new"},
};

uint64_t tensor_key(uint64_t seed, std::string_view name) {
  uint64_t key = split_mix(seed + 0x9e3779b97f4a7c15ull);
  for (const char c : name) key = split_mix(key ^ static_cast<uint8_t>(c)) + 0x9e3779b97f4a7c15ull;
  return key;
}

bool is_layer_norm_weight(std::string_view name) {
  return name.ends_with(".weight") && (name.find("ln_") != std::string_view::npos);
}

struct Shard {
  std::vector<WeightSpec> specs;
  int64_t num_bytes = 0;
};

int64_t spec_bytes(const WeightSpec& spec, DType dtype) {
  return checked_mul(spec.shape.num_elements(), static_cast<int64_t>(dtype_size(dtype)), spec.name);
}

std::vector<Shard> make_shards(const std::vector<WeightSpec>& specs, const SynthOptions& options) {
  std::vector<Shard> shards(1);
  for (const WeightSpec& spec : specs) {
    const int64_t num_bytes = spec_bytes(spec, options.dtype);
    if (!shards.back().specs.empty() &&
        shards.back().num_bytes + num_bytes > options.max_shard_bytes) {
      shards.emplace_back();
    }
    shards.back().specs.push_back(spec);
    shards.back().num_bytes += num_bytes;
  }
  return shards;
}

// As save_pretrained of GPT2LMHeadModel names them.
std::string stored_name(const WeightSpec& spec) {
  return spec.role == WeightRole::kHead ? spec.name : "transformer." + spec.name;
}

void write_tensor(const WeightSpec& spec, const SynthOptions& options, SafetensorsWriter& writer,
                  Progress& progress) {
  const int64_t total = spec.shape.num_elements();
  const size_t size = dtype_size(options.dtype);
  std::vector<float> values(static_cast<size_t>(std::min(total, kPieceElements)));
  std::vector<char> bytes(values.size() * size);
  for (int64_t first = 0; first < total; first += kPieceElements) {
    const int64_t count = std::min(kPieceElements, total - first);
    constexpr int64_t kBlock = 16384;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < count; b += kBlock) {
      const int64_t n = std::min(kBlock, count - b);
      synth_values(options.seed, spec, first + b, n, values.data() + b);
      convert_elements(values.data() + b, DType::kF32,
                       bytes.data() + b * static_cast<int64_t>(size), options.dtype,
                       static_cast<size_t>(n));
    }
    writer.write(bytes.data(), static_cast<size_t>(count) * size);
    progress.add(static_cast<uint64_t>(count) * size);
  }
}

}  // namespace

const std::vector<std::string>& synth_shape_names() {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names;
    for (const KnownShape& shape : kShapes) names.emplace_back(shape.name);
    return names;
  }();
  return kNames;
}

std::optional<ModelConfig> synth_shape(std::string_view name) {
  for (const KnownShape& shape : kShapes) {
    if (name != shape.name) continue;
    ModelConfig config;
    config.hidden_size = shape.hidden_size;
    config.num_layers = shape.num_layers;
    config.num_heads = shape.num_heads;
    config.ffn_size = 4 * shape.hidden_size;
    config.max_seq_len = shape.max_seq_len;
    config.vocab_size = shape.vocab_size;
    config.activation_function = shape.activation_function;
    config.activation = *parse_activation(shape.activation_function);
    config.bos_token_id = 50256;
    config.eos_token_ids = {50256};
    return config;
  }
  return std::nullopt;
}

void synth_values(uint64_t seed, const WeightSpec& spec, int64_t first, int64_t count, float* out) {
  const uint64_t key = tensor_key(seed, spec.name);
  const float mean = is_layer_norm_weight(spec.name) ? 1.0f : 0.0f;
  const auto scale = static_cast<float>(kStandardDeviation / kSumDeviation);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t h = split_mix(key + static_cast<uint64_t>(first + i) * 0x9e3779b97f4a7c15ull);
    const auto sum = static_cast<int32_t>((h & 0xffff) + ((h >> 16) & 0xffff) +
                                          ((h >> 32) & 0xffff) + (h >> 48));
    out[i] = mean + static_cast<float>(sum - kSumMean) * scale;
  }
}

void write_synthetic_model(const SynthOptions& options, const std::string& output) {
  CARAVAN_CHECK(
      options.dtype == DType::kF32 || options.dtype == DType::kF16 || options.dtype == DType::kBF16,
      "--dtype: got {}, wanted float32, float16 or bfloat16", dtype_name(options.dtype));
  const ModelConfig& config = options.config;
  const std::string config_json = to_hf_config_json(config, options.dtype);
  parse_model_config(config_json, "--shape");  // the same limits as for a file
  check_model_output(output, options.replace, {{"--tokenizer", options.tokenizer_directory}});
  const auto specs = gpt2_weight_specs(config, !config.tie_word_embeddings);
  const std::vector<Shard> shards = make_shards(specs, options);
  int64_t total_bytes = 0;
  for (const Shard& shard : shards) total_bytes += shard.num_bytes;

  AtomicDirectory directory(output, options.replace, model_directory_kind());
  try {
    directory.clear();
    directory.check_room(static_cast<uint64_t>(total_bytes));
    Progress progress("synth", static_cast<uint64_t>(total_bytes), "B");
    boost::json::object weight_map;
    for (size_t s = 0; s < shards.size(); ++s) {
      const std::string name = shards.size() == 1 ? "model.safetensors"
                                                  : fmt::format("model-{:05}-of-{:05}.safetensors",
                                                                s + 1, shards.size());
      std::vector<SafetensorsWriter::Spec> tensors;
      for (const WeightSpec& spec : shards[s].specs) {
        tensors.push_back({stored_name(spec), options.dtype, spec.shape});
        weight_map[stored_name(spec)] = name;
      }
      SafetensorsWriter writer(directory.file(name), tensors,
                               {{kSyntheticMark, "random weights"}, {"format", "pt"}});
      for (const WeightSpec& spec : shards[s].specs) {
        write_tensor(spec, options, writer, progress);
      }
      writer.finish();
    }
    progress.finish();
    if (shards.size() > 1) {
      write_json_file(
          directory.file("model.safetensors.index.json"),
          boost::json::object{
              {"metadata", {{"total_size", total_bytes}, {kSyntheticMark, "random weights"}}},
              {"weight_map", weight_map}});
    }
    // What says that the directory is ours, so that --force may replace it.
    boost::json::object marked = parse_json(config_json, "config.json").as_object();
    marked["caravan"] = {{"kind", "synthetic"}, {"format_version", kModelDirFormatVersion}};
    write_json_file(directory.file("config.json"), marked);
    if (!options.tokenizer_directory.empty()) {
      const auto copied = copy_tokenizer_files(options.tokenizer_directory, directory);
      CARAVAN_CHECK(!copied.empty(), "--tokenizer: {} holds no tokenizer files",
                    options.tokenizer_directory);
    }
    directory.commit();
  } catch (...) {
    directory.discard();
    throw;
  }
}

}  // namespace caravan
