#include "kernels/cuda/attention_decode.cuh"

namespace caravan::cuda {

template <>
void launch_decode_quantized<Float8>(const AttentionArgs& args, const LaunchContext& context) {
  if (args.dtype == DType::kF16) {
    launch_decode_dtype<__half, Float8>(args, context);
  } else {
    launch_decode_dtype<__nv_bfloat16, Float8>(args, context);
  }
}

}  // namespace caravan::cuda
