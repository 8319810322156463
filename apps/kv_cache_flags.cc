#include "apps/kv_cache_flags.h"

#include "convert/byte_size.h"
#include "convert/memory_plan.h"
#include "models/kv_cache.h"

namespace caravan {

void KvCacheFlags::add_to(CLI::App& command) {
  command
      .add_option("--kv-cache-memory", memory,
                  "Memory of the KV cache, e.g. 8GiB; auto: on a GPU all that "
                  "--gpu-memory-utilization leaves, on the CPU what --max-num-seqs sequences of "
                  "--max-model-len tokens need, at most 4 GiB or a quarter of the free memory")
      ->capture_default_str();
  command
      .add_option("--gpu-memory-utilization", gpu_memory_utilization,
                  "Share of the GPU's memory for weights, workspace and KV cache together")
      ->capture_default_str();
}

std::optional<int64_t> KvCacheFlags::wanted_bytes() const {
  if (memory == "auto") return std::nullopt;
  return parse_byte_size(memory, "--kv-cache-memory");
}

KvCacheSize kv_cache_size(const KvCacheFlags& flags, const ModelDir& dir, const ModelFlags& model,
                          const Backend& backend, ModelRunnerOptions options) {
  options.max_seq_len = ModelRunner::sequence_limit(dir, options.max_seq_len);
  KvCacheBudget budget =
      kv_cache_budget(flags, runner_plan(dir, model, backend, options), options.max_seq_len);
  budget.device_total_bytes = backend.total_bytes();
  budget.available_bytes = backend.available_bytes();
  if (!budget.available_bytes) budget.available_bytes = available_memory_bytes();
  return choose_kv_cache_size(budget);
}

KvCacheBudget kv_cache_budget(const KvCacheFlags& flags, const MemoryPlan& plan,
                              int64_t max_seq_len) {
  KvCacheBudget budget;
  budget.block_bytes = plan.kv_bytes_per_token * plan.kv_block_size;
  budget.scale_bytes = plan.kv_scale_bytes;
  budget.block_size = plan.kv_block_size;
  budget.max_batch_size = plan.build.max_batch_size;
  budget.max_seq_len = max_seq_len;
  budget.wanted_bytes = flags.wanted_bytes();
  budget.memory_utilization = flags.gpu_memory_utilization;
  budget.weight_bytes = plan.weights_bytes;
  budget.workspace_bytes = plan.workspace_bytes;
  return budget;
}

}  // namespace caravan
