#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "backend/create_backend.h"
#include "caravan/llm.h"
#include "convert/memory_plan.h"
#include "engine/model_runner.h"
#include "format/model_dir.h"

namespace caravan {

/// The flags of every command that loads a model: --model --dtype --kv-cache-dtype --device
/// --cpu-isa --cuda-kernels --threads --memory --no-verify.
struct ModelFlags {
  std::string model;
  std::string dtype = "auto";
  std::string kv_cache_dtype = "auto";
  std::string device = "cpu";
  std::string cpu_isa = "auto";
  std::string cuda_kernels = "auto";
  int num_threads = 0;
  std::string memory = "auto";
  bool skips_verification = false;

  void add_to(CLI::App& command, bool is_model_required = true);
  BackendOptions backend() const {
    return {.device = device,
            .cpu_isa = cpu_isa,
            .num_threads = num_threads,
            .cuda_kernels = cuda_kernels};
  }
};

/// The memory of a ModelRunner on `backend`, made with the dtypes of `flags` and the sizes of
/// `options`: for what is loaded, as it will be allocated.
MemoryPlan runner_plan(const ModelDir& dir, const ModelFlags& flags, const Backend& backend,
                       const ModelRunnerOptions& options);

/// Refuses, before anything large is allocated, what does not fit in memory, with the figures of
/// `caravan plan`. The dtypes are those of `flags`, the sizes those of `options`.
/// Errors: kOutOfMemory.
void check_memory(const ModelDir& dir, const ModelFlags& flags, const ModelRunnerOptions& options);

/// Warns, with the reason, when the tokenizer of a model directory cannot be read: what is made of
/// the model will run on token ids alone.
void warn_without_tokenizer(const std::string& directory);

/// "auto" -> unset. Errors: kInvalidArgument.
std::optional<DType> dtype_flag(const std::string& text, const char* flag);
/// The same for a KV cache's dtype, which may be quantized: int8, fp8 (fp8_e4m3).
std::optional<DType> kv_dtype_flag(const std::string& text, const char* flag = "--kv-cache-dtype");

}  // namespace caravan
