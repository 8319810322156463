#include "kernels/cuda/attention_prefill.cuh"

namespace caravan::cuda {

template <>
void launch_prefill_quantized<Float8>(const AttentionArgs& args, const int32_t* tiles,
                                      int64_t num_tiles, const LaunchContext& context) {
  if (args.dtype == DType::kF16) {
    launch_prefill_dtype<__half, Float8>(args, tiles, num_tiles, context);
  } else {
    launch_prefill_dtype<__nv_bfloat16, Float8>(args, tiles, num_tiles, context);
  }
}

}  // namespace caravan::cuda
