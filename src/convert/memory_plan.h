#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/linear_layout.h"
#include "format/model_config.h"
#include "format/model_dir.h"
#include "format/weight_spec.h"

namespace caravan {

/// The form in which an engine for `target` holds one weight. Vectors are float32; wpe is row-major
/// in the engine's dtype; matrices (wte and the head included) are packed.
/// Errors: kUnsupported for a target without a backend in this version, or a dtype other than
/// float32, float16 and bfloat16.
struct EngineWeight {
  DType dtype = DType::kF32;
  LinearLayout layout = LinearLayout::kOutIn;  // matrices
  int64_t in_features = 0;                     // matrices; 0 for others
  int64_t out_features = 0;
  int64_t num_elements = 0;  // padding included
  int64_t num_bytes() const { return num_elements * static_cast<int64_t>(dtype_size(dtype)); }
  bool is_matrix() const { return in_features != 0; }
};
EngineWeight engine_weight(const WeightSpec& spec, const BuildConfig& build);

/// Compute capabilities that the CUDA backend has kernels for, written sm_90. Their engines are all
/// alike.
bool is_gpu_target(std::string_view target);

/// What the backend and the model runner add to a plan.
struct PlanInputs {
  int64_t kv_block_size = 16;  // Backend::kv_block_size()
  /// Bytes of the backend's workspace and of the activations for these limits; null counts as 0.
  /// It must not shrink when a limit grows.
  std::function<int64_t(const BuildConfig& build)> workspace_bytes;
  int64_t kv_num_blocks = 0;  // of a cache of given size; 0: as the limits want
};

/// Every byte that an engine of these limits holds in memory. Exact: the same figures are
/// allocated.
struct MemoryPlan {
  struct Item {
    std::string name;  // "wte", "wpe", "layers", "ln_f", "lm_head"
    int64_t num_bytes = 0;
  };
  BuildConfig build;
  std::vector<Item> weights;
  int64_t num_parameters = 0;  // as trained, without padding
  int64_t weights_bytes = 0;   // sum of weights
  int64_t padding_bytes = 0;   // of them: zeros that round matrices up to whole panels
  int64_t kv_block_size = 0;   // tokens
  /// As given, else max_batch_size * ceil((max_input_len + max_output_len) / block).
  int64_t kv_num_blocks = 0;
  int64_t kv_bytes_per_token = 0;  // all layers
  int64_t kv_scale_bytes = 0;      // of a quantized cache: 2 * num_layers * num_heads floats
  int64_t kv_bytes = 0;  // kv_num_blocks * kv_block_size * kv_bytes_per_token + kv_scale_bytes
  int64_t workspace_bytes = 0;
  int64_t total_bytes() const { return weights_bytes + kv_bytes + workspace_bytes; }
};

/// Errors: kInvalidArgument when a limit is below 1, the lengths exceed the model's positions, or a
/// size overflows; kUnsupported as engine_weight().
MemoryPlan make_memory_plan(const ModelConfig& config, bool has_own_head, const BuildConfig& build,
                            const PlanInputs& inputs);

/// Throws kOutOfMemory with the plan's figures and the flags that make it smaller when the plan
/// needs more than `available_bytes`. `run` and `build` call it before they allocate.
void check_fits(const MemoryPlan& plan, int64_t available_bytes);

/// What fits into `available_bytes`, the plan's other limits kept; 0 when nothing does.
struct PlanLimits {
  int64_t max_batch_size = 0;  // at the plan's lengths; at most 65536
  int64_t max_seq_len = 0;     // input + output at the plan's batch size; at most the positions
};
PlanLimits largest_limits(const ModelConfig& config, bool has_own_head, const BuildConfig& build,
                          const PlanInputs& inputs, int64_t available_bytes);

/// The figures as a table for people, several lines, and as JSON.
std::string plan_text(const MemoryPlan& plan);
boost::json::object plan_json(const MemoryPlan& plan);

/// Memory that this process may still take: MemAvailable of /proc/meminfo and what its cgroup (v2
/// or v1) leaves, whichever is less; nullopt when neither can be read.
std::optional<int64_t> available_memory_bytes();

}  // namespace caravan
