#include "kernels/cuda/linear_wgmma.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/linear_layout.h"
#include "kernels/cuda/linear.h"
#include "tests/cuda/device_array.h"
#include "tests/cuda/linear_chain.h"

namespace caravan::cuda {
namespace {

std::string name(const LinearWgmmaConfig& c) {
  return std::to_string(c.tile_rows) + "x" + std::to_string(c.tile_columns);
}

/// Random x, W, bias of one layer, on the host (rounded to dtype) and on the device.
struct Problem {
  int64_t num_tokens, in, out;
  DType dtype;
  std::vector<float> x, w, bias;  // w [out][in]
  DeviceArray device_x, device_w, device_bias;

  static DeviceArray pack(const std::vector<float>& w, int64_t in, int64_t out, DType dtype) {
    std::vector<std::byte> source(w.size() * 2);
    convert_elements(w.data(), DType::kF32, source.data(), dtype, w.size());
    std::vector<std::byte> packed(
        static_cast<size_t>(linear_num_elements(LinearLayout::kCore8x8, in, out)) * 2);
    pack_linear(source.data(), LinearLayout::kOutIn, dtype, in, out, LinearLayout::kCore8x8,
                packed.data());
    return DeviceArray(packed);
  }
  Problem(int64_t t, int64_t in_features, int64_t out_features, DType type)
      : num_tokens(t),
        in(in_features),
        out(out_features),
        dtype(type),
        x(rounded(random_floats(static_cast<size_t>(t * in), 1), type)),
        w(rounded(random_floats(static_cast<size_t>(in * out), 2,
                                4.0f / std::sqrt(static_cast<float>(in))),
                  type)),
        bias(random_floats(static_cast<size_t>(out), 3)),
        device_x(x, type),
        device_w(pack(w, in, out, type)),
        device_bias(bias) {}

  LinearArgs args(const DeviceArray& y, DType y_dtype, int64_t y_stride, Activation activation,
                  bool has_bias = true) const {
    LinearArgs a;
    a.num_tokens = num_tokens;
    a.in_features = in;
    a.out_features = out;
    a.dtype = dtype;
    a.x = device_x.data();
    a.weight = device_w.data();
    a.bias = has_bias ? device_bias.as<float>() : nullptr;
    a.activation = activation;
    a.y = y.data();
    a.y_stride = y_stride;
    a.y_dtype = y_dtype;
    return a;
  }
};

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case Activation::kGeluTanh:
      return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kQuickGelu:
      return x / (1 + std::exp(-1.702 * x));
    case Activation::kRelu:
      return std::isnan(x) ? x : std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
  }
  return x;
}

/// Half a unit in the last place of y's dtype (spacing of its subnormals included).
double half_ulp(double y, DType dtype) {
  const int mantissa = dtype == DType::kF16 ? 10 : dtype == DType::kBF16 ? 7 : 23;
  const int min_exponent = dtype == DType::kF16 ? -14 : -126;
  const int exponent = y == 0 ? min_exponent : std::max(std::ilogb(y), min_exponent);
  return std::ldexp(0.5, exponent - mantissa);
}

/// Half an ulp of the result, and what the chain and the activation lose: the tensor core truncates
/// each of its in/16 sums, one float32 ulp of the largest partial sum at the most.
void expect_close(const Problem& p, const std::vector<float>& y, DType y_dtype, int64_t y_stride,
                  Activation activation, bool has_bias, int64_t row_step = 1) {
  int64_t wrong = 0;
  for (int64_t t = 0; t < p.num_tokens; t += row_step) {
    for (int64_t n = 0; n < p.out; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < p.in; ++k) {
        const double product = static_cast<double>(p.x[t * p.in + k]) * p.w[n * p.in + k];
        sum += product;
        magnitude += std::abs(product);
      }
      if (has_bias) sum += p.bias[n];
      const double wanted = activate(activation, sum);
      const double got = y[t * y_stride + n];
      const double chain = std::ldexp(magnitude, -23) * (static_cast<double>(p.in) / 16 + 2);
      const double tolerance = 1.2 * half_ulp(wanted, y_dtype) + 1.2 * chain +
                               (y_dtype == DType::kF32 ? 1e-6 * std::abs(wanted) : 0);
      if (!(std::abs(got - wanted) <= tolerance) && ++wrong <= 5) {
        ADD_FAILURE() << "y[" << t << "][" << n << "] = " << got << ", wanted " << wanted
                      << ", tolerance " << tolerance;
      }
    }
  }
  EXPECT_EQ(wrong, 0) << "of " << p.num_tokens << " x " << p.out;
}

class LinearWgmma : public testing::Test {
 protected:
  void TearDown() override { CARAVAN_CUDA_CHECK(cudaDeviceSynchronize()); }
  LaunchContext context_ = device_context();
};

