#include "eval/comparison.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "core/error.h"
#include "core/json_text.h"
#include "eval/distributions.h"
#include "eval/statistics.h"

namespace caravan {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(size_t count, uint64_t seed, float spread) {
  std::vector<float> logits(count);
  std::mt19937_64 random(seed);
  for (float& logit : logits) {
    logit = spread * (static_cast<float>(random() >> 40) / (1 << 24) - 0.5f);
  }
  return logits;
}

/// The definition, in long double.
double kl_by_definition(const std::vector<float>& p, const std::vector<float>& q) {
  const auto log_softmax = [](const std::vector<float>& logits) {
    long double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<long double>(x));
    std::vector<long double> result;
    for (const float x : logits) result.push_back(x - std::log(sum));
    return result;
  };
  const auto p_log = log_softmax(p), q_log = log_softmax(q);
  long double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p_log[i]) * (p_log[i] - q_log[i]);
  return static_cast<double>(kl);
}

TEST(KlDivergence, KnownAnswers) {
  const std::vector<float> even = {0, 0};
  const std::vector<float> skewed = {std::log(3.0f), 0};  // 3/4, 1/4
  EXPECT_EQ(kl_divergence(even, even), 0);
  EXPECT_NEAR(kl_divergence(even, skewed), 0.5 * std::log(4.0 / 3.0), 1e-7);
  EXPECT_NEAR(kl_divergence(skewed, even), 0.75 * std::log(1.5) + 0.25 * std::log(0.5), 1e-7);
}

TEST(KlDivergence, IsTheDefinitionFromTinyToLarge) {
  for (const size_t count : {2u, 33u, 1023u, 50258u}) {
    const std::vector<float> p = random_logits(count, count, 20);
    EXPECT_EQ(kl_divergence(p, p), 0);
    for (const float change : {1e-5f, 1e-3f, 0.1f, 3.0f, 40.0f}) {
      SCOPED_TRACE(testing::Message() << count << " logits, change " << change);
      std::vector<float> q = random_logits(count, count + 1, change);
      for (size_t i = 0; i < count; ++i) q[i] += p[i];
      const double wanted = kl_by_definition(p, q);
      const double got = kl_divergence(p, q);
      EXPECT_NEAR(got, wanted, 3e-6 * wanted + 1e-17);
      EXPECT_GT(got, 0);
    }
  }
}

TEST(KlDivergence, ZeroProbabilities) {
  const std::vector<float> even = {0, 0, -kInfinity};
  const std::vector<float> single = {0, -kInfinity, -kInfinity};
  EXPECT_EQ(kl_divergence(even, even), 0);
  EXPECT_NEAR(kl_divergence(single, even), std::log(2.0), 1e-12);
  EXPECT_EQ(kl_divergence(even, single), std::numeric_limits<double>::infinity());
  const std::vector<float> broken = {0, std::nanf(""), 1};
  EXPECT_TRUE(std::isnan(kl_divergence(broken, even)));
  EXPECT_TRUE(std::isnan(kl_divergence(even, broken)));
}

TEST(Logsumexp, KnownAnswers) {
  const std::vector<float> logits = {1000, 1000, -kInfinity};
  EXPECT_NEAR(logsumexp(logits), 1000 + std::log(2.0), 1e-12);
  EXPECT_NEAR(logsumexp(std::vector<float>{-3}), -3, 1e-12);
}

TEST(BlockMean, OfEqualBlocksIsTheOrdinaryStandardError) {
  BlockMean mean;
  for (const double x : {1.0, 2.0, 4.0, 9.0}) mean.add(10 * x, 10);
  const Estimate estimate = mean.mean();
  EXPECT_DOUBLE_EQ(estimate.value, 4);
  // Sample standard deviation of 1, 2, 4, 9 is sqrt(38 / 3); over sqrt(4).
  EXPECT_DOUBLE_EQ(estimate.standard_error, std::sqrt(38.0 / 3) / 2);
}

TEST(BlockMean, WeighsUnequalBlocks) {
  BlockMean mean;
  mean.add(6, 2);
  mean.add(0, 0);  // an empty block is none
  mean.add(3, 3);
  mean.add(1, 1);
  // mean = 10 / 6; residuals 6 - 20/6, 3 - 5, 1 - 10/6 = 8/3, -2, -2/3.
  const double squares = 64.0 / 9 + 4 + 4.0 / 9;
  EXPECT_EQ(mean.num_blocks(), 3u);
  EXPECT_DOUBLE_EQ(mean.mean().value, 10.0 / 6);
  EXPECT_DOUBLE_EQ(mean.mean().standard_error, std::sqrt(1.5 * squares) / 6);
}

TEST(BlockMean, OneBlockHasNoError) {
  BlockMean mean;
  EXPECT_TRUE(std::isnan(mean.mean().value));
  mean.add(4, 2);
  EXPECT_EQ(mean.mean().value, 2);
  EXPECT_TRUE(std::isnan(mean.mean().standard_error));
}

