#include <gtest/gtest.h>

#include "tests/cuda/linear_reference.h"

namespace caravan::cuda {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

TEST(LinearSimpleTest, OddShapesMatchTheReference) {
  struct Shape {
    int64_t num_tokens, in_features, out_features;
  };
  const Shape shapes[] = {{1, 1, 1},       {1, 4096, 130}, {3, 33, 7},
                          {16, 1023, 300}, {17, 65, 129},  {64, 100, 257},
                          {65, 77, 130},   {200, 16, 64},  {130, 20, 67}};
  const LaunchContext context = device_context();
  uint32_t seed = 1;
  for (const Shape& shape : shapes) {
    for (const DType dtype : kDTypes) {
      const LinearProblem problem(shape.num_tokens, shape.in_features, shape.out_features, dtype,
                                  ++seed);
      check_linear(launch_linear_simple, problem, shape.out_features, dtype, Activation::kNone,
                   true, context);
      check_linear(launch_linear_simple, problem, shape.out_features + 3, DType::kF32,
                   Activation::kGelu, false, context);
    }
  }
}

TEST(LinearSimpleTest, EveryActivation) {
  const LaunchContext context = device_context();
  for (const DType dtype : kDTypes) {
    const LinearProblem few(5, 77, 100, dtype, 100);
    const LinearProblem many(70, 77, 100, dtype, 101);
    for (const Activation activation : kAllActivations) {
      for (const DType y_dtype : {dtype, DType::kF32}) {
        check_linear(launch_linear_simple, few, 104, y_dtype, activation, true, context);
        check_linear(launch_linear_simple, many, 101, y_dtype, activation, true, context);
      }
      check_nan_stays_in_its_row(launch_linear_simple, dtype, activation, context);
    }
  }
}

TEST(LinearSimpleTest, BitsOfARowDoNotDependOnItsCompany) {
  const LaunchContext context = device_context();
  for (const DType dtype : kDTypes) {
    const LinearProblem problem(150, 1097, 130, dtype, 7);
    DeviceArray y(static_cast<size_t>(150 * 130) * dtype_size(dtype));
    launch_linear_simple(problem.args(y, 130, dtype, Activation::kGelu, true), context);
    const std::vector<std::byte> whole = y.host<std::byte>();
    for (const int64_t num_tokens : {1, 2, 15, 16, 17, 64, 65}) {
      for (const int64_t row : {0, 1, 70, 85}) {
        check_same_rows(launch_linear_simple, problem, dtype, whole, row, num_tokens, context);
      }
    }
  }
}

}  // namespace
}  // namespace caravan::cuda
