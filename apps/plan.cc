#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "apps/build_flags.h"
#include "apps/commands.h"
#include "backend/create_backend.h"
#include "convert/byte_size.h"
#include "convert/model_files.h"
#include "core/error.h"

namespace caravan {

namespace {

struct Flags {
  BuildFlags build;
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

void run_plan(const Flags& flags) {
  const ModelDir dir = open_model_dir(flags.build.model);
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
    return;
  }
  boost::json::object json = plan_json(plan);
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
      "and the largest batch and length that fit. Reads config.json only and allocates nothing. "
      "`build` and `run` refuse with the same figures when the plan does not fit.");
  flags->build.add_to(*command);
  command->add_flag("--json", flags->is_json, "Print JSON");
  command->callback([flags] { run_plan(*flags); });
}

}  // namespace caravan
