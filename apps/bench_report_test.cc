#include "apps/bench_report.h"

#include <gtest/gtest.h>

#include <cmath>

#include "convert/synth.h"

namespace caravan {
namespace {

const Ceilings kCeilings{.read_gb_per_s = 100,
                         .copy_gb_per_s = 80,
                         .matmul_tflops = 2,
                         .host_to_device_gb_per_s = 50,
                         .note = ""};

BenchSubject subject(const Ceilings& ceilings) {
  return {.model = "tiny",
          .weight_bytes = 10,
          .backend = "cpu (test)",
          .dtype = "float16",
          .kv_cache_dtype = "float16",
          .ceilings = ceilings};
}

BenchRow row(Bound bound, const Work& work, std::vector<double> seconds) {
  return {.test = "t",
          .label = "t 1",
          .fields = {{"tokens", 7}},
          .seconds = std::move(seconds),
          .num_tokens = 4,
          .work = work,
          .bound = bound,
          .floor_seconds = std::nullopt};
}

// By hand for the smallest model: 1 layer, hidden 2, MLP 8, 3 tokens of vocabulary.
TEST(BenchReport, PrefillWork) {
  ModelConfig config;
  config.num_layers = 1;
  config.hidden_size = 2;
  config.ffn_size = 8;
  config.vocab_size = 3;
  // A token: 4 * 2 * 2 + 2 * 2 * 8 = 48 products. Attention over 1 + 2 tokens: 4 * 2 * 3. Head: 6.
  const Work two = prefill_work(config, 1, 2, 1, 1000, 16);
  EXPECT_DOUBLE_EQ(two.flops, 2 * 96 + 24 + 12);
  EXPECT_DOUBLE_EQ(two.bytes, 1000 + 2 * 16);
  const Work batch = prefill_work(config, 3, 2, 4, 1000, 16);
  EXPECT_DOUBLE_EQ(batch.flops, 3 * two.flops);
  EXPECT_DOUBLE_EQ(batch.bytes, 4000 + 6 * 16);
  // The second token decoded does what it did in the prefill.
  const Work decode = decode_work(config, 1, 2, 1000, 16);
  EXPECT_DOUBLE_EQ(decode.flops, 96 + 4 * 2 * 2 + 12);
  EXPECT_DOUBLE_EQ(decode.bytes, 1000 + 2 * 16);
  EXPECT_DOUBLE_EQ(decode_work(config, 5, 2, 1000, 16).bytes, 1000 + 10 * 16);
}

// 5.0 TFLOP for a prompt of 512 tokens, 9.88 GB of matrices in float16.
TEST(BenchReport, CamelPrefill) {
  const ModelConfig camel = *synth_shape("camel-5b");
  EXPECT_NEAR(prefill_work(camel, 1, 512, 1, 0, 0).flops, 5.0e12, 0.05e12);
}

TEST(BenchReport, KernelWork) {
  LinearWeight weight{.data = nullptr,
                      .dtype = DType::kF16,
                      .layout = LinearLayout::kOutIn,
                      .in_features = 10,
                      .out_features = 20,
                      .bias = nullptr};
  const Work linear = linear_work(3, weight, DType::kF16, DType::kF32);
  EXPECT_DOUBLE_EQ(linear.flops, 2 * 3 * 10 * 20);
  EXPECT_DOUBLE_EQ(linear.bytes, 400 + 3 * (10 * 2 + 20 * 4));
  weight.layout = LinearLayout::kPanel32;  // 32 columns are stored
  EXPECT_DOUBLE_EQ(linear_work(3, weight, DType::kF16, DType::kF32).bytes, 640 + 300);
  const float bias = 0;
  weight.bias = &bias;
  EXPECT_DOUBLE_EQ(linear_work(3, weight, DType::kF16, DType::kF32).bytes, 640 + 300 + 80);

  EXPECT_DOUBLE_EQ(layer_norm_work(2, 8, DType::kF16).bytes, 16 * (4 + 4 + 2 + 2));
  const Work decode = attention_decode_work(2, 10, 8, DType::kF16, DType::kF16);
  EXPECT_DOUBLE_EQ(decode.flops, 4 * 2 * 10 * 8);
  EXPECT_DOUBLE_EQ(decode.bytes, 2 * (2 * 10 * 8) * 2 + 2 * 8 * (4 * 2 + 2 * 2));
  // Queries at 1, 2 and 3 tokens of context.
  EXPECT_DOUBLE_EQ(attention_prefill_work(1, 3, 8, DType::kF32, DType::kF32).flops, 4 * 8 * 6);
  EXPECT_DOUBLE_EQ(attention_prefill_work(2, 3, 8, DType::kF32, DType::kF32).flops, 8 * 8 * 6);
  EXPECT_DOUBLE_EQ(attention_prefill_work(2, 3, 8, DType::kF16, DType::kF32).bytes, 48 * 16);
  EXPECT_DOUBLE_EQ(embedding_work(3, 8, DType::kF16).bytes, 24 * (2 + 2 + 4));
}

TEST(BenchReport, MedianAndDeviation) {
  EXPECT_EQ(median({3}), 3);
  EXPECT_EQ(median({9, 1, 5}), 5);
  EXPECT_EQ(median({4, 1, 2, 100}), 3);
  EXPECT_EQ(deviation({3}), 0);
  EXPECT_DOUBLE_EQ(deviation({2, 4, 4, 4, 5, 5, 7, 9}), std::sqrt(32.0 / 7));
}

TEST(BenchReport, Floors) {
  const Work work{.flops = 4e12, .bytes = 100e9};
  EXPECT_DOUBLE_EQ(*floor_seconds(work, Bound::kRead, kCeilings), 1);
  EXPECT_DOUBLE_EQ(*floor_seconds(work, Bound::kCopy, kCeilings), 1.25);
  EXPECT_DOUBLE_EQ(*floor_seconds(work, Bound::kMatmul, kCeilings), 2);
  EXPECT_DOUBLE_EQ(*floor_seconds(work, Bound::kHostToDevice, kCeilings), 2);
  EXPECT_DOUBLE_EQ(*floor_seconds(work, Bound::kRoofline, kCeilings), 2);
  EXPECT_DOUBLE_EQ(*floor_seconds({1e12, 100e9}, Bound::kRoofline, kCeilings), 1);
  EXPECT_FALSE(floor_seconds(work, Bound::kNone, kCeilings).has_value());
  Ceilings unknown = kCeilings;
  unknown.matmul_tflops = 0;
  EXPECT_FALSE(floor_seconds(work, Bound::kMatmul, unknown).has_value());
  EXPECT_DOUBLE_EQ(*floor_seconds(work, Bound::kRoofline, unknown), 1);
}

TEST(BenchReport, Json) {
  const Work work{.flops = 1e12, .bytes = 50e9};
  const auto json = bench_row_to_json(row(Bound::kRead, work, {2, 1, 3}), subject(kCeilings));
  EXPECT_EQ(json.at("test").as_string(), "t");
  EXPECT_EQ(json.at("tokens").as_int64(), 7);
  EXPECT_DOUBLE_EQ(json.at("ms").as_double(), 2000);
  EXPECT_DOUBLE_EQ(json.at("ms_deviation").as_double(), 1000);
  EXPECT_DOUBLE_EQ(json.at("tokens_per_s").as_double(), 2);
  EXPECT_DOUBLE_EQ(json.at("rate").as_double(), 25);
  EXPECT_EQ(json.at("unit").as_string(), "GB/s");
  EXPECT_DOUBLE_EQ(json.at("share_of_ceiling").as_double(), 0.25);
  EXPECT_DOUBLE_EQ(json.at("matmul_tflops").as_double(), 2);
  EXPECT_EQ(json.at("model").as_string(), "tiny");

  const auto product = bench_row_to_json(row(Bound::kRoofline, {1e12, 1}, {1}), subject(kCeilings));
  EXPECT_EQ(product.at("unit").as_string(), "TFLOP/s");
  EXPECT_DOUBLE_EQ(product.at("share_of_ceiling").as_double(), 0.5);

  BenchRow mixed = row(Bound::kRoofline, work, {2});
  mixed.floor_seconds = 1.5;
  EXPECT_DOUBLE_EQ(bench_row_to_json(mixed, subject(kCeilings)).at("share_of_ceiling").as_double(),
                   0.75);
  const auto none = bench_row_to_json(row(Bound::kMatmul, work, {1}), subject({}));
  EXPECT_TRUE(none.at("share_of_ceiling").is_null());
}

}  // namespace
}  // namespace caravan
