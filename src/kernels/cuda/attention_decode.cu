#include "kernels/cuda/attention_decode.cuh"

namespace caravan::cuda {

size_t attention_workspace_bytes(int64_t max_num_seqs, int64_t num_heads, int64_t head_dim,
                                 int64_t max_context_len) {
  return static_cast<size_t>(max_num_seqs * num_heads * num_partitions_of(max_context_len) *
                             (padded_head_dim(head_dim) + 2)) *
         sizeof(float);
}

bool has_fast_attention(DType dtype, DType cache, int64_t head_dim) {
  const bool is_quantized = cache == DType::kI8 || cache == DType::kF8E4M3;
  return (dtype == DType::kF16 || dtype == DType::kBF16) && (cache == dtype || is_quantized) &&
         head_dim > 0 && head_dim % (is_quantized ? 16 : 8) == 0 && head_dim <= 256;
}

void check_fast_attention(const AttentionArgs& args) {
  if (!has_fast_attention(args.dtype, args.cache.dtype, args.cache.head_dim)) {
    throw_unsupported(
        "attention: 16-bit queries, their dtype, int8 or float8_e4m3fn in the cache "
        "and head_dim % 8 (quantized: 16) == 0 and <= 256 are needed, got " +
        std::string(dtype_name(args.dtype)) + ", " + std::string(dtype_name(args.cache.dtype)) +
        ", head_dim " + std::to_string(args.cache.head_dim));
  }
  check_kv_scales(args.cache, "attention");
  if (args.cache.block_size != kCacheBlock) {
    throw_unsupported("attention: block_size 16 is needed, got " +
                      std::to_string(args.cache.block_size));
  }
  if (!(args.scale > 0.0f)) {
    throw_invalid("attention: scale must be positive, got " + std::to_string(args.scale));
  }
}

void launch_attention_decode(const AttentionArgs& args, const LaunchContext& context) {
  check_fast_attention(args);
  if (args.num_seqs == 0) return;
  if (args.cache.dtype == DType::kI8) {
    launch_decode_quantized<int8_t>(args, context);
  } else if (args.cache.dtype == DType::kF8E4M3) {
    launch_decode_quantized<Float8>(args, context);
  } else if (args.dtype == DType::kF16) {
    launch_decode_dtype<__half, __half>(args, context);
  } else {
    launch_decode_dtype<__nv_bfloat16, __nv_bfloat16>(args, context);
  }
}

}  // namespace caravan::cuda
