#include "kernels/cuda/layer_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/cuda/device_array.h"

namespace caravan::cuda {
namespace {

struct Dtypes {
  DType x;
  DType y;  // of delta too
};
constexpr Dtypes kAllDtypes[] = {{DType::kF32, DType::kF16},
                                 {DType::kF32, DType::kBF16},
                                 {DType::kF32, DType::kF32},
                                 {DType::kF16, DType::kF16},
                                 {DType::kBF16, DType::kBF16}};

double unit_roundoff(DType dtype) {
  return std::ldexp(1.0, dtype == DType::kF16 ? -11 : dtype == DType::kBF16 ? -8 : -24);
}

struct Case {
  int64_t num_tokens = 1;
  int64_t hidden_size = 1;
  Dtypes dtypes{DType::kF32, DType::kF16};
  bool with_delta = false;
  bool with_delta_bias = false;
  float mean = 0.0f;
  float spread = 1.0f;
  std::string name() const {
    return std::string("x ") + dtype_name(dtypes.x) + ", y " + dtype_name(dtypes.y) + " [" +
           std::to_string(num_tokens) + ", " + std::to_string(hidden_size) + "]" +
           (with_delta ? " delta" : "") + (with_delta_bias ? " + bias" : "") + " mean " +
           std::to_string(mean);
  }
};

/// The inputs of a case, as float values that its dtypes hold exactly.
struct Inputs {
  std::vector<float> x, delta, delta_bias, weight, bias;
};

Inputs make_inputs(const Case& c) {
  const size_t h = static_cast<size_t>(c.hidden_size);
  const size_t n = static_cast<size_t>(c.num_tokens) * h;
  Inputs in;
  in.x = random_floats(n, 1, c.spread);
  for (float& v : in.x) v += c.mean;
  in.x = rounded(in.x, c.dtypes.x);
  if (c.with_delta) in.delta = rounded(random_floats(n, 2, c.spread), c.dtypes.y);
  if (c.with_delta_bias) in.delta_bias = random_floats(h, 3, c.spread);
  in.weight = random_floats(h, 4);
  for (float& v : in.weight) v += 1.0f;
  in.bias = random_floats(h, 5);
  return in;
}

/// Device memory of a case; outputs have one more row, which must stay as it was.
struct DeviceCase {
  DeviceArray x, delta, delta_bias, weight, bias, y;
  DeviceCase(const Case& c, const Inputs& in)
      : x(in.x, c.dtypes.x),
        delta(in.delta, c.dtypes.y),
        delta_bias(in.delta_bias, DType::kF32),
        weight(in.weight, DType::kF32),
        bias(in.bias, DType::kF32),
        y((in.x.size() + static_cast<size_t>(c.hidden_size)) * dtype_size(c.dtypes.y)) {}
  LayerNormArgs args(const Case& c) const {
    LayerNormArgs a;
    a.num_tokens = c.num_tokens;
    a.hidden_size = c.hidden_size;
    a.x = x.data();
    a.x_dtype = c.dtypes.x;
    a.delta = c.with_delta ? delta.data() : nullptr;
    a.delta_bias = c.with_delta_bias ? delta_bias.as<float>() : nullptr;
    a.weight = weight.as<float>();
    a.bias = bias.as<float>();
    a.y = y.data();
    a.y_dtype = c.dtypes.y;
    return a;
  }
};

/// x + (delta + delta_bias) in float32, rounded to x's dtype: exact, so compared bit by bit.
std::vector<float> expected_x(const Case& c, const Inputs& in) {
  if (!c.with_delta) return in.x;
  std::vector<float> x = in.x;
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t k = i % static_cast<size_t>(c.hidden_size);
    x[i] += in.delta[i] + (c.with_delta_bias ? in.delta_bias[k] : 0.0f);
  }
  return rounded(x, c.dtypes.x);
}

/// Compares y with the double-precision result. A float32 sum of h values in blocks of at most 64
/// is off by some units in the last place of its largest term: 16 are allowed, on the normalised
/// value and on the mean (which shows divided by the standard deviation); then y's rounding.
void expect_normalised(const std::vector<float>& x, const Inputs& in, const std::vector<float>& y,
                       const Case& c) {
  const int64_t h = c.hidden_size;
  const double kUnits = 16 * std::ldexp(1.0, -24);
  double worst = 0;
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    const float* row = x.data() + t * h;
    double mean = 0, variance = 0, largest = 0;
    for (int64_t k = 0; k < h; ++k) mean += row[k];
    mean /= static_cast<double>(h);
    for (int64_t k = 0; k < h; ++k) {
      variance += (row[k] - mean) * (row[k] - mean);
      largest = std::max(largest, std::abs(static_cast<double>(row[k])));
    }
    const double scale = 1.0 / std::sqrt(variance / static_cast<double>(h) + 1e-5);
    for (int64_t k = 0; k < h; ++k) {
      const double normal = (row[k] - mean) * scale;
      const double want = normal * in.weight[k] + in.bias[k];
      const double got = y[t * h + k];
      const double allowed =
          kUnits * (std::abs(in.weight[k]) * (std::abs(normal) + largest * scale) +
                    std::abs(in.bias[k])) +
          1.01 * unit_roundoff(c.dtypes.y) * std::abs(want) + std::ldexp(1.0, -24);
      const double error = std::abs(got - want);
      worst = std::max(worst, std::isnan(error) ? 1e30 : error / allowed);
      ASSERT_LE(error, allowed) << c.name() << ": y[" << t << ", " << k << "] = " << got
                                << ", wanted " << want;
    }
  }
  EXPECT_LE(worst, 1.0);
}

