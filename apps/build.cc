#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "apps/build_flags.h"
#include "apps/commands.h"
#include "apps/kv_calibration_flags.h"
#include "apps/model_flags.h"
#include "backend/create_backend.h"
#include "convert/byte_size.h"
#include "convert/engine_builder.h"
#include "core/error.h"
#include "core/log.h"
#include "engine/model_runner.h"
#include "eval/parity.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

namespace {

/// Flags of TensorRT-LLM's examples/gpt/build.py of July 2023, so that its command lines work.
struct LegacyFlags {
  std::map<std::string, std::string> given;  // name -> value, of those without a meaning here
  int64_t world_size = 1;
  int64_t max_beam_width = 1;
  int64_t max_prompt_embedding_table_size = 0;
  bool use_weight_only = false;
  bool use_smooth_quant = false;
  bool multi_query_mode = false;

  void add_to(CLI::App& command);
  void check() const;
};

struct Flags {
  BuildFlags build;
  LegacyFlags legacy;
  KvCalibrationFlags calibration;
  std::string output;
  bool verify = false;
  bool force = false;
  bool int8_kv_cache = false;  // build.py's name of --kv-cache-dtype int8
};

// What became of a flag that changes nothing any more.
struct RetiredFlag {
  const char* name;
  bool takes_value;  // else an optional one
  const char* reason;
};
constexpr RetiredFlag kRetired[] = {
    {"use_gpt_attention_plugin", false, "attention is always fused"},
    {"use_layernorm_plugin", false, "LayerNorm is always one kernel"},
    {"use_lookup_plugin", false, "wte and a tied head are always shared"},
    {"use_gemm_plugin", false, "there is one set of matrix kernels"},
    {"use_inflight_batching", false, "batching is always continuous"},
    {"remove_input_padding", false, "input is never padded"},
    {"paged_kv_cache", false, "the KV cache is always paged"},
    {"enable_context_fmha", false, "prefill attention is always fused"},
    {"enable_context_fmha_fp32_acc", false, "sums are always float32"},
    {"parallel_build", false, "one process builds"},
    {"tokens_per_block", true, "a block of the KV cache has 16 tokens"},
    {"builder_opt", true, "there is no optimizer to tune"},
    {"timing_cache", true, "kernels are chosen without timing"},
    {"gpus_per_node", true, "an engine is one rank's"},
    {"random_seed", true, "see `caravan synth --seed`"},
    {"log_level", true, "see --quiet"},
};

void LegacyFlags::add_to(CLI::App& command) {
  const std::string group = "Flags of July-2023 build.py without a meaning here (one log line)";
  for (const RetiredFlag& flag : kRetired) {
    const std::string name = flag.name;
    CLI::Option* option = command.add_option_function<std::vector<std::string>>(
        "--" + name,
        [this, name](const std::vector<std::string>& values) {
          given[name] = values.empty() ? "" : values.front();
        },
        flag.reason);
    option->expected(flag.takes_value ? 1 : 0, 1)->type_name("")->group(group);
  }
  const std::string refused = "Flags of July-2023 build.py that are refused when they ask for more";
  command.add_option("--world_size", world_size, "Only 1: an engine is one rank's")->group(refused);
  command.add_option("--max_beam_width", max_beam_width, "Only 1: there is no beam search")
      ->group(refused);
  command
      .add_option("--max_prompt_embedding_table_size", max_prompt_embedding_table_size,
                  "Only 0: there is no prompt tuning")
      ->group(refused);
  command.add_flag("--use_weight_only", use_weight_only, "Not there")->group(refused);
  command.add_flag("--use_smooth_quant", use_smooth_quant, "Not there")->group(refused);
  command.add_flag("--multi_query_mode", multi_query_mode, "Not there")->group(refused);
}

void LegacyFlags::check() const {
  const auto refuse = [](bool asked, const std::string& flag, const char* what) {
    CARAVAN_CHECK_CODE(!asked, kUnsupported, "{}: {}", flag, what);
  };
  refuse(world_size != 1, fmt::format("--world_size {}", world_size),
         "engines of several ranks are not in this version; leave it out");
  refuse(max_beam_width != 1, fmt::format("--max_beam_width {}", max_beam_width),
         "there is no beam search; use 1, with --num-return of `caravan run` for several outputs");
  refuse(max_prompt_embedding_table_size != 0, "--max_prompt_embedding_table_size",
         "there is no prompt tuning; use 0");
  refuse(use_weight_only, "--use_weight_only", "weights are float32, float16 or bfloat16");
  refuse(use_smooth_quant, "--use_smooth_quant", "weights are float32, float16 or bfloat16");
  refuse(multi_query_mode, "--multi_query_mode", "only multi-head attention models are supported");
  for (const RetiredFlag& flag : kRetired) {
    if (given.contains(flag.name)) {
      log_info("--{} has no meaning here: {}", flag.name, flag.reason);
    }
  }
}

DType coarser(DType a, DType b) {
  for (const DType dtype : {DType::kF8E4M3, DType::kI8, DType::kBF16, DType::kF16}) {
    if (a == dtype || b == dtype) return dtype;
  }
  return DType::kF32;
}

/// The parity certificate of the engine at `engine_path`: its backend against the reference kernels
/// on the source's weights in float32.
boost::json::object certify(const ModelDir& source, const std::string& engine_path,
                            const BuildConfig& build) {
  const int64_t limit = build.max_input_len + build.max_output_len;
  const int64_t greedy_len = std::min<int64_t>(8, limit / 2);
  const TokenizerOrReason loaded = try_load_tokenizer(source.path);
  const auto prompts = parity_prompts(source.config.vocab_size, limit - greedy_len,
                                      loaded ? &loaded.value() : nullptr);
  ModelRunnerOptions options;
  options.max_batch_size = 1;
  options.max_num_logits = 1;
  options.max_seq_len = limit;
  ModelRunner engine(open_model_dir(engine_path),
                     create_backend(target_backend(build.target, false)), options);
  options.dtype = DType::kF32;
  options.kv_cache_dtype = DType::kF32;
  ModelRunner oracle(source, create_backend({.cpu_isa = "reference"}), options);
  log_info("verify: {} prompts, {} against {}", prompts.size(), engine.backend().description(),
           oracle.backend().description());
  const ParityReport report = measure_parity(oracle, engine, prompts, greedy_len);
  const ParityTolerances tolerances = parity_tolerances(
      coarser(build.dtype, build.kv_cache_dtype), engine.backend().activation_dtype(build.dtype));
  check_parity(report, tolerances);
  log_info(
      "verify: {} positions, logits differ by {:.2e}, KL mean {:.2e} max {:.2e}, same top token "
      "{:.1f} %, same greedy tokens: at least {} of {}",
      report.num_positions, report.logits_error, report.kl_mean, report.kl_max,
      100 * report.top1_agreement, report.greedy_prefix_min, report.greedy_len);
  return parity_json(report, tolerances);
}

void run_build(Flags& flags) {
  flags.legacy.check();
  if (flags.int8_kv_cache) {
    CARAVAN_CHECK(flags.build.kv_cache_dtype == "auto" || flags.build.kv_cache_dtype == "int8",
                  "--int8_kv_cache and --kv-cache-dtype {}: expected one of the two",
                  printable(flags.build.kv_cache_dtype));
    flags.build.kv_cache_dtype = "int8";
  }
  const ModelDir dir = open_model_dir(flags.build.model);
  warn_without_tokenizer(dir.path);
  EngineBuildOptions options;
  options.input = flags.build.model;
  options.output = flags.output;
  options.build = flags.build.resolve(dir);
  options.replace = flags.force;
  engine_weight({}, options.build);  // refuses a target or dtype before anything is read
  const std::unique_ptr<Backend> backend =
      create_backend(target_backend(options.build.target, true));
  options.plan = plan_inputs(dir.config, *backend);
  const auto available = flags.build.available_bytes();
  if (available) {
    check_fits(make_memory_plan(dir.config, has_own_head(dir), options.build, options.plan),
               *available);
  }
  if (flags.verify) {
    options.certify = [&](const std::string& engine_path) {
      return certify(dir, engine_path, options.build);
    };
  }
  if (flags.calibration.is_wanted()) {
    const DType kv_dtype = options.build.kv_cache_dtype;
    options.kv_calibration = flags.calibration.run(
        dir, is_quantized_kv(kv_dtype) ? kv_dtype : DType::kI8, options.build.dtype);
  }
  const EngineBuildResult result = build_engine(options);
  log_info("{}: {} tensors, {} for {}, total in memory {}; copied: {}", flags.output,
           result.num_tensors, format_bytes(result.num_bytes), options.build.target,
           format_bytes(result.plan.total_bytes()),
           result.copied_files.empty() ? "nothing"
                                       : fmt::format("{}", fmt::join(result.copied_files, " ")));
}

}  // namespace

void add_build_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "build",
      "Build an engine directory from a Hugging Face or checkpoint directory: weights packed as "
      "the "
      "kernels read them, 4 KiB aligned, with limits, memory plan and XXH3 checksums in "
      "config.json. "
      "Streams in bounded memory and needs no GPU. A killed or failed build leaves nothing under "
      "OUTPUT.");
  flags->build.add_to(*command);
  command
      ->add_option("--output,-o,--output-dir,--output_dir", flags->output,
                   "Engine directory to write; must not exist")
      ->required();
  command->add_flag(
      "--verify", flags->verify,
      "Run fixed prompts through the reference kernels (float32 weights of the source, which must "
      "fit in memory) and through the engine, store the differences as a certificate, and fail "
      "beyond the tolerances of the dtype");
  command->add_flag("--force", flags->force, "Replace the output when it exists");
  command->add_flag("--int8_kv_cache", flags->int8_kv_cache, "The same as --kv-cache-dtype int8");
  flags->calibration.add_to(*command);
  flags->legacy.add_to(*command);
  command->callback([flags] { run_build(*flags); });
}

}  // namespace caravan
