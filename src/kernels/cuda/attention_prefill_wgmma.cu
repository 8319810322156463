#include "kernels/cuda/attention_prefill_wgmma.cuh"

namespace caravan::cuda {

void launch_attention_prefill_wgmma(const AttentionArgs& args, const int32_t* tiles,
                                    int64_t num_tiles, const LaunchContext& context) {
  if (args.cache.dtype == DType::kI8) {
    launch_prefill_wgmma_quantized<int8_t>(args, tiles, num_tiles, context);
  } else if (args.cache.dtype == DType::kF8E4M3) {
    launch_prefill_wgmma_quantized<Float8>(args, tiles, num_tiles, context);
  } else if (args.dtype == DType::kF16) {
    launch_wgmma_dtype<__half, __half>(args, tiles, num_tiles, context);
  } else {
    launch_wgmma_dtype<__nv_bfloat16, __nv_bfloat16>(args, tiles, num_tiles, context);
  }
}

}  // namespace caravan::cuda
