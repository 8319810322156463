#include "kernels/cuda/embedding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/linear_layout.h"
#include "tests/cuda/device_array.h"

namespace caravan::cuda {
namespace {

constexpr DType kFloatDtypes[] = {DType::kF32, DType::kF16, DType::kBF16};

/// `values` [out, in] in the layout that the CUDA kernels read for `dtype`.
std::vector<std::byte> packed(const std::vector<float>& values, DType dtype, int64_t in_features,
                              int64_t out_features) {
  std::vector<std::byte> stored(values.size() * dtype_size(dtype));
  convert_elements(values.data(), DType::kF32, stored.data(), dtype, values.size());
  if (dtype == DType::kF32) return stored;
  std::vector<std::byte> out(
      static_cast<size_t>(linear_num_elements(LinearLayout::kCore8x8, in_features, out_features)) *
      dtype_size(dtype));
  pack_linear(stored.data(), LinearLayout::kOutIn, dtype, in_features, out_features,
              LinearLayout::kCore8x8, out.data());
  return out;
}

struct EmbeddingCase {
  int64_t num_tokens;
  int64_t hidden_size;
  int64_t vocab_size;
};

TEST(CudaEmbedding, AddsTokenAndPosition) {
  const LaunchContext context = device_context();
  constexpr int64_t kNumPositions = 61;
  for (const DType dtype : kFloatDtypes) {
    for (const auto& [num_tokens, hidden_size, vocab_size] :
         {EmbeddingCase{1, 1, 3}, EmbeddingCase{5, 7, 9}, EmbeddingCase{3, 33, 50},
          EmbeddingCase{9, 768, 131}, EmbeddingCase{4, 1023, 7}, EmbeddingCase{67, 1600, 257},
          EmbeddingCase{700, 4096, 300}}) {
      const auto n = static_cast<size_t>(num_tokens), h = static_cast<size_t>(hidden_size);
      const std::vector<float> wte =
          rounded(random_floats(static_cast<size_t>(vocab_size) * h, 1), dtype);
      const std::vector<float> wpe = rounded(random_floats(kNumPositions * h, 2), dtype);
      std::vector<int32_t> ids(n), wanted_ids(n), positions(n), sampled(n);
      for (size_t t = 0; t < n; ++t) {
        sampled[t] = static_cast<int32_t>((t * 13 + 2) % static_cast<size_t>(vocab_size));
      }
      for (size_t t = 0; t < n; ++t) {
        ids[t] = static_cast<int32_t>((t * 31 + 5) % static_cast<size_t>(vocab_size));
        wanted_ids[t] = ids[t];
        if (t % 3 == 1) {
          const size_t row = n - 1 - t;  // another row of the step before
          ids[t] = -1 - static_cast<int32_t>(row);
          wanted_ids[t] = sampled[row];
        }
        positions[t] = static_cast<int32_t>((t * 7) % kNumPositions);
      }
      const DeviceArray d_ids(ids), d_positions(positions), d_sampled(sampled);
      const DeviceArray d_wte(packed(wte, dtype, hidden_size, vocab_size)), d_wpe(wpe, dtype);
      const DeviceArray out((n + 1) * h * sizeof(float));
      EmbeddingArgs args;
      args.num_tokens = num_tokens;
      args.hidden_size = hidden_size;
      args.vocab_size = vocab_size;
      args.token_ids = d_ids.as<int32_t>();
      args.sampled = d_sampled.as<int32_t>();
      args.positions = d_positions.as<int32_t>();
      args.wte = d_wte.data();
      args.wpe = d_wpe.data();
      args.dtype = dtype;
      args.out = out.as<float>();
      launch_embedding(args, context);
      const std::vector<float> got = out.host<float>();
      for (size_t t = 0; t < n; ++t) {
        for (size_t k = 0; k < h; ++k) {
          const float want = wte[static_cast<size_t>(wanted_ids[t]) * h + k] +
                             wpe[static_cast<size_t>(positions[t]) * h + k];
          ASSERT_EQ(got[t * h + k], want)
              << dtype_name(dtype) << " " << hidden_size << " token " << t << ", " << k;
        }
      }
      for (size_t k = 0; k < h; ++k) ASSERT_TRUE(std::isnan(got[n * h + k]));
    }
  }
}

TEST(CudaEmbedding, NoTokenGivesNan) {
  const LaunchContext context = device_context();
  constexpr int64_t kHidden = 768, kVocab = 11;
  const std::vector<float> wte = random_floats(kVocab * kHidden, 1),
                           wpe = random_floats(kHidden, 2);
  for (const DType dtype : kFloatDtypes) {
    const DeviceArray d_wte(packed(wte, dtype, kHidden, kVocab)), d_wpe(wpe, dtype);
    const DeviceArray ids(std::vector<int32_t>{kVocab, -1, 3});
    const DeviceArray sampled(std::vector<int32_t>{-1}), positions(std::vector<int32_t>{0, 0, 0});
    const DeviceArray out(3 * kHidden * sizeof(float));
    EmbeddingArgs args;
    args.num_tokens = 3;
    args.hidden_size = kHidden;
    args.vocab_size = kVocab;
    args.token_ids = ids.as<int32_t>();
    args.sampled = sampled.as<int32_t>();
    args.positions = positions.as<int32_t>();
    args.wte = d_wte.data();
    args.wpe = d_wpe.data();
    args.dtype = dtype;
    args.out = out.as<float>();
    launch_embedding(args, context);
    const std::vector<float> got = out.host<float>();
    for (int64_t k = 0; k < kHidden; ++k) {
      ASSERT_TRUE(std::isnan(got[static_cast<size_t>(k)]));
      ASSERT_TRUE(std::isnan(got[static_cast<size_t>(kHidden + k)]));
      ASSERT_FALSE(std::isnan(got[static_cast<size_t>(2 * kHidden + k)]));
    }
  }
}

TEST(CudaGatherRows, CopiesRows) {
  const LaunchContext context = device_context();
  for (const int64_t row_bytes : {1, 6, 12, 16, 1600, 8192, 8194, 40000}) {
    std::vector<uint8_t> x(static_cast<size_t>(37 * row_bytes));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(i * 131 + i / 255);
    const std::vector<int32_t> rows{36, 0, 5, 5, 17};
    const DeviceArray d_x(x), d_rows(rows);
    const DeviceArray out((rows.size() + 1) * static_cast<size_t>(row_bytes));
    GatherRowsArgs args;
    args.num_rows = static_cast<int64_t>(rows.size());
    args.row_bytes = row_bytes;
    args.rows = d_rows.as<int32_t>();
    args.x = d_x.data();
    args.out = out.data();
    launch_gather_rows(args, context);
    std::vector<uint8_t> want;
    for (const int32_t row : rows) {
      want.insert(want.end(), x.begin() + row * row_bytes, x.begin() + (row + 1) * row_bytes);
    }
    want.insert(want.end(), static_cast<size_t>(row_bytes), 0xFF);
    ASSERT_EQ(out.host<uint8_t>(), want) << row_bytes;
  }
}

/// Bit for bit what the host packs, for every pair of dtypes and both source layouts.
TEST(CudaPackWeight, MatchesTheHost) {
  const LaunchContext context = device_context();
  const int64_t kShapes[][2] = {{1, 1},    {7, 33},    {64, 128},  {65, 129},
                                {72, 136}, {100, 260}, {768, 768}, {1023, 517}};
  for (const DType src_dtype : kFloatDtypes) {
    for (const DType dst_dtype : kFloatDtypes) {
      for (const auto& [in_features, out_features] : kShapes) {
        for (const bool is_in_out : {false, true}) {
          const auto count = static_cast<size_t>(in_features * out_features);
          std::vector<float> values = rounded(random_floats(count, 7, 3.0f), src_dtype);
          values[count / 2] = std::numeric_limits<float>::infinity();
          values[0] = 1e-6f;  // subnormal in float16
          const DeviceArray src(values, src_dtype);
          std::vector<std::byte> exact(count * dtype_size(src_dtype));
          convert_elements(values.data(), DType::kF32, exact.data(), src_dtype, count);
          std::vector<std::byte> converted(count * dtype_size(dst_dtype));
          convert_elements(exact.data(), src_dtype, converted.data(), dst_dtype, count);
          const LinearLayout layout =
              dst_dtype == DType::kF32 ? LinearLayout::kOutIn : LinearLayout::kCore8x8;
          std::vector<std::byte> want(
              static_cast<size_t>(linear_num_elements(layout, in_features, out_features)) *
              dtype_size(dst_dtype));
          pack_linear(converted.data(), is_in_out ? LinearLayout::kInOut : LinearLayout::kOutIn,
                      dst_dtype, in_features, out_features, layout, want.data());
          const DeviceArray dst(want.size() + 64);
          PackWeightArgs args;
          args.in_features = in_features;
          args.out_features = out_features;
          args.is_in_out = is_in_out;
          args.src = src.data();
          args.src_dtype = src_dtype;
          args.dst = dst.data();
          args.dst_dtype = dst_dtype;
          launch_pack_weight(args, context);
          want.insert(want.end(), 64, std::byte{0xFF});
          ASSERT_EQ(dst.host<std::byte>(), want)
              << dtype_name(src_dtype) << " -> " << dtype_name(dst_dtype) << " in " << in_features
              << " out " << out_features << (is_in_out ? " in_out" : " out_in");
        }
      }
    }
  }
}

TEST(CudaFillRandom, IsUniformAndRepeatable) {
  const LaunchContext context = device_context();
  constexpr int64_t kCount = 3'000'001;
  constexpr float kMean = 0.25f, kScale = 2.0f;
  const DeviceArray exact(kCount * sizeof(float));
  launch_fill_random(exact.data(), DType::kF32, kCount, kMean, kScale, 42, context);
  const std::vector<float> values = exact.host<float>();
  double sum = 0, squares = 0, product = 0;
  float lowest = values[0], highest = values[0];
  std::vector<int> histogram(64);
  for (int64_t i = 0; i < kCount; ++i) {
    const double u = (values[static_cast<size_t>(i)] - kMean) / kScale;
    sum += u;
    squares += u * u;
    if (i > 0) product += u * (values[static_cast<size_t>(i - 1)] - kMean) / kScale;
    lowest = std::min(lowest, values[static_cast<size_t>(i)]);
    highest = std::max(highest, values[static_cast<size_t>(i)]);
    ++histogram[std::clamp(static_cast<size_t>((u + 1) * 32), size_t{0}, size_t{63})];
  }
  // Six standard deviations of the mean, the variance (1/3), the lag-1 product and a bin's count.
  const double n = kCount;
  EXPECT_NEAR(sum / n, 0.0, 6 * std::sqrt(1 / (3 * n)));
  EXPECT_NEAR(squares / n, 1.0 / 3, 6 * std::sqrt(4 / (45 * n)));
  EXPECT_NEAR(product / n, 0.0, 6 / (3 * std::sqrt(n)));
  EXPECT_GE(lowest, kMean - kScale);
  EXPECT_LE(highest, kMean + kScale);
  EXPECT_LT(lowest, kMean - 0.999f * kScale);
  EXPECT_GT(highest, kMean + 0.999f * kScale);
  for (const int count : histogram) EXPECT_NEAR(count, n / 64, 6 * std::sqrt(n / 64));

  // A function of seed and index: a shorter run is a prefix, another dtype the same rounded.
  const DeviceArray shorter(1001 * sizeof(float));
  launch_fill_random(shorter.data(), DType::kF32, 1001, kMean, kScale, 42, context);
  const std::vector<float> prefix = shorter.host<float>();
  EXPECT_TRUE(std::equal(prefix.begin(), prefix.end(), values.begin()));
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const DeviceArray narrow(kCount * 2 + 2);
    launch_fill_random(narrow.data(), dtype, kCount, kMean, kScale, 42, context);
    std::vector<float> got = narrow.floats(dtype);
    EXPECT_TRUE(std::isnan(got.back())) << "wrote past the end";
    got.pop_back();
    EXPECT_EQ(got, rounded(values, dtype)) << dtype_name(dtype);
  }
  launch_fill_random(shorter.data(), DType::kF32, 1001, kMean, kScale, 43, context);
  EXPECT_NE(shorter.host<float>(), prefix);
}

TEST(CudaPackWeight, RefusesWhatItCannotDo) {
  const LaunchContext context = device_context();
  const DeviceArray data(1024);
  PackWeightArgs args;
  args.in_features = 4;
  args.out_features = 4;
  args.src = data.data();
  args.dst = data.data();
  args.src_dtype = DType::kI8;
  EXPECT_THROW(launch_pack_weight(args, context), Error);
  EXPECT_THROW(launch_fill_random(data.data(), DType::kI32, 4, 0, 1, 0, context), Error);
}

}  // namespace
}  // namespace caravan::cuda
