#include "kernels/cuda/linear_choice.h"

#include <gtest/gtest.h>

namespace caravan::cuda {
namespace {

TEST(LinearChoiceTest, HopperStreamsWeightsForFewRows) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    EXPECT_EQ(choose_linear_kernel(1, 4096, 12288, dtype, 90), LinearKernel::kStream);
    EXPECT_EQ(choose_linear_kernel(64, 4096, 12288, dtype, 90), LinearKernel::kStream);
    EXPECT_EQ(choose_linear_kernel(65, 4096, 12288, dtype, 90), LinearKernel::kWgmma);
    EXPECT_EQ(choose_linear_kernel(16, 16384, 4096, dtype, 90), LinearKernel::kStream);
    EXPECT_EQ(choose_linear_kernel(17, 16384, 4096, dtype, 90), LinearKernel::kWgmma);
    EXPECT_EQ(choose_linear_kernel(2048, 16384, 4096, dtype, 90), LinearKernel::kWgmma);
  }
}

TEST(LinearChoiceTest, OtherTensorCoresTakeTheGenericKernel) {
  for (const int capability : {80, 86, 87, 89, 100, 120}) {
    for (const int64_t num_tokens : {1, 64, 65, 2048}) {
      EXPECT_EQ(choose_linear_kernel(num_tokens, 4096, 4096, DType::kBF16, capability),
                LinearKernel::kMma);
    }
  }
}

TEST(LinearChoiceTest, Float32AndOddSizesAreSimpleForAnyNumberOfRows) {
  for (const int64_t num_tokens : {1, 64, 65, 2048}) {
    for (const int capability : {75, 80, 90}) {
      EXPECT_EQ(choose_linear_kernel(num_tokens, 4096, 4096, DType::kF32, capability),
                LinearKernel::kSimple);
      EXPECT_EQ(choose_linear_kernel(num_tokens, 4100, 4096, DType::kF16, capability),
                LinearKernel::kSimple);
    }
    EXPECT_EQ(choose_linear_kernel(num_tokens, 4096, 4096, DType::kF16, 75), LinearKernel::kSimple);
  }
}

TEST(LinearChoiceTest, OddOutFeaturesNeedNoOtherKernel) {
  EXPECT_EQ(choose_linear_kernel(1, 4096, 50257, DType::kF16, 90), LinearKernel::kStream);
  EXPECT_EQ(choose_linear_kernel(1, 4096, 50257, DType::kF16, 80), LinearKernel::kMma);
}

}  // namespace
}  // namespace caravan::cuda