void check(const Case& c, const LaunchContext& context) {
  const Inputs in = make_inputs(c);
  const DeviceCase run(c, in);
  launch_layer_norm(run.args(c), context);
  std::vector<float> y = run.y.floats(c.dtypes.y);
  for (int64_t k = 0; k < c.hidden_size; ++k) {
    ASSERT_TRUE(std::isnan(y[in.x.size() + k])) << c.name() << ": wrote past the last row";
  }
  y.resize(in.x.size());
  const std::vector<float> x = expected_x(c, in);
  ASSERT_EQ(run.x.floats(c.dtypes.x), x) << c.name();
  expect_normalised(x, in, y, c);
}

constexpr int64_t kShapes[][2] = {
    {1, 1},     {3, 7},     {5, 33},    {2, 1023},  {7, 768},    {4, 1024},  {9, 1600},  {33, 4096},
    {3, 4100},  {3, 5000},  {2, 5001},  {2, 8192},  {3, 16384},  {2, 16388}, {2, 20000}, {2, 20001},
    {3, 12288}, {2, 32768}, {1, 40000}, {3001, 64}, {2049, 100}, {1500, 257}};

TEST(CudaLayerNorm, MatchesDoublePrecision) {
  const LaunchContext context = device_context();
  for (const Dtypes dtypes : kAllDtypes) {
    for (const auto& shape : kShapes) {
      for (int with = 0; with < 3; ++with) {
        check({shape[0], shape[1], dtypes, with > 0, with > 1}, context);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaLayerNorm, LargeMeanSmallSpread) {
  const LaunchContext context = device_context();
  for (const int64_t hidden_size : {33, 1600, 4096, 5001, 16384, 20000}) {
    for (const Dtypes dtypes : kAllDtypes) {
      // What x's dtype still resolves at 100: a step is 2^-17 in float32, 1/16 in f16, 1/2 in bf16.
      const float spread = dtypes.x == DType::kF32 ? 0.01f : dtypes.x == DType::kF16 ? 0.5f : 4.0f;
      check({5, hidden_size, dtypes, false, false, 100.0f, spread}, context);
      check({5, hidden_size, dtypes, true, true, -100.0f, spread}, context);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaLayerNorm, ConstantRowGivesTheBias) {
  const LaunchContext context = device_context();
  for (const int64_t hidden_size : {1, 7, 1600, 4096, 20000}) {
    Case c{3, hidden_size, {DType::kF32, DType::kF32}};
    Inputs in = make_inputs(c);
    for (float& v : in.x) v = 0.5f;  // sums of halves are exact
    const DeviceCase run(c, in);
    launch_layer_norm(run.args(c), context);
    const std::vector<float> y = run.y.floats(DType::kF32);
    for (size_t i = 0; i < in.x.size(); ++i) {
      ASSERT_EQ(y[i], in.bias[i % static_cast<size_t>(hidden_size)]) << hidden_size << " " << i;
    }
  }
}

TEST(CudaLayerNorm, InPlace) {
  const LaunchContext context = device_context();
  for (const Dtypes dtypes : {kAllDtypes[2], kAllDtypes[3], kAllDtypes[4]}) {
    for (const int64_t hidden_size : {7, 1600, 4096, 16384, 20000}) {
      const Case c{300, hidden_size, dtypes};
      const Inputs in = make_inputs(c);
      const DeviceCase apart(c, in), in_place(c, in);
      launch_layer_norm(apart.args(c), context);
      LayerNormArgs args = in_place.args(c);
      args.y = args.x;
      launch_layer_norm(args, context);
      std::vector<std::byte> want = apart.y.host<std::byte>();
      want.resize(in_place.x.num_bytes());
      ASSERT_EQ(in_place.x.host<std::byte>(), want) << c.name();
    }
  }
}

/// A row's bits do not depend on the rows beside it: a batch that takes the kernel for many rows,
/// single rows, and batches cut anywhere.
TEST(CudaLayerNorm, SameBitsAloneAndInBatches) {
  const LaunchContext context = device_context();
  for (const Dtypes dtypes : kAllDtypes) {
    for (const int64_t hidden_size : {33, 768, 1023, 1600, 4096, 5001, 16384, 20000}) {
      const Case c{hidden_size > 1024 ? 300 : 1303, hidden_size, dtypes, true, true};
      const Inputs in = make_inputs(c);
      const DeviceCase whole(c, in), parts(c, in);
      launch_layer_norm(whole.args(c), context);
      int64_t first = 0;
      const int64_t num_rest = c.num_tokens - 108;
      for (const int64_t rows : {int64_t{1}, int64_t{1}, int64_t{2}, int64_t{7}, int64_t{32},
                                 int64_t{64}, int64_t{1}, num_rest}) {
        LayerNormArgs args = parts.args(c);
        const int64_t offset = first * hidden_size;
        args.num_tokens = rows;
        args.x = parts.x.as<std::byte>() + offset * dtype_size(dtypes.x);
        args.delta = parts.delta.as<std::byte>() + offset * dtype_size(dtypes.y);
        args.y = parts.y.as<std::byte>() + offset * dtype_size(dtypes.y);
        launch_layer_norm(args, context);
        first += rows;
      }
      ASSERT_EQ(first, c.num_tokens);
      ASSERT_EQ(whole.y.host<std::byte>(), parts.y.host<std::byte>()) << c.name();
      ASSERT_EQ(whole.x.host<std::byte>(), parts.x.host<std::byte>()) << c.name();
    }
  }
}

TEST(CudaLayerNorm, NanStaysInItsRow) {
  const LaunchContext context = device_context();
  for (const Dtypes dtypes : kAllDtypes) {
    for (const int64_t hidden_size : {7, 1600, 4096, 16384, 20000}) {
      const Case c{300, hidden_size, dtypes};
      Inputs in = make_inputs(c);
      const DeviceCase clean(c, in);
      launch_layer_norm(clean.args(c), context);
      in.x[static_cast<size_t>(3 * hidden_size + hidden_size / 2)] =
          std::numeric_limits<float>::quiet_NaN();
      in.x[static_cast<size_t>(270 * hidden_size)] = std::numeric_limits<float>::infinity();
      const DeviceCase dirty(c, in);
      launch_layer_norm(dirty.args(c), context);
      const std::vector<float> want = clean.y.floats(dtypes.y);
      const std::vector<float> got = dirty.y.floats(dtypes.y);
      for (int64_t t = 0; t < c.num_tokens; ++t) {
        for (int64_t k = 0; k < hidden_size; ++k) {
          const float value = got[static_cast<size_t>(t * hidden_size + k)];
          if (t == 3 || t == 270) {
            ASSERT_TRUE(std::isnan(value)) << c.name() << " " << t << " " << k;
          } else {
            ASSERT_EQ(value, want[static_cast<size_t>(t * hidden_size + k)])
                << c.name() << " " << t;
          }
        }
      }
    }
  }
}

/// Pointers that 16-byte accesses cannot use: x one element into its allocation.
TEST(CudaLayerNorm, UnalignedPointers) {
  const LaunchContext context = device_context();
  for (const Dtypes dtypes : kAllDtypes) {
    const Case c{5, 1600, dtypes};
    const Inputs in = make_inputs(c);
    std::vector<float> moved = in.x;
    moved.insert(moved.begin(), 0.0f);
    const DeviceCase run(c, in);
    const DeviceArray x(moved, dtypes.x);
    LayerNormArgs args = run.args(c);
    args.x = x.as<std::byte>() + dtype_size(dtypes.x);
    launch_layer_norm(args, context);
    std::vector<float> y = run.y.floats(dtypes.y);
    y.resize(in.x.size());
    expect_normalised(in.x, in, y, c);
  }
}

/// A chain in a CUDA graph with programmatic launches: each kernel reads what the one before wrote.
TEST(CudaLayerNorm, ChainInAGraph) {
  const LaunchContext context = device_context();
  const Case c{17, 4096, {DType::kF32, DType::kF16}, true, true};
  const Inputs in = make_inputs(c);
  const DeviceCase eager(c, in), graphed(c, in);
  constexpr int kSteps = 20;
  // y and delta change places from step to step.
  const auto step = [&](const DeviceCase& run, int i, const LaunchContext& with) {
    LayerNormArgs args = run.args(c);
    if (i % 2 == 1) {
      args.delta = run.y.data();
      args.y = run.delta.data();
    }
    launch_layer_norm(args, with);
  };
  LaunchContext plain = context;
  plain.use_pdl = false;
  for (int i = 0; i < kSteps; ++i) {
    step(eager, i, plain);
    CARAVAN_CUDA_CHECK(cudaStreamSynchronize(plain.stream));
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kSteps; ++i) step(graphed, i, context);
  CARAVAN_CUDA_CHECK(cudaStreamEndCapture(context.stream, &graph));
  CARAVAN_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  CARAVAN_CUDA_CHECK(cudaGraphLaunch(executable, context.stream));
  EXPECT_EQ(eager.x.host<std::byte>(), graphed.x.host<std::byte>());
  EXPECT_EQ(eager.y.host<std::byte>(), graphed.y.host<std::byte>());
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST(CudaLayerNorm, Steps) {
  const LaunchContext context = device_context();
  for (const Dtypes dtypes : {kAllDtypes[3], kAllDtypes[4]}) {
    for (const LayerNormStep step : {LayerNormStep::kScalar, LayerNormStep::kVectorized,
                                     LayerNormStep::kRegisters, LayerNormStep::kFinal}) {
      for (const int64_t hidden_size : {8, 768, 1600, 4096, 16384}) {
        const Case c{33, hidden_size, dtypes};
        const Inputs in = make_inputs(c);
        const DeviceCase run(c, in);
        launch_layer_norm_step(step, run.args(c), context);
        std::vector<float> y = run.y.floats(dtypes.y);
        y.resize(in.x.size());
        SCOPED_TRACE(layer_norm_step_name(step));
        expect_normalised(in.x, in, y, c);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaLayerNorm, RefusesWhatItCannotDo) {
  const LaunchContext context = device_context();
  const Case c{2, 64};
  const DeviceCase run(c, make_inputs(c));
  LayerNormArgs args = run.args(c);
  args.x_dtype = DType::kF16;
  args.y_dtype = DType::kF32;
  EXPECT_THROW(launch_layer_norm(args, context), Error);
  args = run.args(c);
  args.hidden_size = 0;
  EXPECT_THROW(launch_layer_norm(args, context), Error);
  args = run.args(c);
  args.num_tokens = 0;
  launch_layer_norm(args, context);  // nothing to do
}

}  // namespace
}  // namespace caravan::cuda