TEST_F(LinearWgmma, MatchesTheReferenceOnOddShapes) {
  const int64_t shapes[][3] = {{1, 64, 128},     {7, 72, 33},       {65, 200, 130},
                               {129, 768, 2304}, {300, 1024, 1000}, {1000, 320, 257}};
  for (const auto& [t, in, out] : shapes) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      SCOPED_TRACE(testing::Message()
                   << t << " x " << in << " x " << out << " " << dtype_name(dtype));
      const Problem p(t, in, out, dtype);
      const DeviceArray y(static_cast<size_t>(t * out) * 2);
      launch_linear_wgmma(p.args(y, dtype, out, Activation::kNone), context_);
      expect_close(p, y.floats(dtype), dtype, out, Activation::kNone, true);
    }
  }
}

TEST_F(LinearWgmma, MatchesTheReferenceOnALargeShape) {
  const Problem p(512, 4096, 4096, DType::kF16);
  const DeviceArray y(static_cast<size_t>(512 * 4096) * 2);
  launch_linear_wgmma(p.args(y, DType::kF16, 4096, Activation::kGelu), context_);
  expect_close(p, y.floats(DType::kF16), DType::kF16, 4096, Activation::kGelu, true, 67);
}

TEST_F(LinearWgmma, EveryActivation) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const Problem p(130, 136, 200, dtype);
    for (const Activation activation :
         {Activation::kNone, Activation::kGelu, Activation::kGeluTanh, Activation::kQuickGelu,
          Activation::kRelu, Activation::kSilu, Activation::kTanh}) {
      for (const DType y_dtype : {dtype, DType::kF32}) {
        SCOPED_TRACE(testing::Message() << activation_name(activation) << " " << dtype_name(dtype)
                                        << " to " << dtype_name(y_dtype));
        const DeviceArray y(static_cast<size_t>(130 * 200) * dtype_size(y_dtype));
        launch_linear_wgmma(p.args(y, y_dtype, 200, activation), context_);
        expect_close(p, y.floats(y_dtype), y_dtype, 200, activation, true);
      }
    }
  }
}

TEST_F(LinearWgmma, WritesOnlyItsColumnsAndRows) {
  const Problem p(77, 128, 131, DType::kF16);
  for (const DType y_dtype : {DType::kF16, DType::kF32}) {
    for (const int64_t stride : {131, 133, 144}) {
      const size_t size = dtype_size(y_dtype);
      const DeviceArray y(static_cast<size_t>(80 * stride) * size);
      launch_linear_wgmma(p.args(y, y_dtype, stride, Activation::kNone, false), context_);
      const std::vector<float> values = y.floats(y_dtype);
      expect_close(p, values, y_dtype, stride, Activation::kNone, false);
      for (int64_t t = 0; t < 80; ++t) {
        for (int64_t n = t < 77 ? 131 : 0; n < stride; ++n) {
          ASSERT_TRUE(std::isnan(values[t * stride + n])) << t << ", " << n << " was written";
        }
      }
    }
  }
}

TEST_F(LinearWgmma, AllConfigurationsGiveTheBitsOfTheChain) {
  // Several tiles a block in both directions, tails everywhere; a K that wraps the stages.
  const int64_t shapes[][3] = {{700, 1096, 4168}, {5, 64, 8}, {3000, 72, 4104}};
  for (const auto& [t, in, out] : shapes) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      const Problem p(t, in, out, dtype);
      for (const DType y_dtype : {DType::kF32, dtype}) {
        const size_t bytes = static_cast<size_t>(t * out) * dtype_size(y_dtype);
        const DeviceArray wanted(bytes);
        chain_linear(p.args(wanted, y_dtype, out, Activation::kGelu), context_);
        const std::vector<std::byte> a = wanted.host<std::byte>();
        for (const LinearWgmmaConfig& config : wgmma_configs()) {
          const DeviceArray y(bytes);
          SCOPED_TRACE(name(config));
          launch_linear_wgmma_with(p.args(y, y_dtype, out, Activation::kGelu), config, context_);
          ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
          const std::vector<std::byte> b = y.host<std::byte>();
          if (std::memcmp(a.data(), b.data(), bytes) == 0) continue;
          const std::vector<float> want = wanted.floats(y_dtype), got = y.floats(y_dtype);
          int64_t count = 0, first = -1;
          double largest = 0;
          for (size_t i = 0; i < want.size(); ++i) {
            if (std::memcmp(&want[i], &got[i], 4) == 0) continue;
            if (first < 0) first = static_cast<int64_t>(i);
            largest = std::max(largest, std::abs(static_cast<double>(want[i]) - got[i]));
            ++count;
          }
          ADD_FAILURE() << t << " x " << in << " x " << out << " " << dtype_name(dtype) << " to "
                        << dtype_name(y_dtype) << ": " << count << " of " << want.size()
                        << " differ, by " << largest << " at most; first y[" << first / out << "]["
                        << first % out << "] = " << got[first] << ", not " << want[first];
        }
      }
    }
  }
}

