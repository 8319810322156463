#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/linear_layout.h"
#include "kernels/cuda/linear.h"
#include "tests/cuda/device_array.h"

namespace caravan::cuda {
namespace {

constexpr Activation kActivations[] = {
    Activation::kNone, Activation::kGelu, Activation::kGeluTanh, Activation::kQuickGelu,
    Activation::kRelu, Activation::kSilu, Activation::kTanh};

double activate(Activation activation, double v) {
  switch (activation) {
    case Activation::kNone:
      return v;
    case Activation::kGelu:
      return 0.5 * v * std::erfc(-v * std::sqrt(0.5));
    case Activation::kGeluTanh:
      return 0.5 * v * (1.0 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    case Activation::kQuickGelu:
      return v / (1.0 + std::exp(-1.702 * v));
    case Activation::kRelu:
      return v > 0.0 ? v : 0.0;
    case Activation::kSilu:
      return v / (1.0 + std::exp(-v));
    case Activation::kTanh:
      return std::tanh(v);
  }
  return v;
}

// One layer's data: host values after rounding, and the same on the device.
struct Layer {
  int64_t in, out;
  DType dtype;
  std::vector<float> weight;  // [out, in]
  std::vector<float> bias;
  std::unique_ptr<DeviceArray> device_weight, device_bias;

  Layer(int64_t in_features, int64_t out_features, DType type, uint32_t seed)
      : in(in_features), out(out_features), dtype(type) {
    const float scale = 2.0f / std::sqrt(static_cast<float>(in));
    weight = rounded(random_floats(static_cast<size_t>(in * out), seed, scale), dtype);
    bias = random_floats(static_cast<size_t>(out), seed + 1);
    std::vector<std::byte> plain(weight.size() * 2);
    convert_elements(weight.data(), DType::kF32, plain.data(), dtype, weight.size());
    const int64_t count = linear_num_elements(LinearLayout::kCore8x8, in, out);
    std::vector<std::byte> packed(static_cast<size_t>(count) * 2);
    pack_linear(plain.data(), LinearLayout::kOutIn, dtype, in, out, LinearLayout::kCore8x8,
                packed.data());
    device_weight = std::make_unique<DeviceArray>(packed);
    device_bias = std::make_unique<DeviceArray>(bias);
  }

  LinearArgs args(int64_t num_tokens, const void* x, void* y, DType y_dtype) const {
    LinearArgs a;
    a.num_tokens = num_tokens;
    a.in_features = in;
    a.out_features = out;
    a.dtype = dtype;
    a.x = x;
    a.weight = device_weight->data();
    a.bias = device_bias->as<float>();
    a.y = y;
    a.y_stride = out;
    a.y_dtype = y_dtype;
    return a;
  }
};

double half_ulp(DType dtype) {  // relative
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

struct Case {
  int64_t num_tokens;
  Activation activation;
  bool has_bias;
  DType y_dtype;
  int64_t y_gap;  // y_stride - out
};

void check(const Layer& layer, const Case& c, const LaunchContext& context) {
  SCOPED_TRACE(::testing::Message()
               << "T " << c.num_tokens << " in " << layer.in << " out " << layer.out << " dtype "
               << dtype_name(layer.dtype) << " y " << dtype_name(c.y_dtype) << " activation "
               << activation_name(c.activation) << " bias " << c.has_bias);
  const std::vector<float> x =
      rounded(random_floats(static_cast<size_t>(c.num_tokens * layer.in), 7, 1.0f), layer.dtype);
  const DeviceArray device_x(x, layer.dtype);
  const int64_t stride = layer.out + c.y_gap;
  const size_t y_size = dtype_size(c.y_dtype);
  const DeviceArray y(static_cast<size_t>(c.num_tokens * stride + 3) * y_size);
  LinearArgs args = layer.args(c.num_tokens, device_x.data(), y.data(), c.y_dtype);
  if (!c.has_bias) args.bias = nullptr;
  args.activation = c.activation;
  args.y_stride = stride;
  launch_linear_stream(args, context);

  const std::vector<std::byte> raw = y.host<std::byte>();
  const std::vector<float> got = y.floats(c.y_dtype);
  // A step of 16 products adds at most an ulp (the tensor core truncates) of what was summed, two
  // more are for the bias; no activation's slope exceeds 1.13. The 16-bit activations may be wrong
  // by 1/15 of the rounding that follows; float32 ones by 8 ulps (of the sum where they cancel).
  const double steps = static_cast<double>(layer.in / 16 + 3);
  int num_wrong = 0;
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    for (int64_t n = 0; n < stride; ++n) {
      const size_t i = static_cast<size_t>(t * stride + n);
      if (n >= layer.out) {
        for (size_t byte = 0; byte < y_size; ++byte) {
          ASSERT_EQ(raw[i * y_size + byte], std::byte{0xFF}) << "the gap after row " << t;
        }
        continue;
      }
      double sum = c.has_bias ? layer.bias[static_cast<size_t>(n)] : 0.0, size = std::fabs(sum);
      const float* xs = &x[static_cast<size_t>(t * layer.in)];
      const float* ws = &layer.weight[static_cast<size_t>(n * layer.in)];
      for (int64_t k = 0; k < layer.in; ++k) {
        const double product = static_cast<double>(xs[k]) * ws[k];
        sum += product;
        size += std::fabs(product);
      }
      const double want = activate(c.activation, sum);
      const double rounding = c.y_dtype == DType::kF32
                                  ? 8 * 0x1p-23 * (std::fabs(want) + std::fabs(sum) * 0x1p-3)
                                  : 1.1 * half_ulp(c.y_dtype) * std::fabs(want) + 0x1p-25;
      const double tolerance = 1.13 * steps * 0x1p-23 * size + rounding;
      if (!(std::fabs(got[i] - want) <= tolerance) && ++num_wrong <= 5) {
        ADD_FAILURE() << "y[" << t << "][" << n << "] got " << got[i] << " want " << want
                      << " tolerance " << tolerance;
      }
    }
  }
  EXPECT_EQ(num_wrong, 0);
  for (size_t byte = static_cast<size_t>(c.num_tokens * stride) * y_size; byte < raw.size();
       ++byte) {
    ASSERT_EQ(raw[byte], std::byte{0xFF}) << "after the last row";
  }
}

class LinearStream : public ::testing::TestWithParam<DType> {
 protected:
  const LaunchContext context_ = device_context();
};
INSTANTIATE_TEST_SUITE_P(Dtypes, LinearStream, ::testing::Values(DType::kF16, DType::kBF16),
                         [](const auto& test) { return std::string(dtype_name(test.param)); });

TEST_P(LinearStream, MatchesDoubleForOddShapes) {
  struct Shape {
    int64_t num_tokens, in, out;
  };
  constexpr Shape kShapes[] = {{1, 64, 128},     {1, 8, 1},       {1, 72, 130},    {3, 768, 2304},
                               {7, 200, 33},     {8, 4096, 4096}, {2, 1600, 4801}, {9, 120, 640},
                               {17, 1024, 1000}, {64, 512, 257},  {40, 2056, 2112}};
  int i = 0;
  for (const Shape& s : kShapes) {
    const Layer layer(s.in, s.out, GetParam(), 11);
    const DType y_dtype = i % 3 == 1 ? DType::kF32 : GetParam();
    check(layer, {s.num_tokens, kActivations[i % 7], i % 4 != 3, y_dtype, i % 2 * 5}, context_);
    ++i;
  }
}

TEST_P(LinearStream, MatchesDoubleForTheHead) {
  const Layer layer(768, 50257, GetParam(), 13);
  check(layer, {33, Activation::kNone, false, DType::kF32, 0}, context_);
}

TEST_P(LinearStream, MatchesDoubleForEveryEpilogue) {
  const Layer layer(136, 150, GetParam(), 17);
  for (const int64_t num_tokens : {1, 5, 12, 29, 50}) {
    for (const Activation activation : kActivations) {
      for (const bool has_bias : {false, true}) {
        for (const DType y_dtype : {GetParam(), DType::kF32}) {
          check(layer, {num_tokens, activation, has_bias, y_dtype, num_tokens % 3}, context_);
        }
      }
    }
  }
}

TEST_P(LinearStream, NanOfARowStaysInTheRow) {
  const Layer layer(200, 48, GetParam(), 19);
  for (const Activation activation : kActivations) {
    for (const int64_t num_tokens : {2, 20, 60}) {
      std::vector<float> x = random_floats(static_cast<size_t>(num_tokens * 200), 23);
      x[200 + 199] = NAN;  // row 1
      const DeviceArray device_x(x, GetParam());
      const DeviceArray y(static_cast<size_t>(num_tokens * 48) * 4);
      LinearArgs args = layer.args(num_tokens, device_x.data(), y.data(), DType::kF32);
      args.activation = activation;
      launch_linear_stream(args, context_);
      const std::vector<float> got = y.host<float>();
      for (int64_t i = 0; i < num_tokens * 48; ++i) {
        ASSERT_EQ(std::isnan(got[static_cast<size_t>(i)]), i / 48 == 1)
            << activation_name(activation) << " T " << num_tokens << " i " << i;
      }
    }
  }
}

TEST_P(LinearStream, BitsOfARowDoNotDependOnTheOtherRows) {
  struct Shape {
    int64_t in, out;
  };
  for (const Shape& s : {Shape{1032, 1000}, Shape{256, 20000}}) {
    const Layer layer(s.in, s.out, GetParam(), 29);
    const DeviceArray x(random_floats(static_cast<size_t>(64 * s.in), 31), GetParam());
    const DeviceArray all(static_cast<size_t>(64 * s.out) * 4);
    launch_linear_stream(layer.args(64, x.data(), all.data(), DType::kF32), context_);
    const std::vector<float> want = all.host<float>();
    for (int64_t num_tokens = 1; num_tokens <= 64; ++num_tokens) {
      // The last num_tokens rows: a row's place in the batch changes too.
      const int64_t first = 64 - num_tokens;
      const DeviceArray y(static_cast<size_t>(num_tokens * s.out) * 4);
      launch_linear_stream(
          layer.args(num_tokens, x.as<uint16_t>() + first * s.in, y.data(), DType::kF32), context_);
      const std::vector<float> got = y.host<float>();
      ASSERT_EQ(std::memcmp(got.data(), &want[static_cast<size_t>(first * s.out)], got.size() * 4),
                0)
          << "T " << num_tokens << " in " << s.in << " out " << s.out;
    }
  }
}

// Layers of a transformer one after the other: each reads what the one before it wrote, and starts
// before that one has ended.
TEST_P(LinearStream, ChainInAGraphRepeatsItsBits) {
  constexpr int64_t kHidden = 1024, kInner = 4096, kBlocks = 6;
  std::vector<std::unique_ptr<Layer>> layers;
  for (uint32_t i = 0; i < kBlocks; ++i) {
    layers.push_back(std::make_unique<Layer>(kHidden, 3 * kHidden, GetParam(), 100 + 4 * i));
    layers.push_back(std::make_unique<Layer>(3 * kHidden, kHidden, GetParam(), 101 + 4 * i));
    layers.push_back(std::make_unique<Layer>(kHidden, kInner, GetParam(), 102 + 4 * i));
    layers.push_back(std::make_unique<Layer>(kInner, kHidden, GetParam(), 103 + 4 * i));
  }
  for (const int64_t num_tokens : {1, 8, 16, 32, 64}) {
    const DeviceArray x(random_floats(static_cast<size_t>(num_tokens * kHidden), 37), GetParam());
    std::vector<std::unique_ptr<DeviceArray>> outputs;
    for (const auto& layer : layers) {
      outputs.push_back(
          std::make_unique<DeviceArray>(static_cast<size_t>(num_tokens * layer->out) * 2));
    }
    const auto run = [&](bool use_pdl) {
      LaunchContext context = context_;
      context.use_pdl = use_pdl;
      for (size_t i = 0; i < layers.size(); ++i) {
        const void* in = i == 0 ? x.data() : outputs[i - 1]->data();
        LinearArgs args = layers[i]->args(num_tokens, in, outputs[i]->data(), GetParam());
        args.activation = i % 4 == 2 ? Activation::kGelu : Activation::kTanh;
        launch_linear_stream(args, context);
      }
    };
    run(false);
    std::vector<std::vector<uint16_t>> want;
    for (const auto& output : outputs) want.push_back(output->host<uint16_t>());

    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeThreadLocal));
    run(true);
    CARAVAN_CUDA_CHECK(cudaStreamEndCapture(context_.stream, &graph));
    CARAVAN_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    for (int repeat = 0; repeat < 100; ++repeat) {
      for (const auto& output : outputs) {
        CARAVAN_CUDA_CHECK(
            cudaMemsetAsync(output->data(), 0xFF, output->num_bytes(), context_.stream));
      }
      CARAVAN_CUDA_CHECK(cudaGraphLaunch(exec, context_.stream));
      for (size_t i = repeat % 10 == 0 ? 0 : outputs.size() - 1; i < outputs.size(); ++i) {
        ASSERT_EQ(outputs[i]->host<uint16_t>(), want[i])
            << "T " << num_tokens << " repeat " << repeat << " layer " << i;
      }
    }
    CARAVAN_CUDA_CHECK(cudaGraphExecDestroy(exec));
    CARAVAN_CUDA_CHECK(cudaGraphDestroy(graph));
  }
}

TEST_P(LinearStream, RefusesWhatItCannotDo) {
  const Layer layer(64, 32, GetParam(), 41);
  const DeviceArray x(std::vector<float>(65 * 64, 1.0f), GetParam());
  const DeviceArray y(65 * 32 * 4);
  const LinearArgs good = layer.args(4, x.data(), y.data(), DType::kF32);
  const auto refuses = [&](auto change) {
    LinearArgs args = good;
    change(args);
    EXPECT_ANY_THROW(launch_linear_stream(args, context_));
  };
  refuses([](LinearArgs& a) { a.num_tokens = 65; });
  refuses([](LinearArgs& a) { a.in_features = 60; });
  refuses([](LinearArgs& a) { a.dtype = DType::kF32; });
  refuses([](LinearArgs& a) { a.y_stride = 31; });
  refuses([](LinearArgs& a) { a.x = static_cast<const uint16_t*>(a.x) + 1; });
  LinearArgs none = good;
  none.num_tokens = 0;
  EXPECT_NO_THROW(launch_linear_stream(none, context_));
}

}  // namespace
}  // namespace caravan::cuda
