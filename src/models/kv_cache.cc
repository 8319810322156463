#include "models/kv_cache.h"

#include "core/error.h"

namespace caravan {

int64_t KvCache::block_bytes(const ModelConfig& config, DType dtype, int64_t block_size) {
  const int64_t token =
      checked_mul(2 * static_cast<int64_t>(dtype_size(dtype)), config.hidden_size, "KV cache");
  return checked_mul(checked_mul(token, config.num_layers, "KV cache"), block_size, "KV cache");
}

KvCache::KvCache(Backend& backend, const ModelConfig& config, DType dtype, int64_t num_blocks)
    : dtype_(dtype),
      num_blocks_(num_blocks),
      block_size_(backend.kv_block_size()),
      num_heads_(config.num_heads),
      head_dim_(config.head_dim()) {
  CARAVAN_CHECK(num_blocks > 0, "KV cache: {} blocks, expected at least 1", num_blocks);
  buffer_ = backend.allocate(static_cast<size_t>(
      checked_mul(block_bytes(config, dtype, block_size_), num_blocks, "KV cache")));
}

KvLayer KvCache::layer(int64_t index) const {
  const int64_t half =
      num_blocks_ * block_size_ * num_heads_ * head_dim_ * static_cast<int64_t>(dtype_size(dtype_));
  auto* base = buffer_.as<std::byte>() + index * 2 * half;
  return {.k = base,
          .v = base + half,
          .dtype = dtype_,
          .num_blocks = num_blocks_,
          .block_size = block_size_,
          .num_heads = num_heads_,
          .head_dim = head_dim_};
}

}  // namespace caravan