TEST_F(LinearWgmma, RowsBeyondTheBatchChangeNothing) {
  // Rows 70... of x hold NaN and may be read.
  const int64_t num_tokens = 70, in = 264, out = 136;
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    Problem p(256, in, out, dtype);
    fill_device(p.device_x.as<uint16_t>() + num_tokens * in, 0xFF,
                static_cast<size_t>((256 - num_tokens) * in) * 2);
    const size_t bytes = static_cast<size_t>(256 * out) * 4;
    LinearArgs args = p.args(DeviceArray(1), DType::kF32, out, Activation::kGelu);
    args.num_tokens = num_tokens;
    const DeviceArray wanted(bytes);
    args.y = wanted.data();
    chain_linear(args, context_);
    for (const int64_t num_readable : {0, 71, 128, 256}) {
      args.num_readable_rows = num_readable;
      for (const LinearWgmmaConfig& config : wgmma_configs()) {
        const DeviceArray y(bytes);
        args.y = y.data();
        launch_linear_wgmma_with(args, config, context_);
        EXPECT_EQ(y.host<std::byte>(), wanted.host<std::byte>())
            << name(config) << ", " << num_readable << " rows may be read";
      }
    }
  }
}

TEST_F(LinearWgmma, ARowHasTheSameBitsInEveryBatch) {
  const int64_t in = 1032, out = 520;
  const Problem p(512, in, out, DType::kF16);
  const DeviceArray all(512 * out * 4);
  launch_linear_wgmma(p.args(all, DType::kF32, out, Activation::kNone), context_);
  const std::vector<float> wanted = all.host<float>();
  const int64_t ranges[][2] = {{0, 1}, {17, 1}, {511, 1}, {3, 64}, {64, 128}, {100, 300}, {1, 511}};
  for (const auto& [first, count] : ranges) {
    const DeviceArray part(static_cast<size_t>(count * out) * 4);
    LinearArgs args = p.args(part, DType::kF32, out, Activation::kNone);
    args.num_tokens = count;
    args.x = p.device_x.as<std::byte>() + first * in * 2;
    launch_linear_wgmma(args, context_);
    const std::vector<float> got = part.host<float>();
    EXPECT_EQ(std::memcmp(got.data(), wanted.data() + first * out, got.size() * 4), 0)
        << count << " rows from " << first;
  }
}

// The sizes of camel-5b, on both sides of the numbers of rows at which another kernel takes over.
TEST_F(LinearWgmma, TheKernelsOfEveryNumberOfRowsGiveTheBitsOfTheChain) {
  const int64_t shapes[][2] = {{4096, 4096}, {16384, 4096}, {4096, 12288}};
  for (const auto& [in, out] : shapes) {
    const Problem p(65, in, out, DType::kF16);
    const size_t row_bytes = static_cast<size_t>(out) * 4;
    const DeviceArray chain(65 * row_bytes);
    chain_linear(p.args(chain, DType::kF32, out, Activation::kNone), context_);
    const std::vector<std::byte> wanted = chain.host<std::byte>();
    for (const int64_t num_tokens : {1, 8, 9, 16, 17, 32, 33, 64, 65}) {
      const size_t num_bytes = static_cast<size_t>(num_tokens) * row_bytes;
      const DeviceArray y(num_bytes);
      LinearArgs args = p.args(y, DType::kF32, out, Activation::kNone);
      args.num_tokens = num_tokens;
      launch_linear(args, context_);
      EXPECT_EQ(std::memcmp(y.host<std::byte>().data(), wanted.data(), num_bytes), 0)
          << num_tokens << " rows, " << in << " to " << out;
    }
  }
}

TEST_F(LinearWgmma, NanStaysInItsRow) {
  Problem p(140, 128, 136, DType::kF16);
  std::vector<float> x = p.x;
  x[131 * 128 + 5] = std::nanf("");
  const DeviceArray poisoned(x, DType::kF16);
  for (const Activation activation : {Activation::kNone, Activation::kGelu, Activation::kGeluTanh,
                                      Activation::kRelu, Activation::kTanh}) {
    for (const DType y_dtype : {DType::kF16, DType::kF32}) {
      const DeviceArray y(140 * 136 * dtype_size(y_dtype));
      LinearArgs args = p.args(y, y_dtype, 136, activation);
      args.x = poisoned.data();
      launch_linear_wgmma(args, context_);
      const std::vector<float> values = y.floats(y_dtype);
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(std::isnan(values[i]), i / 136 == 131) << activation_name(activation) << " " << i;
      }
    }
  }
}

