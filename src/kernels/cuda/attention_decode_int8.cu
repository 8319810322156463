#include "kernels/cuda/attention_decode.cuh"

namespace caravan::cuda {

template <>
void launch_decode_quantized<int8_t>(const AttentionArgs& args, const LaunchContext& context) {
  if (args.dtype == DType::kF16) {
    launch_decode_dtype<__half, int8_t>(args, context);
  } else {
    launch_decode_dtype<__nv_bfloat16, int8_t>(args, context);
  }
}

}  // namespace caravan::cuda
