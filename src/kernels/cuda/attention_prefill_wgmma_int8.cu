#include "kernels/cuda/attention_prefill_wgmma.cuh"

namespace caravan::cuda {

template <>
void launch_prefill_wgmma_quantized<int8_t>(const AttentionArgs& args, const int32_t* tiles,
                                            int64_t num_tiles, const LaunchContext& context) {
  if (args.dtype == DType::kF16) {
    launch_wgmma_dtype<__half, int8_t>(args, tiles, num_tiles, context);
  } else {
    launch_wgmma_dtype<__nv_bfloat16, int8_t>(args, tiles, num_tiles, context);
  }
}

}  // namespace caravan::cuda