TEST_F(LinearWgmma, RefusesWhatItCannotDo) {
  const Problem p(4, 72, 16, DType::kF16);
  const DeviceArray y(4 * 16 * 4);
  LinearArgs args = p.args(y, DType::kF16, 16, Activation::kNone);
  args.in_features = 70;
  EXPECT_ANY_THROW(launch_linear_wgmma(args, context_));
  args = p.args(y, DType::kF16, 15, Activation::kNone);
  EXPECT_ANY_THROW(launch_linear_wgmma(args, context_));
  args = p.args(y, DType::kBF16, 16, Activation::kNone);
  EXPECT_ANY_THROW(launch_linear_wgmma(args, context_));
  args = p.args(y, DType::kF16, 16, Activation::kNone);
  args.x = p.device_x.as<std::byte>() + 2;
  EXPECT_ANY_THROW(launch_linear_wgmma(args, context_));
}

/// Every finite float16 as input: 0.55 ulp of the output, where 0.5 is the rounding itself.
TEST_F(LinearWgmma, ActivationsAreAccurate) {
  std::vector<float> x;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float v = load_as_f32(&half, DType::kF16, 0);
    if (std::isfinite(v)) x.push_back(v);
  }
  for (float v = -14.0f; v < 14.0f; v += 1.0f / 8192) x.push_back(v);
  const DeviceArray device_x(x);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const Activation activation :
         {Activation::kNone, Activation::kGelu, Activation::kGeluTanh, Activation::kQuickGelu,
          Activation::kRelu, Activation::kSilu, Activation::kTanh}) {
      const DeviceArray y(x.size() * dtype_size(dtype));
      activate_array(device_x.as<float>(), y.data(), dtype, activation,
                     static_cast<int64_t>(x.size()), context_);
      const std::vector<float> got = y.floats(dtype);
      double worst = 0;
      float worst_x = 0;
      int num_wrong = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double wanted = activate(activation, x[i]);
        if (dtype == DType::kF16 && std::abs(wanted) > 65504) continue;
        // Below 1e-30 the functions of 16 bits may lose bits, down to 0.
        const double error = std::abs(wanted) < 1e-30 && std::abs(got[i]) < 1e-30
                                 ? 0.0
                                 : std::abs(got[i] - wanted) / half_ulp(wanted, dtype) / 2;
        // float32: also 2 ulps of the exponential's argument.
        const double allowed = dtype == DType::kF32 && wanted != 0
                                   ? 5 + 2 * std::abs(std::log(std::abs(wanted / x[i])))
                                   : 0.55;
        EXPECT_LE(error, allowed) << activation_name(activation) << " " << dtype_name(dtype)
                                  << " at " << x[i] << ": " << got[i] << ", wanted " << wanted;
        if (error > allowed && ++num_wrong == 5) break;
        if (!(error <= worst)) {
          worst = error;
          worst_x = x[i];
        }
      }
      RecordProperty(std::string(activation_name(activation)) + "_" + dtype_name(dtype),
                     std::to_string(worst));
      printf("  %-12s %-5s %.3f ulp at %g\n", activation_name(activation), dtype_name(dtype), worst,
             worst_x);
    }
  }
}

TEST(LinearWgmmaConfigTest, ChoosesWhatIsBuilt) {
  const auto configs = wgmma_configs();
  for (const int num_sms : {1, 78, 114, 132}) {
    for (int64_t tokens = 1; tokens < 20000; tokens = tokens * 5 / 3 + 1) {
      for (const int64_t out : {1, 33, 2304, 4096, 12288, 16384, 50258}) {
        const LinearWgmmaConfig c = choose_wgmma_config(tokens, out, num_sms);
        ASSERT_NE(std::find(configs.begin(), configs.end(), c), configs.end()) << name(c);
      }
    }
  }
}

/// The fastest of the measured ones, H100.
TEST(LinearWgmmaConfigTest, FillsTheWaves) {
  const struct {
    int64_t tokens, out;
    LinearWgmmaConfig wanted;
  } cases[] = {{128, 12288, {128, 96}},   {128, 4096, {64, 64}},     {128, 16384, {128, 128}},
               {256, 12288, {128, 192}},  {256, 4096, {128, 64}},    {256, 16384, {128, 256}},
               {512, 12288, {128, 192}},  {512, 4096, {128, 128}},   {512, 16384, {128, 256}},
               {2048, 12288, {128, 256}}, {2048, 16384, {128, 256}}, {2048, 4096, {128, 256}},
               {16384, 4096, {128, 256}}, {16384, 16384, {128, 256}}};
  for (const auto& [tokens, out, wanted] : cases) {
    EXPECT_EQ(name(choose_wgmma_config(tokens, out, 132)), name(wanted)) << tokens << " x " << out;
  }
}

}  // namespace
}  // namespace caravan::cuda
