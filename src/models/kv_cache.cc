#include "models/kv_cache.h"

#include <cmath>
#include <vector>

#include "core/error.h"

namespace caravan {

int64_t KvCache::block_bytes(const ModelConfig& config, DType dtype, int64_t block_size) {
  const int64_t token =
      checked_mul(2 * static_cast<int64_t>(dtype_size(dtype)), config.hidden_size, "KV cache");
  return checked_mul(checked_mul(token, config.num_layers, "KV cache"), block_size, "KV cache");
}

int64_t KvCache::scale_bytes(const ModelConfig& config, DType dtype) {
  if (!is_quantized_kv(dtype)) return 0;
  return 2 * config.num_layers * config.num_heads * static_cast<int64_t>(sizeof(float));
}

KvCache::KvCache(Backend& backend, const ModelConfig& config, DType dtype, int64_t num_blocks,
                 const KvScales& scales)
    : dtype_(dtype),
      num_blocks_(num_blocks),
      block_size_(backend.kv_block_size()),
      num_heads_(config.num_heads),
      head_dim_(config.head_dim()) {
  CARAVAN_CHECK(num_blocks > 0, "KV cache: {} blocks, expected at least 1", num_blocks);
  buffer_ = backend.allocate(static_cast<size_t>(
      checked_mul(block_bytes(config, dtype, block_size_), num_blocks, "KV cache")));
  if (!is_quantized_kv(dtype)) return;
  const auto count = static_cast<size_t>(config.num_layers * config.num_heads);
  CARAVAN_CHECK(scales.k.size() == count && scales.v.size() == count,
                "a {} KV cache needs a scale for K and V of each of {} heads, got {} and {}",
                dtype_name(dtype), count, scales.k.size(), scales.v.size());
  const auto heads = static_cast<size_t>(num_heads_);
  std::vector<float> values(2 * count);
  for (size_t i = 0; i < count; ++i) {
    CARAVAN_CHECK(std::isfinite(scales.k[i]) && scales.k[i] > 0 && std::isfinite(scales.v[i]) &&
                      scales.v[i] > 0,
                  "KV scales of layer {}, head {}: {} and {}, expected positive numbers", i / heads,
                  i % heads, scales.k[i], scales.v[i]);
    const size_t layer = i / heads * 2 * heads;
    values[layer + i % heads] = scales.k[i];
    values[layer + heads + i % heads] = scales.v[i];
  }
  scales_ = backend.allocate(values.size() * sizeof(float));
  backend.copy_from_host(values.data(), scales_.data(), values.size() * sizeof(float));
}

KvLayer KvCache::layer(int64_t index) const {
  const int64_t half =
      num_blocks_ * block_size_ * num_heads_ * head_dim_ * static_cast<int64_t>(dtype_size(dtype_));
  auto* base = buffer_.as<std::byte>() + index * 2 * half;
  const float* scales =
      scales_.num_bytes() == 0 ? nullptr : scales_.as<float>() + index * 2 * num_heads_;
  return {.k = base,
          .v = base + half,
          .dtype = dtype_,
          .k_scale = scales,
          .v_scale = scales == nullptr ? nullptr : scales + num_heads_,
          .num_blocks = num_blocks_,
          .block_size = block_size_,
          .num_heads = num_heads_,
          .head_dim = head_dim_};
}

}  // namespace caravan
