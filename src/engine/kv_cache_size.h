#pragma once

#include <cstdint>
#include <optional>

namespace caravan {

/// What the size of a server's KV cache follows from. Sizes in bytes.
struct KvCacheBudget {
  int64_t block_bytes = 0;     // KvCache::block_bytes(): one block in all layers
  int64_t scale_bytes = 0;     // KvCache::scale_bytes()
  int64_t block_size = 0;      // tokens
  int64_t max_batch_size = 0;  // sequences that run at once
  int64_t max_seq_len = 0;     // tokens of one sequence

  std::optional<int64_t> wanted_bytes;  // --kv-cache-memory: decides alone when given

  /// A device with memory of its own: the cache gets what weights and workspace leave of
  /// total x utilization, and of what is free now. Unset: the host's memory.
  std::optional<int64_t> device_total_bytes;
  double memory_utilization = 0.9;  // --gpu-memory-utilization, in (0, 1]
  int64_t weight_bytes = 0;
  int64_t workspace_bytes = 0;

  std::optional<int64_t> available_bytes;  // free now, on the device or the host
};

struct KvCacheSize {
  int64_t num_blocks = 0;
  int64_t num_bytes = 0;  // blocks and scales
};

/// The host's memory is everybody's, so without a wish the cache gets what max_batch_size sequences
/// of max_seq_len need, but not more than 4 GiB or a quarter of what is free; one sequence always
/// fits. A device gets filled: what no sequence needs keeps prefixes.
/// Errors: kInvalidArgument for a utilization outside (0, 1] or a wish that one sequence does not
/// fit into; kOutOfMemory when the device has not got so much.
KvCacheSize choose_kv_cache_size(const KvCacheBudget& budget);

}  // namespace caravan
