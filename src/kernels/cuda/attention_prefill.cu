#include "kernels/cuda/attention_prefill.cuh"

namespace caravan::cuda {

void launch_attention_prefill(const AttentionArgs& args, const int32_t* tiles, int64_t num_tiles,
                              const LaunchContext& context) {
  check_fast_attention(args);
  if (num_tiles == 0) return;
  if (context.compute_capability == 90 && args.cache.head_dim <= 128) {
    launch_attention_prefill_wgmma(args, tiles, num_tiles, context);
  } else if (args.cache.dtype == DType::kI8) {
    launch_prefill_quantized<int8_t>(args, tiles, num_tiles, context);
  } else if (args.cache.dtype == DType::kF8E4M3) {
    launch_prefill_quantized<Float8>(args, tiles, num_tiles, context);
  } else if (args.dtype == DType::kF16) {
    launch_prefill_dtype<__half, __half>(args, tiles, num_tiles, context);
  } else {
    launch_prefill_dtype<__nv_bfloat16, __nv_bfloat16>(args, tiles, num_tiles, context);
  }
}

}  // namespace caravan::cuda