// The error that is reported is the spread that repeated measurements have.
TEST(BlockMean, ErrorIsTheSpreadOfRepetitions) {
  std::mt19937_64 random(1);
  const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  std::vector<double> means;
  double errors = 0;
  constexpr int kRepetitions = 2000;
  for (int r = 0; r < kRepetitions; ++r) {
    BlockMean mean;
    for (int b = 0; b < 50; ++b) {
      const double level = uniform();  // what the tokens of a block have in common
      const double count = 1 + std::floor(20 * uniform());
      double sum = 0;
      for (int t = 0; t < static_cast<int>(count); ++t) sum += level + 0.1 * uniform();
      mean.add(sum, count);
    }
    means.push_back(mean.mean().value);
    errors += mean.mean().standard_error / kRepetitions;
  }
  const double center = std::accumulate(means.begin(), means.end(), 0.0) / kRepetitions;
  double squares = 0;
  for (const double m : means) squares += (m - center) * (m - center);
  const double spread = std::sqrt(squares / (kRepetitions - 1));
  EXPECT_NEAR(errors, spread, 0.06 * spread);  // 2,000 give the spread itself to 1.6 %
}

TEST(PairedExpDifference, WhatMovesBothDoesNotCount) {
  BlockMean a, b, c;
  for (const double x : {1.0, 2.0, 4.0, 9.0}) {
    a.add(x, 4);
    b.add(x, 4);
    c.add(x + 0.4, 4);
  }
  EXPECT_EQ(paired_exp_difference(a, b).value, 0);
  EXPECT_EQ(paired_exp_difference(a, b).standard_error, 0);
  const Estimate shifted = paired_exp_difference(c, a);
  EXPECT_DOUBLE_EQ(shifted.value, std::exp(1.1) - std::exp(1.0));
  // Both move alike, so the error is that of one of them times the difference.
  EXPECT_DOUBLE_EQ(shifted.standard_error, shifted.value * a.mean().standard_error);
  b.add(1, 1);
  EXPECT_THROW(paired_exp_difference(a, b), Error);
}

TEST(ComparisonMeter, KnownAnswers) {
  ComparisonMeter meter;
  meter.add({.log_prob = -1, .reference_log_prob = -1.5, .kl = 0.25, .has_same_top = true});
  meter.add({.log_prob = -3, .reference_log_prob = -2, .kl = 0.5, .has_same_top = false});
  meter.end_block();
  meter.add({.log_prob = -2, .reference_log_prob = -2, .kl = 0, .has_same_top = true});
  meter.end_block();
  const ComparisonReport report = meter.report();
  EXPECT_EQ(report.num_tokens, 3);
  EXPECT_DOUBLE_EQ(report.kl_mean.value, 0.25);
  EXPECT_DOUBLE_EQ(report.kl_median, 0.25);
  EXPECT_DOUBLE_EQ(report.kl_max, 0.5);
  EXPECT_DOUBLE_EQ(report.kl_p99, 0.495);
  EXPECT_DOUBLE_EQ(report.top1_agreement.value, 2.0 / 3);
  EXPECT_DOUBLE_EQ(report.log_prob_change.value, 0.5);
  EXPECT_DOUBLE_EQ(report.reference_nll.value, 5.5 / 3);
  EXPECT_DOUBLE_EQ(report.reference_perplexity.value, std::exp(5.5 / 3));
  EXPECT_DOUBLE_EQ(report.perplexity_change.value, std::exp(2.0) - std::exp(5.5 / 3));
  EXPECT_DOUBLE_EQ(report.perplexity_ratio.value, std::exp(0.5 / 3));
  // Differences of the blocks: 0.5 of 2 tokens, 0 of 1; residuals 1/6 and -1/6.
  const double error = std::sqrt(2 * 2.0 / 36) / 3;
  EXPECT_DOUBLE_EQ(report.perplexity_ratio.standard_error, std::exp(0.5 / 3) * error);
}

TEST(ComparisonMeter, NanIsNotHidden) {
  ComparisonMeter meter;
  EXPECT_TRUE(std::isnan(meter.report().kl_max));
  for (const double kl : {0.1, std::nan(""), 0.2}) meter.add({.kl = kl});
  meter.end_block();
  for (const double figure : {meter.report().kl_mean.value, meter.report().kl_median,
                              meter.report().kl_p99, meter.report().kl_max}) {
    EXPECT_TRUE(std::isnan(figure));
  }
}

TEST(CompareToken, SeesTheTargetAndTheTop) {
  const std::vector<float> even = {0, 0};
  const std::vector<float> skewed = {std::log(3.0f), 0};
  const TokenComparison token = compare_token(skewed, even, 1);
  EXPECT_NEAR(token.log_prob, std::log(0.5), 1e-7);
  EXPECT_NEAR(token.reference_log_prob, std::log(0.25), 1e-7);
  EXPECT_NEAR(token.kl, kl_divergence(skewed, even), 1e-15);
  EXPECT_TRUE(token.has_same_top);  // the first of equals
  EXPECT_FALSE(compare_token(std::vector<float>{0, 1}, even, 1).has_same_top);
}

TEST(EstimateJson, HasNoNan) {
  const std::string text = to_json_text(estimate_json({1.5, std::nan("")}));
  EXPECT_EQ(text, R"({"value":1.5,"standard_error":null})");
}

}  // namespace
}  // namespace caravan
