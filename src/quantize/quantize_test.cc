#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>

#include "core/error.h"
#include "quantize/abs_histogram.h"
#include "quantize/calibration_text.h"
#include "quantize/kv_calibrator.h"
#include "quantize/kv_clipping.h"

namespace caravan {
namespace {

std::vector<float> normal_values(size_t count, float deviation) {
  std::mt19937 random(3);
  std::normal_distribution<float> draw(0, deviation);
  std::vector<float> values(count);
  for (float& v : values) v = draw(random);
  return values;
}

TEST(AbsHistogram, CountsEveryValueInItsBin) {
  const std::vector<float> values = {0.0f, -0.0f, 1.0f, -1.0f, 3.999f, 4.0f, 1e-30f};
  AbsHistogram histogram;
  histogram.add(values.data(), static_cast<int64_t>(values.size()));
  EXPECT_EQ(histogram.count(), 7u);
  EXPECT_EQ(histogram.max(), 4.0f);
  EXPECT_EQ(histogram.bin_width(), 8.0f / 4096);  // 4 doubles the range to 8
  EXPECT_EQ(histogram.bins()[0], 3u);
  EXPECT_EQ(histogram.bins()[512], 2u);
  EXPECT_EQ(histogram.bins()[2047], 1u);
  EXPECT_EQ(histogram.bins()[2048], 1u);
}

// The counts must not depend on the order in which values come, nor on how they are cut.
TEST(AbsHistogram, DoublingGivesTheBinsOfTheFinalRange) {
  std::vector<float> values = normal_values(20000, 2.0f);
  AbsHistogram rising, falling, pieces;
  std::sort(values.begin(), values.end(),
            [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  for (const float& v : values) rising.add(&v, 1);
  std::reverse(values.begin(), values.end());
  falling.add(values.data(), static_cast<int64_t>(values.size()));
  for (int64_t begin = 0; begin < 20000; begin += 160) {
    for (int64_t d = 0; d < 16; ++d) pieces.add(values.data() + begin + d, 10, 16);
  }
  EXPECT_EQ(rising.bins(), falling.bins());
  EXPECT_EQ(rising.bins(), pieces.bins());
  EXPECT_EQ(rising.max(), falling.max());
  EXPECT_GE(rising.max(), rising.bin_width() * AbsHistogram::kNumBins / 2);
}

TEST(AbsHistogram, RefusesWhatIsNotFinite) {
  for (const float bad : {INFINITY, -INFINITY, std::numeric_limits<float>::quiet_NaN()}) {
    AbsHistogram histogram;
    EXPECT_THROW(histogram.add(&bad, 1), Error) << bad;
    EXPECT_EQ(histogram.count(), 0u);
  }
}

TEST(KvClipping, AbsMaxIsExactAndPercentileCutsTheTail) {
  std::vector<float> values(10000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i + 1) / 10000;
  values[17] = -50.0f;  // the outlier
  AbsHistogram histogram;
  histogram.add(values.data(), 10000);
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    EXPECT_EQ(choose_clip(histogram, KvCalibMethod::kAbsMax, 99.99, dtype), 50.0f);
    EXPECT_EQ(choose_clip(histogram, KvCalibMethod::kPercentile, 100, dtype), 50.0f);
    EXPECT_NEAR(choose_clip(histogram, KvCalibMethod::kPercentile, 99.99, dtype), 1.0f,
                2 * histogram.bin_width());
    EXPECT_NEAR(choose_clip(histogram, KvCalibMethod::kPercentile, 50, dtype), 0.5f,
                2 * histogram.bin_width());
  }
  EXPECT_THROW(choose_clip(histogram, KvCalibMethod::kPercentile, 0, DType::kI8), Error);
  EXPECT_THROW(choose_clip(histogram, KvCalibMethod::kPercentile, 100.5, DType::kI8), Error);
}

// Banner et al. 2019, table 1 of "ACIQ": the best clipping of a normal distribution at 8 bits lies
// near 3.9 deviations (optimal alpha = 3.92 sigma); of a million values the largest is near 4.9.
TEST(KvClipping, MseOfANormalDistributionIsTheKnownOne) {
  const std::vector<float> values = normal_values(1000000, 0.7f);
  AbsHistogram histogram;
  histogram.add(values.data(), 1000000);
  const float clip = choose_clip(histogram, KvCalibMethod::kMse, 0, DType::kI8);
  EXPECT_NEAR(clip / 0.7f, 3.92f, 0.15f);
  EXPECT_GT(histogram.max() / 0.7f, 4.5f);
}

// The error that the search minimizes is that of the elements a cache would hold.
TEST(KvClipping, ErrorIsThatOfTheElements) {
  const std::vector<float> values = normal_values(200000, 1.0f);
  AbsHistogram histogram;
  histogram.add(values.data(), 200000);
  for (const float clip : {2.0f, 3.5f, 5.0f}) {
    for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
      const float scale = clip / (dtype == DType::kI8 ? 127.0f : 448.0f);
      double want = 0;
      for (const float v : values) {
        const float scaled = v * (1.0f / scale);
        uint8_t element;
        convert_elements(&scaled, DType::kF32, &element, dtype, 1);
        const double difference = v - load_as_f32(&element, dtype, 0) * scale;
        want += difference * difference;
      }
      want /= 200000;
      // Bins are 1/512 wide, an int8 step at clip 2 is 1/64.
      EXPECT_NEAR(clipping_error(histogram, clip, dtype), want, 0.02 * want)
          << dtype_name(dtype) << " " << clip;
    }
  }
}

TEST(KvClipping, ZerosHaveAUsableScale) {
  const std::vector<float> zeros(100);
  AbsHistogram histogram;
  histogram.add(zeros.data(), 100);
  for (const KvCalibMethod method :
       {KvCalibMethod::kAbsMax, KvCalibMethod::kPercentile, KvCalibMethod::kMse}) {
    const float scale = choose_clip(histogram, method, 99.99, DType::kI8) / 127.0f;
    EXPECT_GT(scale, 0);
    EXPECT_TRUE(std::isfinite(1.0f / scale));
  }
}

TEST(KvLayerStatistics, ScalesOfHeadsAndOfTheLayer) {
  // Two tokens, three heads of two: q is the largest of all, as it counts for layer-2023 alone.
  const std::vector<float> values = {90,           0, 0, 0,  0, 0,   /* k */ 1, -2, 0, 4, 5, 6,
                                     /* v */ 0.5f, 0, 8, 0,  0, -16, 0,         0,  0, 0, 0, 0,
                                     /* k */ 0,    1, 3, -8, 0, -7,  /* v */ 0, 1,  0, 2, 0, 0};
  Tensor qkv{const_cast<float*>(values.data()), DType::kF32, Shape{2, 18}};
  const auto calibrate = [&](const KvCalibrationOptions& options) {
    KvLayerStatistics statistics(3, 2, options);
    statistics.add(qkv);
    KvCalibration calibration;
    statistics.append_to(calibration);
    return calibration;
  };
  const KvCalibration head = calibrate({.dtype = DType::kI8, .is_centered = false});
  EXPECT_EQ(head.scales.k, (std::vector<float>{2 / 127.0f, 8 / 127.0f, 7 / 127.0f}));
  EXPECT_EQ(head.scales.v, (std::vector<float>{1 / 127.0f, 8 / 127.0f, 16 / 127.0f}));
  EXPECT_TRUE(head.key_offsets.empty());
  const KvCalibration layer =
      calibrate({.dtype = DType::kF8E4M3, .granularity = KvScaleGranularity::kLayer2023});
  EXPECT_EQ(layer.scales.k, std::vector<float>(3, 90 / 448.0f));
  EXPECT_EQ(layer.scales.v, layer.scales.k);
  EXPECT_TRUE(layer.key_offsets.empty());
  const KvCalibration all =
      calibrate({.dtype = DType::kI8, .method = KvCalibMethod::kPercentile, .percentile = 100});
  EXPECT_EQ(all.scales.k, head.scales.k);
  EXPECT_EQ(all.scales.v, head.scales.v);
}

TEST(KvLayerStatistics, WhatIsNotFiniteIsRefused) {
  for (const float bad : {INFINITY, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> values(6, 1.0f);
    values[4] = bad;
    KvLayerStatistics statistics(1, 2, {});
    EXPECT_THROW(statistics.add({values.data(), DType::kF32, Shape{1, 6}}), Error);
  }
}

// Keys in [99, 101] and [50, 53], values in [-3, 1] and [0, 4]: each channel loses its middle.
TEST(KvLayerStatistics, CenteringTakesTheMiddleOfEveryChannel) {
  std::vector<float> values = {0, 0, 101, 50, -3, 4, 0, 0, 99, 53, 1, 0};
  KvLayerStatistics statistics(1, 2, {.dtype = DType::kI8});
  statistics.add({values.data(), DType::kF32, Shape{1, 6}});
  statistics.add({values.data() + 6, DType::kF32, Shape{1, 6}});
  KvCalibration calibration;
  calibration.key_offsets = {0, 0};  // of the layer before
  calibration.value_offsets = {0, 0};
  statistics.append_to(calibration);
  EXPECT_EQ(calibration.key_offsets, (std::vector<float>{0, 0, 100, 51.5f}));
  EXPECT_EQ(calibration.value_offsets, (std::vector<float>{0, 0, -1, 2}));
  EXPECT_EQ(calibration.scales.k, std::vector<float>{1.5f / 127.0f});
  EXPECT_EQ(calibration.scales.v, std::vector<float>{2 / 127.0f});
  std::vector<float> bias = {1, 2, 3, 4, 5, 6};
  center_qkv_bias(calibration, 1, bias);
  EXPECT_EQ(bias, (std::vector<float>{1, 2, -97, -47.5f, 6, 4}));
  // c_proj gets the values' offsets back through its weight, [in, out].
  const std::vector<float> weight = {1, 10, 100, 1000};
  bias = {7, 8};
  center_proj_bias(calibration, 1, weight.data(), DType::kF32, bias);
  EXPECT_EQ(bias, (std::vector<float>{7 - 1 + 200, 8 - 10 + 2000}));
}

class CalibrationTextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::temp_directory_path() /
                 ("caravan_calibration_" +
                  std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string write(const std::string& text) const {
    const std::string path = directory_ / "text";
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  CalibrationText read(const std::string& text, int64_t num_samples, int64_t max_len) const {
    return read_calibration_text(write(text), tokenizer_, tokenizer_.vocab_size(), num_samples,
                                 max_len);
  }

  std::filesystem::path directory_;
  Tokenizer tokenizer_ = Tokenizer::from_directory(CARAVAN_SOURCE_DIR "/models/camel-nano");
};

TEST_F(CalibrationTextTest, JsonLinesAreCutToMaxLen) {
  const std::string text =
      "{\"text\": \"one two three four five six\"}\n\n{\"text\":\"\"}\r\n"
      "{\"id\":1,\"text\":\"seven\"}\n{\"text\":\"eight\"}";
  const CalibrationText all = read(text, 10, 3);
  ASSERT_EQ(all.samples.size(), 3u);
  EXPECT_EQ(tokenizer_.decode(all.samples[0]), "one two three");
  EXPECT_EQ(tokenizer_.decode(all.samples[1]), "seven");
  EXPECT_EQ(all.num_tokens(),
            static_cast<int64_t>(3 + all.samples[1].size() + all.samples[2].size()));
  const CalibrationText two = read(text, 2, 3);
  EXPECT_EQ(two.samples.size(), 2u);
  EXPECT_NE(two.xxh3, all.xxh3);
  EXPECT_EQ(read(text, 2, 3).xxh3, two.xxh3);
}

TEST_F(CalibrationTextTest, PlainTextIsCutIntoPieces) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += " caravan of the desert.\n";
  const CalibrationText pieces = read(text, 7, 64);
  ASSERT_EQ(pieces.samples.size(), 7u);
  std::string joined;
  for (const auto& sample : pieces.samples) {
    EXPECT_EQ(sample.size(), 64u);
    joined += tokenizer_.decode(sample);
  }
  EXPECT_EQ(joined, text.substr(0, joined.size()));
}

TEST_F(CalibrationTextTest, WhatIsWrongIsNamed) {
  const auto message = [&](const std::string& text) {
    try {
      read(text, 4, 8);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message("").find("no text in it"), std::string::npos);
  EXPECT_NE(message("{\"text\":\"\"}").find("no text in it"), std::string::npos);
  EXPECT_NE(message("{\"text\":\"a\"}\n{\"txt\":\"b\"}").find("line 2: expected an object"),
            std::string::npos);
  EXPECT_NE(message("{\"text\":3}").find("line 1"), std::string::npos);
  EXPECT_NE(message("{\"text\":").find("line 1"), std::string::npos);
  EXPECT_THROW(read_calibration_text(write("some text"), tokenizer_, 5, 4, 8), Error);
  EXPECT_THROW(read_calibration_text("/nonexistent/text", tokenizer_, 50258, 4, 8), Error);
}

}  // namespace
}  // namespace caravan
