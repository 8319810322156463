#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "core/op_params.h"
#include "core/tensor.h"
#include "format/kv_scales.h"
#include "format/model_config.h"

namespace caravan {

/// The paged KV cache of every layer, one allocation. Block b holds tokens of one sequence in every
/// layer at once.
class KvCache {
 public:
  /// Bytes of one block in all layers: 2 (K, V) * layers * block_size * hidden_size * dtype.
  static int64_t block_bytes(const ModelConfig& config, DType dtype, int64_t block_size);

  /// Bytes of the scales beside the blocks: 0 unless dtype is quantized.
  static int64_t scale_bytes(const ModelConfig& config, DType dtype);

  /// dtype: kF32, kF16, kBF16, or with scales kI8 or kF8E4M3. Errors: kOutOfMemory;
  /// kInvalidArgument when a quantized dtype comes without scales of every layer and head.
  KvCache(Backend& backend, const ModelConfig& config, DType dtype, int64_t num_blocks,
          const KvScales& scales = {});

  int64_t num_blocks() const { return num_blocks_; }
  int64_t block_size() const { return block_size_; }
  DType dtype() const { return dtype_; }
  /// Blocks and scales.
  size_t num_bytes() const { return buffer_.num_bytes() + scales_.num_bytes(); }
  KvLayer layer(int64_t index) const;

 private:
  DType dtype_;
  int64_t num_blocks_;
  int64_t block_size_;
  int64_t num_heads_;
  int64_t head_dim_;
  Buffer buffer_;
  Buffer scales_;  // [num_layers, 2 (K, V), num_heads] f32; empty unless quantized
};

}  // namespace caravan
