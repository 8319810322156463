#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "core/error.h"
#include "sampling/sampler.h"
#include "sampling/stop_strings.h"

namespace caravan {
namespace {

const std::vector<float> kLogits{0.5f, 2.0f, -1.0f, 2.0f, 1.0f};

TEST(SamplerTest, GreedyTakesTheLowestIdOfATie) {
  Sampler sampler;
  EXPECT_EQ(sampler.sample(kLogits, {}, {}), 1);
}

TEST(SamplerTest, RepetitionPenaltyDividesPositiveAndMultipliesNegativeOnce) {
  Sampler sampler;
  SamplingParams params;
  params.repetition_penalty = 1.5f;
  const std::vector<int32_t> history{1, 1, 1};
  EXPECT_EQ(sampler.sample(kLogits, params, history), 3);  // 2/1.5 = 1.33 < 2
  const std::vector<float> close{2.0f, 1.2f, -1.0f};
  const std::vector<int32_t> twice{0, 0};
  EXPECT_EQ(sampler.sample(close, params, twice), 0);  // 1.33, not 0.89, stays above 1.2
  const std::vector<float> negative{-1.0f, -1.2f};
  const std::vector<int32_t> first{0};
  EXPECT_EQ(sampler.sample(negative, params, first), 1);  // -1.5 < -1.2
}

std::map<int32_t, double> frequencies(const SamplingParams& params, int draws) {
  Sampler sampler;
  SamplingParams seeded = params;
  std::map<int32_t, double> counts;
  for (int i = 0; i < draws; ++i) {
    seeded.seed = static_cast<uint64_t>(i);
    counts[sampler.sample(kLogits, seeded, {})] += 1.0 / draws;
  }
  return counts;
}

TEST(SamplerTest, TemperatureSamplingFollowsTheSoftmax) {
  SamplingParams params;
  params.temperature = 0.7f;
  constexpr int kDraws = 200000;
  const auto seen = frequencies(params, kDraws);
  double total = 0;
  for (const float logit : kLogits) total += std::exp(logit / 0.7);
  for (size_t i = 0; i < kLogits.size(); ++i) {
    const double p = std::exp(kLogits[i] / 0.7) / total;
    EXPECT_NEAR(seen.at(static_cast<int32_t>(i)), p, 5 * std::sqrt(p * (1 - p) / kDraws)) << i;
  }
}

TEST(SamplerTest, TopKKeepsExactlyK) {
  SamplingParams params;
  params.temperature = 1.0f;
  params.top_k = 3;
  const auto seen = frequencies(params, 20000);
  EXPECT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen.count(0) + seen.count(2), 0u);
}

TEST(SamplerTest, TopPKeepsTheFewestThatReachIt) {
  // softmax: 1 and 3 hold 0.379 each (0.757 together), 4 0.139, 0 0.085, 2 0.019
  SamplingParams params;
  params.temperature = 1.0f;
  params.top_p = 0.75f;
  EXPECT_EQ(frequencies(params, 20000).size(), 2u);
  params.top_p = 0.77f;
  EXPECT_EQ(frequencies(params, 20000).size(), 3u);
  params.top_p = 0.01f;
  EXPECT_EQ(frequencies(params, 1000).size(), 1u);
}

TEST(SamplerTest, DrawsDependOnSeedAndCounterOnly) {
  EXPECT_EQ(uniform_random(1, 3), uniform_random(1, 3));
  EXPECT_NE(uniform_random(1, 3), uniform_random(2, 3));
  EXPECT_NE(uniform_random(1, 3), uniform_random(1, 4));
  double sum = 0, squares = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform_random(7, static_cast<uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.005);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 0.005);
}

TEST(SamplerTest, RefusesParametersOutsideTheirRange) {
  const auto refused = [](auto change) {
    SamplingParams params;
    change(params);
    EXPECT_THROW(validate(params, 5), Error);
  };
  validate({}, 5);
  refused([](SamplingParams& p) { p.temperature = -1; });
  refused([](SamplingParams& p) { p.temperature = NAN; });
  refused([](SamplingParams& p) { p.top_p = 0; });
  refused([](SamplingParams& p) { p.top_p = 1.5f; });
  refused([](SamplingParams& p) { p.top_k = -1; });
  refused([](SamplingParams& p) { p.repetition_penalty = 0; });
  refused([](SamplingParams& p) { p.max_output_len = 0; });
  refused([](SamplingParams& p) { p.stop = {""}; });
}

TEST(StopStringsTest, ShowsNothingOfAStopString) {
  StopStrings stops({"###", "\n\nEnd"});
  EXPECT_EQ(stops.push("a#"), "a");
  EXPECT_EQ(stops.push("b##"), "#b");
  EXPECT_EQ(stops.push("\n"), "##");
  EXPECT_EQ(stops.push("\nE"), "");
  EXPECT_EQ(stops.push("x"), "\n\nEx");
  EXPECT_EQ(stops.push("\n\nEnd of it"), "");
  EXPECT_TRUE(stops.found());
  EXPECT_EQ(stops.matched(), "\n\nEnd");
  EXPECT_EQ(stops.push("more"), "");
  EXPECT_EQ(stops.flush(), "");
}

TEST(StopStringsTest, FlushGivesBackWhatWaited) {
  StopStrings stops({"stop"});
  EXPECT_EQ(stops.push("a sto"), "a ");
  EXPECT_FALSE(stops.found());
  EXPECT_EQ(stops.flush(), "sto");
}

TEST(StopStringsTest, AnySplitOfTheStreamShowsTheSameText) {
  const std::string text = "one two ababac three";
  for (size_t i = 0; i <= text.size(); ++i) {
    StopStrings stops({"abac"});
    std::string shown = stops.push(text.substr(0, i));
    shown += stops.push(text.substr(i));
    shown += stops.flush();
    EXPECT_EQ(shown, "one two ab") << i;
    EXPECT_TRUE(stops.found());
  }
}

}  // namespace
}  // namespace caravan
