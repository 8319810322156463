#include "kernels/cuda/linear_choice.h"

namespace caravan::cuda {

namespace {

/// Rows up to which weights are streamed; the tensor-copy kernel takes over above.
constexpr int64_t kStreamTokens = 64;

}  // namespace

LinearKernel choose_linear_kernel(int64_t num_tokens, int64_t in_features, int64_t /*out_features*/,
                                  DType dtype, int compute_capability) {
  // Not a question of num_tokens: kSimple's bits differ from the tensor cores'.
  if (dtype == DType::kF32 || in_features % 8 != 0 || compute_capability < 80) {
    return LinearKernel::kSimple;
  }
  // kStream and kWgmma are built for sm_90a, which runs on compute capability 9.0 only.
  if (compute_capability != 90) return LinearKernel::kMma;
  return num_tokens <= kStreamTokens ? LinearKernel::kStream : LinearKernel::kWgmma;
}

}  // namespace caravan::cuda
