#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/linear_layout.h"
#include "kernels/cuda/linear.h"
#include "tests/cuda/device_array.h"

namespace caravan::cuda {

inline double reference_activation(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::kQuickGelu:
      return x / (1.0 + std::exp(-1.702 * x));
    case Activation::kRelu:
      return x > 0.0 ? x : 0.0;
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
  }
  return x;
}

inline constexpr Activation kAllActivations[] = {
    Activation::kNone, Activation::kGelu, Activation::kGeluTanh, Activation::kQuickGelu,
    Activation::kRelu, Activation::kSilu, Activation::kTanh};

/// One linear layer with random values; x and weight hold what the dtype can hold.
struct LinearProblem {
  LinearProblem(int64_t tokens, int64_t in, int64_t out, DType dtype_of_weight, uint32_t seed)
      : num_tokens(tokens),
        in_features(in),
        out_features(out),
        dtype(dtype_of_weight),
        x(rounded(random_floats(static_cast<size_t>(tokens * in), seed), dtype)),
        weight(rounded(random_floats(static_cast<size_t>(out * in), seed + 1,
                                     4.0f / std::sqrt(static_cast<float>(in))),
                       dtype)),
        bias(random_floats(static_cast<size_t>(out), seed + 2)),
        device_x(x, dtype),
        device_weight(packed()),
        device_bias(bias, DType::kF32) {}

  /// Weights as the kernels read them.
  std::vector<std::byte> packed() const {
    std::vector<std::byte> stored(weight.size() * dtype_size(dtype));
    convert_elements(weight.data(), DType::kF32, stored.data(), dtype, weight.size());
    if (dtype == DType::kF32) return stored;
    const auto count =
        static_cast<size_t>(linear_num_elements(LinearLayout::kCore8x8, in_features, out_features));
    std::vector<std::byte> packed(count * dtype_size(dtype));
    pack_linear(stored.data(), LinearLayout::kOutIn, dtype, in_features, out_features,
                LinearLayout::kCore8x8, packed.data());
    return packed;
  }

  LinearArgs args(DeviceArray& y, int64_t y_stride, DType y_dtype, Activation activation,
                  bool has_bias) const {
    LinearArgs args;
    args.num_tokens = num_tokens;
    args.in_features = in_features;
    args.out_features = out_features;
    args.dtype = dtype;
    args.x = device_x.data();
    args.weight = device_weight.data();
    args.bias = has_bias ? device_bias.as<float>() : nullptr;
    args.activation = activation;
    args.y = y.data();
    args.y_stride = y_stride;
    args.y_dtype = y_dtype;
    return args;
  }

  int64_t num_tokens, in_features, out_features;
  DType dtype;
  std::vector<float> x, weight, bias;
  DeviceArray device_x, device_weight, device_bias;
};

/// Half a unit in the last place, relative.
inline double half_ulp(DType dtype) {
  return dtype == DType::kF16 ? 0x1p-11 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-24;
}

using LaunchLinear = void (*)(const LinearArgs&, const LaunchContext&);

