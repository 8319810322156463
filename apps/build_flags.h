#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "backend/create_backend.h"
#include "convert/memory_plan.h"
#include "format/model_dir.h"

namespace caravan {

/// The flags that `build` and `plan` share: --model --dtype --kv-cache-dtype --target
/// --max-batch-size --max-input-len --max-output-len --memory.
struct BuildFlags {
  std::string model;
  std::string dtype = "auto";
  std::string kv_cache_dtype = "auto";
  std::string target = "cpu";
  std::string memory = "auto";
  std::optional<int64_t> max_batch_size;
  std::optional<int64_t> max_input_len;
  std::optional<int64_t> max_output_len;

  void add_to(CLI::App& command);
  /// Flags over an engine's own limits over the defaults (32, 512, 200). Default lengths shrink to
  /// the model's positions; given ones do not.
  BuildConfig resolve(const ModelDir& dir) const;
  /// --memory, or what the machine has free; nullopt when that cannot be read.
  std::optional<int64_t> available_bytes() const;
};

/// What `backend` and the model runner need for a model of `config`. `backend` must outlive it.
/// The backend that runs engines of `target`; is_plan_only: its figures alone, no device needed.
BackendOptions target_backend(const std::string& target, bool is_plan_only);

PlanInputs plan_inputs(const ModelConfig& config, const Backend& backend);

/// True when the directory's model keeps an own head, as far as config.json and the names of the
/// stored tensors tell; for figures before the weights are read.
bool has_own_head(const ModelDir& dir);

}  // namespace caravan
