#include "kernels/cuda/linear.h"

namespace caravan::cuda {

void launch_linear(const LinearArgs& args, const LaunchContext& context) {
  switch (choose_linear_kernel(args.num_tokens, args.in_features, args.out_features, args.dtype,
                               context.compute_capability)) {
    case LinearKernel::kStream:
      return launch_linear_stream(args, context);
    case LinearKernel::kWgmma:
      return launch_linear_wgmma(args, context);
    case LinearKernel::kMma:
      return launch_linear_mma(args, context);
    case LinearKernel::kSimple:
      return launch_linear_simple(args, context);
  }
}

}  // namespace caravan::cuda
