#include "engine/kv_cache_size.h"

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "core/tensor.h"

namespace caravan {

namespace {

constexpr int64_t kMostHostBytes = int64_t{4} << 30;
// Block numbers are int32.
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();

double mebibytes(int64_t num_bytes) { return static_cast<double>(num_bytes) / (1 << 20); }

int64_t blocks_in(int64_t num_bytes, const KvCacheBudget& budget) {
  return std::clamp<int64_t>((num_bytes - budget.scale_bytes) / budget.block_bytes, 0, kMostBlocks);
}

int64_t device_blocks(const KvCacheBudget& b, int64_t blocks_per_seq) {
  const auto share =
      static_cast<int64_t>(static_cast<double>(*b.device_total_bytes) * b.memory_utilization);
  const int64_t usable = std::min(share, b.available_bytes.value_or(share));
  const int64_t blocks = blocks_in(usable - b.weight_bytes - b.workspace_bytes, b);
  CARAVAN_CHECK_CODE(
      blocks >= blocks_per_seq, kOutOfMemory,
      "{:.0f} MiB of the device's {:.0f} MiB can be used (--gpu-memory-utilization {}); weights "
      "take {:.0f} MiB, workspace {:.0f} MiB, and a sequence of {} tokens {:.0f} MiB of KV cache: "
      "lower --max-model-len or --max-num-batched-tokens, or halve the cache with "
      "--kv-cache-dtype int8 or fp8",
      mebibytes(usable), mebibytes(*b.device_total_bytes), b.memory_utilization,
      mebibytes(b.weight_bytes), mebibytes(b.workspace_bytes), b.max_seq_len,
      mebibytes(blocks_per_seq * b.block_bytes));
  return blocks;
}

}  // namespace

KvCacheSize choose_kv_cache_size(const KvCacheBudget& b) {
  CARAVAN_CHECK(b.memory_utilization > 0 && b.memory_utilization <= 1,
                "--gpu-memory-utilization {}, expected in (0, 1]", b.memory_utilization);
  const int64_t blocks_per_seq = ceil_div(b.max_seq_len, b.block_size);
  const int64_t needed = std::min(
      kMostBlocks, checked_mul(b.max_batch_size, blocks_per_seq, "blocks of the KV cache"));
  int64_t blocks = needed;
  if (b.wanted_bytes) {
    blocks = blocks_in(*b.wanted_bytes, b);
    CARAVAN_CHECK(
        blocks >= blocks_per_seq,
        "--kv-cache-memory of {:.1f} MiB holds {} tokens, a sequence may have {}: give at "
        "least {:.1f} MiB, or lower --max-model-len",
        mebibytes(*b.wanted_bytes), blocks * b.block_size, b.max_seq_len,
        mebibytes(blocks_per_seq * b.block_bytes + b.scale_bytes));
  } else if (b.device_total_bytes) {
    blocks = device_blocks(b, blocks_per_seq);
  } else {
    const int64_t limit =
        std::min(kMostHostBytes, b.available_bytes.value_or(kMostHostBytes * 4) / 4);
    blocks = std::min(needed, std::max(blocks_per_seq, blocks_in(limit, b)));
  }
  return {blocks,
          checked_add(checked_mul(blocks, b.block_bytes, "KV cache"), b.scale_bytes, "KV cache")};
}

}  // namespace caravan
