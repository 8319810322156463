#include "convert/memory_plan.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

#include "convert/byte_size.h"
#include "core/error.h"
#include "core/op_params.h"
#include "core/tensor.h"

namespace caravan {

namespace {

constexpr int64_t kMaxBatchSize = 65536;

std::string group_of(const WeightSpec& spec) {
  if (spec.role == WeightRole::kTokenEmbedding) return "wte";
  if (spec.role == WeightRole::kPositionEmbedding) return "wpe";
  if (spec.role == WeightRole::kHead) return "lm_head";
  return spec.name.starts_with("h.") ? "layers" : "ln_f";
}

void check_limits(const ModelConfig& config, const BuildConfig& build) {
  const auto check = [](int64_t value, int64_t high, const char* flag) {
    CARAVAN_CHECK(value >= 1 && value <= high, "{}: got {}, wanted 1 to {}", flag, value, high);
  };
  check(build.max_batch_size, kMaxBatchSize, "--max-batch-size");
  check(build.max_input_len, config.max_seq_len, "--max-input-len");
  check(build.max_output_len, config.max_seq_len, "--max-output-len");
  CARAVAN_CHECK(
      build.max_input_len + build.max_output_len <= config.max_seq_len,
      "--max-input-len {} and --max-output-len {} together exceed the model's {} positions",
      build.max_input_len, build.max_output_len, config.max_seq_len);
}

// The largest n in [1, high] for which fits(n) holds, 0 when none does; fits must be monotone.
template <typename Fits>
int64_t largest(int64_t high, const Fits& fits) {
  int64_t low = 0;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// The first integer in a file of /proc or /sys; nullopt for "max", nonsense or no file.
std::optional<int64_t> read_integer(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

// "name value" or "name: value kB" lines.
std::optional<int64_t> read_field(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string key;
    int64_t value = 0;
    if ((words >> key >> value) && (key == name || key == name + ":")) return value;
  }
  return std::nullopt;
}

// Bytes the cgroup leaves: its limit less what is in use and cannot be dropped. Limits of parents
// count as well.
std::optional<int64_t> cgroup_available(const std::string& root, std::string path,
                                        const char* limit_name, const char* usage_name,
                                        const char* cache_name) {
  std::optional<int64_t> least;
  for (;;) {
    const std::string directory = root + path;
    const auto limit = read_integer(directory + "/" + limit_name);
    const auto usage = read_integer(directory + "/" + usage_name);
    if (limit && usage) {
      const int64_t cache = read_field(directory + "/memory.stat", cache_name).value_or(0);
      const int64_t left = std::max<int64_t>(0, *limit - std::max<int64_t>(0, *usage - cache));
      least = std::min(least.value_or(left), left);
    }
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return least;
    path.resize(slash);
  }
}

}  // namespace

bool is_gpu_target(std::string_view target) {
  return target == "sm_80" || target == "sm_86" || target == "sm_89" || target == "sm_90";
}

EngineWeight engine_weight(const WeightSpec& spec, const BuildConfig& build) {
  const bool is_cpu = build.target == "cpu";
  CARAVAN_CHECK_CODE(is_cpu || is_gpu_target(build.target), kUnsupported,
                     "--target {}: the targets are cpu, sm_80, sm_86, sm_89 and sm_90",
                     printable(build.target));
  CARAVAN_CHECK_CODE(
      build.dtype == DType::kF32 || build.dtype == DType::kF16 || build.dtype == DType::kBF16,
      kUnsupported, "--dtype: got {}, wanted float16, bfloat16 or float32",
      dtype_name(build.dtype));
  EngineWeight weight;
  if (spec.role == WeightRole::kVector) {
    weight.num_elements = spec.shape.num_elements();
    return weight;
  }
  weight.dtype = build.dtype;
  if (spec.role == WeightRole::kPositionEmbedding) {
    weight.num_elements = spec.shape.num_elements();
    return weight;
  }
  if (is_cpu) {
    weight.layout =
        build.dtype == DType::kBF16 ? LinearLayout::kPanel32Pairs : LinearLayout::kPanel32;
  } else {
    weight.layout = build.dtype == DType::kF32 ? LinearLayout::kOutIn : LinearLayout::kCore8x8;
  }
  weight.in_features = spec.in_features;
  weight.out_features = spec.out_features;
  weight.num_elements = linear_num_elements(weight.layout, spec.in_features, spec.out_features);
  return weight;
}

MemoryPlan make_memory_plan(const ModelConfig& config, bool has_own_head, const BuildConfig& build,
                            const PlanInputs& inputs) {
  check_limits(config, build);
  MemoryPlan plan;
  plan.build = build;
  for (const WeightSpec& spec : gpt2_weight_specs(config, has_own_head)) {
    const EngineWeight weight = engine_weight(spec, build);
    const auto size = static_cast<int64_t>(dtype_size(weight.dtype));
    const int64_t num_bytes = checked_mul(weight.num_elements, size, spec.name);
    const std::string group = group_of(spec);
    if (plan.weights.empty() || plan.weights.back().name != group) {
      plan.weights.push_back({group, 0});
    }
    plan.weights.back().num_bytes =
        checked_add(plan.weights.back().num_bytes, num_bytes, "weights");
    plan.weights_bytes = checked_add(plan.weights_bytes, num_bytes, "weights");
    plan.num_parameters += spec.shape.num_elements();
    plan.padding_bytes += num_bytes - spec.shape.num_elements() * size;
  }
  const auto kv_size = static_cast<int64_t>(dtype_size(build.kv_cache_dtype));
  plan.kv_block_size = inputs.kv_block_size;
  plan.kv_num_blocks = inputs.kv_num_blocks;
  if (plan.kv_num_blocks == 0) {
    plan.kv_num_blocks =
        checked_mul(build.max_batch_size,
                    ceil_div(build.max_input_len + build.max_output_len, plan.kv_block_size),
                    "KV cache blocks");
  }
  plan.kv_bytes_per_token = checked_mul(
      checked_mul(2 * config.num_layers, config.hidden_size, "KV cache"), kv_size, "KV cache");
  plan.kv_bytes = checked_mul(checked_mul(plan.kv_num_blocks, plan.kv_block_size, "KV cache"),
                              plan.kv_bytes_per_token, "KV cache");
  if (is_quantized_kv(build.kv_cache_dtype)) {
    plan.kv_scale_bytes =
        2 * config.num_layers * config.num_heads * static_cast<int64_t>(sizeof(float));
    plan.kv_bytes = checked_add(plan.kv_bytes, plan.kv_scale_bytes, "KV cache");
  }
  if (inputs.workspace_bytes) plan.workspace_bytes = inputs.workspace_bytes(build);
  checked_add(checked_add(plan.weights_bytes, plan.kv_bytes, "memory plan"), plan.workspace_bytes,
              "memory plan");
  return plan;
}

void check_fits(const MemoryPlan& plan, int64_t available_bytes) {
  if (plan.total_bytes() <= available_bytes) return;
  const BuildConfig& build = plan.build;
  // KV cache and workspace shrink with the limits, the weights do not.
  const std::string advice =
      plan.weights_bytes <= available_bytes
          ? fmt::format(
                "lower --max-batch-size ({}), --max-input-len ({}) or --max-output-len ({}){}",
                build.max_batch_size, build.max_input_len, build.max_output_len,
                is_quantized_kv(build.kv_cache_dtype)
                    ? ""
                    : ", or halve it with --kv-cache-dtype int8 or fp8")
      : build.dtype == DType::kF32
          ? std::string("choose --dtype float16 or bfloat16 (now float32)")
          : std::string("the weights alone need a machine with more memory");
  CARAVAN_FAIL(kOutOfMemory,
               "the plan needs {} and {} are available: weights {}, KV cache {}, workspace {}; {}",
               format_bytes(plan.total_bytes()), format_bytes(available_bytes),
               format_bytes(plan.weights_bytes), format_bytes(plan.kv_bytes),
               format_bytes(plan.workspace_bytes), advice);
}

PlanLimits largest_limits(const ModelConfig& config, bool has_own_head, const BuildConfig& build,
                          const PlanInputs& inputs, int64_t available_bytes) {
  const MemoryPlan plan = make_memory_plan(config, has_own_head, build, inputs);
  const auto fits = [&](const BuildConfig& candidate) {
    const int64_t blocks =
        ceil_div(candidate.max_input_len + candidate.max_output_len, plan.kv_block_size);
    const int64_t kv = checked_add(
        checked_mul(checked_mul(candidate.max_batch_size, blocks * plan.kv_block_size, "KV cache"),
                    plan.kv_bytes_per_token, "KV cache"),
        plan.kv_scale_bytes, "KV cache");
    const int64_t workspace = inputs.workspace_bytes ? inputs.workspace_bytes(candidate) : 0;
    return plan.weights_bytes + workspace <= available_bytes &&
           kv <= available_bytes - plan.weights_bytes - workspace;
  };
  PlanLimits limits;
  limits.max_batch_size = largest(kMaxBatchSize, [&](int64_t n) {
    BuildConfig candidate = build;
    candidate.max_batch_size = n;
    return fits(candidate);
  });
  limits.max_seq_len = largest(config.max_seq_len, [&](int64_t n) {
    BuildConfig candidate = build;
    candidate.max_output_len = std::min(build.max_output_len, std::max<int64_t>(1, n - 1));
    candidate.max_input_len = std::max<int64_t>(1, n - candidate.max_output_len);
    return fits(candidate);
  });
  return limits;
}

std::string plan_text(const MemoryPlan& plan) {
  const BuildConfig& build = plan.build;
  std::string text;
  const auto row = [&](std::string_view name, int64_t num_bytes, const std::string& note) {
    text += fmt::format("{:<14} {:>18} B  {:>9.3f} GB  {}\n", name, group_digits(num_bytes),
                        static_cast<double>(num_bytes) / 1e9, note);
  };
  text += fmt::format("limits: batch {}, input {}, output {} tokens; {} weights, {} KV cache, {}\n",
                      build.max_batch_size, build.max_input_len, build.max_output_len,
                      dtype_name(build.dtype), dtype_name(build.kv_cache_dtype), build.target);
  text += fmt::format("parameters: {}\n", group_digits(plan.num_parameters));
  for (const MemoryPlan::Item& item : plan.weights) row("  " + item.name, item.num_bytes, "");
  row("weights", plan.weights_bytes,
      fmt::format("of them {} B padding", group_digits(plan.padding_bytes)));
  row("KV cache", plan.kv_bytes,
      fmt::format("{} blocks of {} tokens, {} B a token{}", group_digits(plan.kv_num_blocks),
                  plan.kv_block_size, group_digits(plan.kv_bytes_per_token),
                  plan.kv_scale_bytes == 0
                      ? ""
                      : fmt::format(", {} B scales", group_digits(plan.kv_scale_bytes))));
  row("workspace", plan.workspace_bytes, "kernels and activations");
  row("total", plan.total_bytes(), "");
  return text;
}

boost::json::object plan_json(const MemoryPlan& plan) {
  boost::json::object weights;
  for (const MemoryPlan::Item& item : plan.weights) weights[item.name] = item.num_bytes;
  return {{"num_parameters", plan.num_parameters},
          {"weights", std::move(weights)},
          {"weights_bytes", plan.weights_bytes},
          {"padding_bytes", plan.padding_bytes},
          {"kv_block_size", plan.kv_block_size},
          {"kv_num_blocks", plan.kv_num_blocks},
          {"kv_bytes_per_token", plan.kv_bytes_per_token},
          {"kv_scale_bytes", plan.kv_scale_bytes},
          {"kv_bytes", plan.kv_bytes},
          {"workspace_bytes", plan.workspace_bytes},
          {"total_bytes", plan.total_bytes()}};
}

std::optional<int64_t> available_memory_bytes() {
  std::optional<int64_t> available;
  if (const auto kilobytes = read_field("/proc/meminfo", "MemAvailable")) {
    available = *kilobytes * 1024;
  }
  const auto take_less = [&](std::optional<int64_t> bytes) {
    if (bytes) available = std::min(available.value_or(*bytes), *bytes);
  };
  // Lines "0::/path" (version 2) and "4:memory:/path" (version 1).
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers.empty()) {
      take_less(cgroup_available("/sys/fs/cgroup", path, "memory.max", "memory.current",
                                 "inactive_file"));
    } else if (controllers == "memory") {
      take_less(cgroup_available("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes",
                                 "memory.usage_in_bytes", "total_inactive_file"));
    }
  }
  return available;
}

}  // namespace caravan
