#include "apps/bench_flags.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "convert/engine_builder.h"
#include "convert/synth.h"
#include "core/error.h"

namespace caravan {

void BenchFlags::add_to(CLI::App& command) {
  model.add_to(command, false);
  command.add_option(
      "--random-weights", random_weights,
      fmt::format("Instead of --model: random weights of this shape, made on the device: {}",
                  fmt::join(synth_shape_names(), ", ")));
  command.add_flag("--json", is_json, "One JSON object a row");
}

ModelDir BenchFlags::open() const {
  CARAVAN_CHECK(model.model.empty() != random_weights.empty(),
                "expected --model or --random-weights, and not both");
  if (random_weights.empty()) return open_model_dir(model.model);
  const std::optional<ModelConfig> shape = synth_shape(random_weights);
  CARAVAN_CHECK(shape.has_value(), "--random-weights {}: expected {}", printable(random_weights),
                fmt::join(synth_shape_names(), ", "));
  ModelDir dir;
  dir.path = random_weights;
  dir.config = *shape;
  return dir;
}

std::string BenchFlags::model_name() const {
  if (!random_weights.empty()) return random_weights + " random";
  const size_t last = model.model.find_last_not_of('/');
  const std::string path = model.model.substr(0, last + 1);
  return path.substr(path.find_last_of('/') + 1);
}

DType BenchFlags::weight_dtype(const ModelDir& dir) const {
  return dtype_flag(model.dtype, "--dtype").value_or(default_engine_dtype(dir));
}

ModelRunnerOptions BenchFlags::runner_options() const {
  ModelRunnerOptions options;
  options.dtype = dtype_flag(model.dtype, "--dtype");
  options.kv_cache_dtype = kv_dtype_flag(model.kv_cache_dtype);
  options.verify_weights = !model.skips_verification;
  return options;
}

ModelRunner BenchFlags::make_runner(const ModelDir& dir, std::unique_ptr<Backend> backend,
                                    const ModelRunnerOptions& options) const {
  return random_weights.empty() ? ModelRunner(dir, std::move(backend), options)
                                : ModelRunner::random(dir, std::move(backend), options);
}

BenchSubject BenchFlags::subject(const ModelRunner& runner, const Ceilings& ceilings) const {
  return {.model = model_name(),
          .weight_bytes = static_cast<double>(runner.model().num_weight_bytes()),
          .backend = runner.backend().description(),
          .dtype = dtype_name(runner.model().weight_dtype()),
          .kv_cache_dtype = dtype_name(runner.cache().dtype()),
          .ceilings = ceilings};
}

void add_sizes(CLI::App& command, const std::string& name, std::vector<int64_t>& sizes,
               const std::string& description) {
  command.add_option(name, sizes, description)->delimiter(',')->capture_default_str();
}

int64_t check_sizes(const char* name, const std::vector<int64_t>& sizes, int64_t most) {
  int64_t largest = 1;
  for (const int64_t n : sizes) {
    CARAVAN_CHECK(n >= 1 && n <= most, "{} {}: expected 1 to {}", name, n, most);
    largest = std::max(largest, n);
  }
  return largest;
}

double seconds_since(BenchClock::time_point start) {
  return std::chrono::duration<double>(BenchClock::now() - start).count();
}

std::vector<int32_t> random_token_ids(int64_t count, int64_t vocab_size) {
  std::vector<int32_t> ids;
  uint64_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    ids.push_back(static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(vocab_size)));
  }
  return ids;
}

void fill_cache_randomly(ModelRunner& runner) {
  const KvCache& cache = runner.cache();
  const ModelConfig& config = runner.model().config();
  const int64_t count = cache.num_blocks() * cache.block_size() * config.hidden_size;
  // Values up to 1, in elements of the scales that random weights have.
  const float one =
      is_quantized_kv(cache.dtype()) ? kv_element_max(cache.dtype()) / kRandomKvMax : 1.0f;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const KvLayer layer = cache.layer(i);
    const auto seed = static_cast<uint64_t>(2 * i);
    runner.backend().fill_random(layer.k, layer.dtype, count, 0.0f, one, seed);
    runner.backend().fill_random(layer.v, layer.dtype, count, 0.0f, one, seed + 1);
  }
  runner.backend().synchronize();
}

}  // namespace caravan
