#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "apps/build_flags.h"
#include "apps/commands.h"
#include "apps/kv_cache_flags.h"
#include "apps/kv_calibration_flags.h"
#include "apps/model_flags.h"
#include "backend/create_backend.h"
#include "convert/byte_size.h"
#include "convert/model_files.h"
#include "core/error.h"

namespace caravan {

namespace {

struct Flags {
  BuildFlags build;
  KvCalibrationFlags calibration;
  KvCacheFlags kv_cache;
  bool is_json = false;
};

void print_text(const MemoryPlan& plan, std::optional<int64_t> available,
                const PlanLimits& limits) {
  std::printf("%s", plan_text(plan).c_str());
  if (!available) return;
  const bool fits = plan.total_bytes() <= *available;
  fmt::print("available: {}: {}\n", format_bytes(*available), fits ? "fits" : "DOES NOT FIT");
  fmt::print("largest batch at these lengths: {}\n", limits.max_batch_size);
  fmt::print("largest input + output at this batch size: {} tokens\n", limits.max_seq_len);
}

/// What `convert` or `build` holds while it finds the scales of a quantized KV cache.
struct CalibrationPlan {
  KvCalibrationBytes bytes;
  int64_t num_tokens = 0;  // at most: samples times their largest length
};

CalibrationPlan plan_calibration(const Flags& flags, const ModelDir& dir,
                                 const BuildConfig& build) {
  const KvCalibrationOptions options = flags.calibration.options(dir, DType::kI8);
  const std::unique_ptr<Backend> backend =
      create_backend({.device = flags.calibration.device, .is_plan_only = true});
  CalibrationPlan plan;
  plan.num_tokens = checked_mul(options.num_samples, options.max_len, "calibration tokens");
  plan.bytes =
      kv_calibration_bytes(dir.config, *backend, build.dtype, plan.num_tokens, options.max_len);
  return plan;
}

void print_calibration(const CalibrationPlan& plan) {
  const auto row = [](const char* name, int64_t num_bytes, const std::string& note) {
    fmt::print("{:<14} {:>18} B  {:>9.3f} GB  {}\n", name, group_digits(num_bytes),
               static_cast<double>(num_bytes) / 1e9, note);
  };
  fmt::print("calibration of the KV cache, before the engine is written:\n");
  row("  model part", plan.bytes.model, "the largest of embedding and one layer, and a step");
  row("  states", plan.bytes.states,
      fmt::format("of at most {} tokens, in host memory", group_digits(plan.num_tokens)));
  row("  statistics", plan.bytes.statistics, "histograms of one layer");
  row("  program", plan.bytes.program, "code, tokenizer, text");
  row("calibration", plan.bytes.total(), "");
}

/// The cache of a server with the limits of `plan`; nullopt where that depends on the GPU it will
/// run on, whose memory --memory tells, or where not even one sequence fits.
std::optional<KvCacheSize> serve_kv_cache(const Flags& flags, const MemoryPlan& plan,
                                          std::optional<int64_t> available) {
  if (is_gpu_target(plan.build.target) && !available && !flags.kv_cache.wanted_bytes()) {
    return std::nullopt;
  }
  KvCacheBudget budget =
      kv_cache_budget(flags.kv_cache, plan, plan.build.max_input_len + plan.build.max_output_len);
  budget.available_bytes = available;
  if (is_gpu_target(plan.build.target)) budget.device_total_bytes = available;
  const int64_t one_sequence =
      ceil_div(budget.max_seq_len, budget.block_size) * budget.block_bytes + budget.scale_bytes;
  const auto share = budget.memory_utilization * static_cast<double>(available.value_or(0));
  if (budget.device_total_bytes && !budget.wanted_bytes &&
      static_cast<double>(plan.weights_bytes + plan.workspace_bytes + one_sequence) > share) {
    return std::nullopt;  // the plan says so already
  }
  return choose_kv_cache_size(budget);
}

void print_serve_kv_cache(const KvCacheSize& size, const MemoryPlan& plan) {
  const int64_t blocks_per_seq =
      ceil_div(plan.build.max_input_len + plan.build.max_output_len, plan.kv_block_size);
  fmt::print("KV cache of `serve`: {}: {} blocks, {} tokens, {} such sequences\n",
             format_bytes(size.num_bytes), group_digits(size.num_blocks),
             group_digits(size.num_blocks * plan.kv_block_size),
             group_digits(size.num_blocks / blocks_per_seq));
}

void run_plan(const Flags& flags) {
  const ModelDir dir = open_model_dir(flags.build.model);
  warn_without_tokenizer(dir.path);
  const BuildConfig build = flags.build.resolve(dir);
  const std::unique_ptr<Backend> backend = create_backend(target_backend(build.target, true));
  const PlanInputs inputs = plan_inputs(dir.config, *backend);
  const bool own_head = has_own_head(dir);
  const MemoryPlan plan = make_memory_plan(dir.config, own_head, build, inputs);
  const std::optional<int64_t> available = flags.build.available_bytes();
  PlanLimits limits;
  if (available) limits = largest_limits(dir.config, own_head, build, inputs, *available);
  if (!flags.is_json) {
    print_text(plan, available, limits);
    if (const auto size = serve_kv_cache(flags, plan, available)) print_serve_kv_cache(*size, plan);
    if (flags.calibration.is_wanted()) {
      print_calibration(plan_calibration(flags, dir, build));
    }
    return;
  }
  boost::json::object json = plan_json(plan);
  if (flags.calibration.is_wanted()) {
    const CalibrationPlan calibration = plan_calibration(flags, dir, build);
    json["calibration"] = {{"num_tokens", calibration.num_tokens},
                           {"model_bytes", calibration.bytes.model},
                           {"states_bytes", calibration.bytes.states},
                           {"statistics_bytes", calibration.bytes.statistics},
                           {"program_bytes", calibration.bytes.program},
                           {"total_bytes", calibration.bytes.total()}};
  }
  if (const auto size = serve_kv_cache(flags, plan, available)) {
    json["serve"] = {{"kv_num_blocks", size->num_blocks}, {"kv_bytes", size->num_bytes}};
  }
  json["build"] = build_config_to_json(build);
  if (available) {
    json["available_bytes"] = *available;
    json["fits"] = plan.total_bytes() <= *available;
    json["largest_batch_size"] = limits.max_batch_size;
    json["largest_seq_len"] = limits.max_seq_len;
  }
  std::printf("%s", pretty_json(json).c_str());
}

}  // namespace

void add_plan_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "plan",
      "Print every byte an engine of these limits holds in memory (weights, KV cache, workspace), "
      "and the largest batch and length that fit. Reads config.json and the tokenizer only and "
      "allocates nothing. "
      "`build` and `run` refuse with the same figures when the plan does not fit.");
  flags->build.add_to(*command);
  flags->calibration.add_to(*command);
  flags->kv_cache.add_to(*command);
  command->add_flag("--json", flags->is_json, "Print JSON");
  command->callback([flags] { run_plan(*flags); });
}

}  // namespace caravan
