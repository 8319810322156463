#include "kernels/cuda/linear_choice.h"

namespace caravan::cuda {

namespace {

/// Rows up to which weights are streamed; the tensor-copy kernel takes over above. For few outputs,
/// whose tiles of 64 x 64 are one wave, that is sooner: H100, 64 rows, 4096 -> 4096 15.7 us against
/// 21.2 and 16384 -> 4096 53.3 against 74.3, but 4096 -> 12288 38.6 against 37.5. Already from 17
/// rows on for the sake of whole steps: camel-5b, 24 and 32 rows at context 512, int8 cache 5.18 ->
/// 4.88 and 5.52 -> 5.22 ms, float16 cache 5.60 -> 5.58 and 6.17 -> 6.15.
constexpr int64_t kStreamTokens = 64;
constexpr int64_t kNarrowOutFeatures = 8192;
constexpr int64_t kNarrowStreamTokens = 16;

}  // namespace

LinearKernel choose_linear_kernel(int64_t num_tokens, int64_t in_features, int64_t out_features,
                                  DType dtype, int compute_capability) {
  // Not a question of num_tokens: kSimple's bits differ from the tensor cores'.
  if (dtype == DType::kF32 || in_features % 8 != 0 || compute_capability < 80) {
    return LinearKernel::kSimple;
  }
  // kStream and kWgmma are built for sm_90a, which runs on compute capability 9.0 only.
  if (compute_capability != 90) return LinearKernel::kMma;
  const int64_t limit = out_features <= kNarrowOutFeatures ? kNarrowStreamTokens : kStreamTokens;
  return num_tokens <= limit ? LinearKernel::kStream : LinearKernel::kWgmma;
}

}  // namespace caravan::cuda
