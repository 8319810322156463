#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "apps/model_flags.h"
#include "backend/backend.h"
#include "engine/kv_cache_size.h"
#include "engine/model_runner.h"
#include "format/model_dir.h"

namespace caravan {

/// How large the KV cache of a server is: --kv-cache-memory --gpu-memory-utilization.
struct KvCacheFlags {
  std::string memory = "auto";
  double gpu_memory_utilization = 0.9;

  void add_to(CLI::App& command);
  /// --kv-cache-memory; nullopt: auto. Errors: kInvalidArgument.
  std::optional<int64_t> wanted_bytes() const;
};

/// What the flags and a plan say of the cache; the device's memory is the caller's to fill in.
KvCacheBudget kv_cache_budget(const KvCacheFlags& flags, const MemoryPlan& plan,
                              int64_t max_seq_len);

/// The cache for a model that is going to run on `backend` with `options`: what belongs into
/// ModelRunnerOptions::num_kv_blocks. Nothing large is allocated.
/// Errors: as choose_kv_cache_size().
KvCacheSize kv_cache_size(const KvCacheFlags& flags, const ModelDir& dir, const ModelFlags& model,
                          const Backend& backend, ModelRunnerOptions options);

}  // namespace caravan