/// Runs `launch` and compares with sums in double. Tolerance: 1.25 half ulps of the output's dtype
/// (8 for float32, whose activations are good to a few ulps), the random walk of in_features
/// roundings of float32 sums four times over, and half of float16's smallest number.
inline void check_linear(LaunchLinear launch, const LinearProblem& problem, int64_t y_stride,
                         DType y_dtype, Activation activation, bool has_bias,
                         const LaunchContext& context) {
  SCOPED_TRACE(testing::Message() << "T " << problem.num_tokens << " in " << problem.in_features
                                  << " out " << problem.out_features << " stride " << y_stride
                                  << " " << dtype_name(problem.dtype) << " to "
                                  << dtype_name(y_dtype) << " " << activation_name(activation)
                                  << (has_bias ? " bias" : ""));
  DeviceArray y(static_cast<size_t>(problem.num_tokens * y_stride) * dtype_size(y_dtype));
  launch(problem.args(y, y_stride, y_dtype, activation, has_bias), context);
  const std::vector<float> got = y.floats(y_dtype);
  const std::vector<std::byte> raw = y.host<std::byte>();
  const double relative = y_dtype == DType::kF32 ? 8 * 0x1p-24 : 1.25 * half_ulp(y_dtype);
  const int64_t in = problem.in_features;
  int num_wrong = 0;
  double worst = 0;
  for (int64_t t = 0; t < problem.num_tokens; ++t) {
    for (int64_t n = 0; n < y_stride; ++n) {
      const auto at = static_cast<size_t>(t * y_stride + n);
      if (n >= problem.out_features) {
        for (size_t i = 0; i < dtype_size(y_dtype); ++i) {
          ASSERT_EQ(raw[at * dtype_size(y_dtype) + i], std::byte{0xFF})
              << "written beyond out_features: row " << t << " column " << n;
        }
        continue;
      }
      double sum = has_bias ? problem.bias[static_cast<size_t>(n)] : 0.0;
      double magnitude = std::abs(sum);
      const float* x = &problem.x[static_cast<size_t>(t * in)];
      const float* w = &problem.weight[static_cast<size_t>(n * in)];
      for (int64_t k = 0; k < in; ++k) {
        const double product = static_cast<double>(x[k]) * w[k];
        sum += product;
        magnitude += std::abs(product);
      }
      const double wanted = reference_activation(activation, sum);
      const double tolerance = relative * std::abs(wanted) +
                               4 * std::sqrt(static_cast<double>(in)) * 0x1p-24 * magnitude +
                               0x1p-25;
      const double error = std::abs(got[at] - wanted);
      worst = std::max(worst, error / tolerance);
      if (!(error <= tolerance) && ++num_wrong <= 5) {
        ADD_FAILURE() << "row " << t << " column " << n << ": got " << got[at] << ", wanted "
                      << wanted << ", tolerance " << tolerance;
      }
    }
  }
  EXPECT_EQ(num_wrong, 0) << "worst error / tolerance " << worst;
}

/// Row `row` of `whole` and row 0 of a launch that starts there with `num_tokens` rows must agree
/// in every bit.
inline void check_same_rows(LaunchLinear launch, const LinearProblem& problem, DType y_dtype,
                            const std::vector<std::byte>& whole, int64_t row, int64_t num_tokens,
                            const LaunchContext& context) {
  const size_t row_bytes = static_cast<size_t>(problem.out_features) * dtype_size(y_dtype);
  DeviceArray y(static_cast<size_t>(num_tokens) * row_bytes);
  LinearArgs args = problem.args(y, problem.out_features, y_dtype, Activation::kGelu, true);
  args.num_tokens = num_tokens;
  // A copy of its own: rows after the last must not be read, or they could be found there.
  const size_t x_row_bytes = static_cast<size_t>(problem.in_features) * dtype_size(problem.dtype);
  DeviceArray x(static_cast<size_t>(num_tokens) * x_row_bytes);
  copy_to_device(x.data(),
                 problem.device_x.as<std::byte>() + static_cast<size_t>(row) * x_row_bytes,
                 x.num_bytes());
  args.x = x.data();
  launch(args, context);
  const std::vector<std::byte> part = y.host<std::byte>();
  EXPECT_EQ(
      std::memcmp(part.data(), whole.data() + static_cast<size_t>(row) * row_bytes, part.size()), 0)
      << num_tokens << " rows from " << row;
}

/// A NaN in one row of x makes that row NaN and no other.
inline void check_nan_stays_in_its_row(LaunchLinear launch, DType dtype, Activation activation,
                                       const LaunchContext& context) {
  constexpr int64_t kTokens = 19, kIn = 72, kOut = 41, kRow = 3;
  LinearProblem problem(kTokens, kIn, kOut, dtype, 5);
  std::vector<float> x = problem.x;
  x[kRow * kIn + 50] = NAN;
  const DeviceArray device_x(x, dtype);
  DeviceArray y(kTokens * kOut * dtype_size(dtype));
  LinearArgs args = problem.args(y, kOut, dtype, activation, true);
  args.x = device_x.data();
  launch(args, context);
  const std::vector<float> got = y.floats(dtype);
  for (int64_t i = 0; i < kTokens * kOut; ++i) {
    ASSERT_EQ(std::isnan(got[static_cast<size_t>(i)]), i / kOut == kRow)
        << activation_name(activation) << " row " << i / kOut << " column " << i % kOut;
  }
}

}  // namespace caravan::cuda
