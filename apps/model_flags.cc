#include "apps/model_flags.h"

#include <algorithm>

#include "convert/byte_size.h"
#include "convert/engine_builder.h"
#include "core/error.h"
#include "core/log.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

void ModelFlags::add_to(CLI::App& command, bool is_model_required) {
  CLI::Option* option = command.add_option("--model,-m,--engine_dir,--model_dir", model,
                                           "Hugging Face, checkpoint or engine directory");
  if (is_model_required) option->required();
  command
      .add_option("--dtype", dtype,
                  "Compute with float32, float16 or bfloat16 weights; auto: as built or stored, "
                  "float16 for a float32 checkpoint")
      ->capture_default_str();
  command
      .add_option("--kv-cache-dtype", kv_cache_dtype,
                  "float32, float16, bfloat16, int8 or fp8 (e4m3; fp8_e4m3 too); auto: as built, "
                  "else as the weights. int8 needs scales: see --calibrate-kv-cache of `caravan "
                  "convert` and `build`")
      ->capture_default_str();
  command.add_option("--device", device, "cpu, cuda or cuda:N")->capture_default_str();
  command
      .add_option("--cpu-isa", cpu_isa,
                  "amx, avx512, avx2 or reference (the slow oracle); auto: the fastest there is")
      ->capture_default_str();
  command
      .add_option("--cuda-kernels", cuda_kernels,
                  "auto: the fastest for the GPU; generic: those of sm_80, whatever the GPU is")
      ->capture_default_str();
  command.add_option("--threads,-t", num_threads, "CPU threads; 0: one for each core")
      ->capture_default_str();
  command
      .add_option("--memory", memory,
                  "Refuse to start above this, e.g. 16GiB; auto: what the machine has free")
      ->capture_default_str();
  command.add_flag("--no-verify", skips_verification,
                   "Take the weights as they are: do not compare them with the checksums of a "
                   "checkpoint or engine, nor look for values that are not finite");
}

std::optional<DType> dtype_flag(const std::string& text, const char* flag) {
  if (text == "auto") return std::nullopt;
  const std::optional<DType> dtype = parse_dtype(text);
  CARAVAN_CHECK(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16,
                "{} {}: expected auto, float32, float16 or bfloat16", flag, printable(text));
  return dtype;
}

std::optional<DType> kv_dtype_flag(const std::string& text, const char* flag) {
  if (text == "auto") return std::nullopt;
  const std::optional<DType> dtype = parse_dtype(text);
  CARAVAN_CHECK(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
                    dtype == DType::kI8 || dtype == DType::kF8E4M3,
                "{} {}: expected auto, float32, float16, bfloat16, int8 or fp8", flag,
                printable(text));
  return dtype;
}

void warn_without_tokenizer(const std::string& directory) {
  const TokenizerOrReason loaded = try_load_tokenizer(directory);
  if (!loaded) log_warning("the model runs on token ids only: {}", loaded.reason);
}

MemoryPlan runner_plan(const ModelDir& dir, const ModelFlags& flags, const Backend& backend,
                       const ModelRunnerOptions& options) {
  BuildConfig build = dir.build.value_or(BuildConfig{});
  if (!dir.build) build.dtype = default_engine_dtype(dir);
  if (flags.device.starts_with("cuda")) build.target = "sm_90";  // its layouts, of all GPUs
  build.dtype = dtype_flag(flags.dtype, "--dtype").value_or(build.dtype);
  if (!dir.build) build.kv_cache_dtype = build.dtype;
  build.kv_cache_dtype = kv_dtype_flag(flags.kv_cache_dtype).value_or(build.kv_cache_dtype);
  build.max_batch_size = options.max_batch_size;
  build.max_output_len = 1;
  build.max_input_len = std::max<int64_t>(1, options.max_seq_len - 1);
  const int64_t workspace =
      ModelRunner::workspace_bytes(dir.config, backend, step_limits(options), build.dtype);
  return make_memory_plan(dir.config, dir.has_own_head, build,
                          {.kv_block_size = backend.kv_block_size(),
                           .workspace_bytes = [&](const BuildConfig&) { return workspace; },
                           .kv_num_blocks = options.num_kv_blocks});
}

void check_memory(const ModelDir& dir, const ModelFlags& flags, const ModelRunnerOptions& options) {
  const std::unique_ptr<Backend> backend = create_backend(flags.backend());
  std::optional<int64_t> available = backend->available_bytes();
  if (!available) available = available_memory_bytes();
  if (flags.memory != "auto") available = parse_byte_size(flags.memory, "--memory");
  if (!available) return;
  check_fits(runner_plan(dir, flags, *backend, options), *available);
}

}  // namespace caravan
