#include "apps/build_flags.h"

#include <algorithm>

#include "apps/model_flags.h"
#include "convert/byte_size.h"
#include "convert/engine_builder.h"
#include "core/error.h"
#include "core/log.h"
#include "engine/model_runner.h"

namespace caravan {

void BuildFlags::add_to(CLI::App& command) {
  command
      .add_option("--model,-m,--model-dir,--model_dir", model,
                  "Hugging Face or checkpoint directory")
      ->required();
  command
      .add_option(
          "--dtype", dtype,
          "Weights: float16, bfloat16 or float32; auto: as stored when that is 16 bit, else "
          "float16")
      ->capture_default_str();
  command
      .add_option("--kv-cache-dtype,--kv_cache_dtype", kv_cache_dtype,
                  "float16, bfloat16, float32, int8 or fp8 (e4m3; fp8_e4m3 too); auto: as the "
                  "weights. int8 needs scales: see --calibrate-kv-cache")
      ->capture_default_str();
  command
      .add_option("--target", target,
                  "Device the engine is for: cpu, or sm_80, sm_86, sm_89, sm_90 (NVIDIA GPUs)")
      ->capture_default_str();
  command.add_option("--max-batch-size,--max_batch_size", max_batch_size,
                     "Sequences that run at once (default 32)");
  command.add_option("--max-input-len,--max_input_len", max_input_len,
                     "Longest prompt in tokens (default 512, or what the model's positions leave)");
  command.add_option("--max-output-len,--max_output_len", max_output_len,
                     "Longest output in tokens (default 200, or what the model's positions leave)");
  command
      .add_option("--memory", memory,
                  "Memory to plan for, e.g. 24GiB; auto: what this machine has free")
      ->capture_default_str();
}

BuildConfig BuildFlags::resolve(const ModelDir& dir) const {
  BuildConfig build = dir.build.value_or(BuildConfig{});
  build.target = target;
  build.dtype = dtype_flag(dtype, "--dtype").value_or(default_engine_dtype(dir));
  build.kv_cache_dtype =
      kv_dtype_flag(kv_cache_dtype)
          .value_or(dir.build && dtype == "auto" ? build.kv_cache_dtype : build.dtype);
  build.max_batch_size = max_batch_size.value_or(build.max_batch_size);
  const int64_t positions = dir.config.max_seq_len;
  // A length that was not given gives way, the output first to at most half of the positions.
  if (!max_output_len) {
    const int64_t room =
        max_input_len ? std::max<int64_t>(1, positions - *max_input_len) : (positions + 1) / 2;
    build.max_output_len = std::min(build.max_output_len, room);
  } else {
    build.max_output_len = *max_output_len;
  }
  build.max_input_len = max_input_len.value_or(
      std::min(build.max_input_len, std::max<int64_t>(1, positions - build.max_output_len)));
  if (!max_output_len && build.max_input_len == positions && positions > 1) {
    // As in command lines of 2023, where --max_input_len=1024 stood for "all that GPT-2 takes".
    log_info("--max-input-len {} are all positions of the model: {} and one of output", positions,
             positions - 1);
    build.max_input_len = positions - 1;
  }
  return build;
}

std::optional<int64_t> BuildFlags::available_bytes() const {
  if (memory == "auto") {
    // A GPU's memory is that of the machine the engine will run on.
    return is_gpu_target(target) ? std::nullopt : available_memory_bytes();
  }
  return parse_byte_size(memory, "--memory");
}

BackendOptions target_backend(const std::string& target, bool is_plan_only) {
  return {.device = is_gpu_target(target) ? "cuda" : target, .is_plan_only = is_plan_only};
}

PlanInputs plan_inputs(const ModelConfig& config, const Backend& backend) {
  return {.kv_block_size = backend.kv_block_size(),
          .workspace_bytes = [&config, &backend](const BuildConfig& build) {
            ModelRunnerOptions options;
            options.max_batch_size = build.max_batch_size;
            options.max_num_logits = build.max_batch_size;
            options.max_seq_len = build.max_input_len + build.max_output_len;
            return ModelRunner::workspace_bytes(config, backend, step_limits(options), build.dtype);
          }};
}

bool has_own_head(const ModelDir& dir) {
  return dir.kind == ModelDirKind::kHuggingFace ? !dir.config.tie_word_embeddings
                                                : dir.has_own_head;
}

}  // namespace caravan
