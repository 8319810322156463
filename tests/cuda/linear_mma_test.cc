#include <gtest/gtest.h>

#include "tests/cuda/linear_reference.h"

namespace caravan::cuda {
namespace {

constexpr DType kDTypes[] = {DType::kF16, DType::kBF16};

/// The real one; one for which no problem is too small for the largest tile; one in between.
std::vector<LaunchContext> contexts_of_all_tiles() {
  std::vector<LaunchContext> contexts(3, device_context());
  contexts[1].num_sms = 1;
  contexts[2].num_sms = 10;
  return contexts;
}

TEST(LinearMmaTest, OddShapesMatchTheReference) {
  struct Shape {
    int64_t num_tokens, in_features, out_features;
  };
  const Shape shapes[] = {{1, 8, 7},      {1, 4096, 130},  {3, 40, 33},     {16, 1032, 1000},
                          {17, 72, 129},  {33, 64, 64},    {64, 200, 257},  {65, 1032, 130},
                          {129, 136, 1},  {200, 328, 391}, {300, 520, 128}, {2, 16384, 96},
                          {128, 16, 128}, {257, 24, 255}};
  for (const LaunchContext& context : contexts_of_all_tiles()) {
    uint32_t seed = 1;
    for (const Shape& shape : shapes) {
      for (const DType dtype : kDTypes) {
        const LinearProblem problem(shape.num_tokens, shape.in_features, shape.out_features, dtype,
                                    ++seed);
        check_linear(launch_linear_mma, problem, shape.out_features, dtype, Activation::kNone, true,
                     context);
        check_linear(launch_linear_mma, problem, (shape.out_features + 15) / 8 * 8, DType::kF32,
                     Activation::kGelu, false, context);
      }
    }
  }
}

TEST(LinearMmaTest, EveryActivation) {
  const LaunchContext context = device_context();
  for (const DType dtype : kDTypes) {
    const LinearProblem few(5, 136, 100, dtype, 100);
    const LinearProblem many(150, 136, 100, dtype, 101);
    for (const Activation activation : kAllActivations) {
      for (const DType y_dtype : {dtype, DType::kF32}) {
        check_linear(launch_linear_mma, few, 104, y_dtype, activation, true, context);
        check_linear(launch_linear_mma, many, 101, y_dtype, activation, true, context);
      }
      check_nan_stays_in_its_row(launch_linear_mma, dtype, activation, context);
    }
  }
}

TEST(LinearMmaTest, BitsOfARowDoNotDependOnItsCompany) {
  const std::vector<LaunchContext> contexts = contexts_of_all_tiles();
  for (const DType dtype : kDTypes) {
    const LinearProblem problem(300, 1096, 272, dtype, 7);
    for (const DType y_dtype : {dtype, DType::kF32}) {
      DeviceArray y(static_cast<size_t>(300 * 272) * dtype_size(y_dtype));
      launch_linear_mma(problem.args(y, 272, y_dtype, Activation::kGelu, true), contexts[1]);
      const std::vector<std::byte> whole = y.host<std::byte>();
      for (const LaunchContext& context : contexts) {
        for (const int64_t num_tokens : {1, 2, 15, 16, 17, 64, 65, 128, 129}) {
          for (const int64_t row : {0, 1, 130, 171}) {
            check_same_rows(launch_linear_mma, problem, y_dtype, whole, row, num_tokens, context);
          }
        }
      }
    }
  }
}

TEST(LinearMmaTest, RefusesWhatItCannotRead) {
  const LaunchContext context = device_context();
  const LinearProblem problem(1, 16, 8, DType::kF16, 1);
  DeviceArray y(64);
  LinearArgs args = problem.args(y, 8, DType::kF16, Activation::kNone, false);
  args.in_features = 12;
  EXPECT_ANY_THROW(launch_linear_mma(args, context));
  args.in_features = 16;
  args.y_dtype = DType::kBF16;
  EXPECT_ANY_THROW(launch_linear_mma(args, context));
  args.y_dtype = DType::kF32;
  args.dtype = DType::kF32;
  EXPECT_ANY_THROW(launch_linear_mma(args, context));
}

}  // namespace
}  // namespace caravan::cuda
