#include "eval/equivalence.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <random>
#include <vector>

#include "core/error.h"

namespace caravan {
namespace {

/// Equivalence of scores with these differences.
Equivalence equivalence_of(const std::vector<double>& differences,
                           const EquivalenceOptions& options = {}) {
  const std::vector<double> zeros(differences.size());
  return test_equivalence(differences, zeros, options);
}

double uniform(std::mt19937& random) {
  return (static_cast<double>(random()) + 0.5) / 4294967296.0;
}

double normal(std::mt19937& random) {
  const double radius = std::sqrt(-2 * std::log(uniform(random)));
  return radius * std::cos(2 * std::numbers::pi * uniform(random));
}

/// What the differences between two runs of one model look like: most articles do not change, the
/// rest by some points to either side, upward with a longer tail. The mean is that of `mixture`.
double changed_sometimes(std::mt19937& random) {
  if (uniform(random) < 0.6) return 0;
  return uniform(random) < 0.5 ? -4 * uniform(random) : -2 * std::log(uniform(random));
}
constexpr double kMeanOfChanged = 0.4 * (0.5 * -2 + 0.5 * 2);

TEST(EquivalenceTest, IntervalEqualsNumPys) {
  // d = [((i*7919) % 101)/10 - 5 + (3 if i % 7 == 0 else 0) for i in range(40)]; np.random.seed(5);
  // m = [np.mean(d[np.random.choice(40, 40)]) for _ in range(2000)]; np.quantile(m, [.025, .975])
  std::vector<double> d;
  for (int i = 0; i < 40; ++i) d.push_back(((i * 7919) % 101) / 10.0 - 5 + (i % 7 == 0 ? 3 : 0));
  const Equivalence got =
      equivalence_of(d, {.margin = 1, .confidence = 0.95, .num_samples = 2000, .seed = 5});
  EXPECT_NEAR(got.low, -0.54, 1e-12);
  EXPECT_NEAR(got.high, 1.3775, 1e-12);
  EXPECT_NEAR(got.mean_difference, 0.4075, 1e-12);
  EXPECT_NEAR(got.sd_difference, 3.1148434952658537, 1e-12);
  EXPECT_EQ(got.verdict, Verdict::kInconclusive);
}

TEST(EquivalenceTest, EqualScoresPass) {
  const std::vector<double> scores(100, 21.5);
  const Equivalence got = test_equivalence(scores, scores, {});
  EXPECT_EQ(got.verdict, Verdict::kPass);
  EXPECT_EQ(got.low, 0);
  EXPECT_EQ(got.high, 0);
  EXPECT_EQ(got.num_needed, static_cast<int64_t>(kMinEquivalenceArticles));
  EXPECT_EQ(got.mean_a, 21.5);
}

TEST(EquivalenceTest, VerdictsFollowTheInterval) {
  std::mt19937 random(3);
  std::vector<double> d(400);
  for (double& value : d) value = normal(random);  // the interval is about +-0.1 wide
  EXPECT_EQ(equivalence_of(d).verdict, Verdict::kPass);
  EXPECT_EQ(equivalence_of(d, {.margin = 0.05}).verdict, Verdict::kInconclusive);
  for (double& value : d) value += 2;
  EXPECT_EQ(equivalence_of(d).verdict, Verdict::kFail);
  EXPECT_EQ(equivalence_of(d, {.margin = 2}).verdict, Verdict::kInconclusive);
  EXPECT_EQ(equivalence_of(d, {.margin = 2}).num_needed.has_value(),
            equivalence_of(d).mean_difference < 2);
  EXPECT_EQ(equivalence_of(d).num_needed, std::nullopt);
  EXPECT_EQ(equivalence_of(d, {.margin = 3}).verdict, Verdict::kPass);
  for (double& value : d) value = -value;
  EXPECT_EQ(equivalence_of(d).verdict, Verdict::kFail);
}

TEST(EquivalenceTest, FewArticlesDecideNothing) {
  const std::vector<double> same(kMinEquivalenceArticles - 1, 0.0);
  EXPECT_EQ(equivalence_of(same).verdict, Verdict::kInconclusive);
  const std::vector<double> far(kMinEquivalenceArticles - 1, 50.0);
  EXPECT_EQ(equivalence_of(far).verdict, Verdict::kInconclusive);
  EXPECT_EQ(equivalence_of({7.0}).verdict, Verdict::kInconclusive);
  EXPECT_EQ(equivalence_of({7.0}).sd_difference, 0);
}

TEST(EquivalenceTest, RefusesNonsense) {
  EXPECT_THROW(equivalence_of({}), Error);
  EXPECT_THROW(test_equivalence(std::vector{1.0}, std::vector{1.0, 2.0}, {}), Error);
  EXPECT_THROW(equivalence_of({std::nan("")}), Error);
  EXPECT_THROW(equivalence_of({1}, {.margin = 0}), Error);
  EXPECT_THROW(equivalence_of({1}, {.margin = std::nan("")}), Error);
  EXPECT_THROW(equivalence_of({1}, {.confidence = 1}), Error);
  EXPECT_THROW(equivalence_of({1}, {.confidence = 0}), Error);
  EXPECT_THROW(equivalence_of({1}, {.num_samples = 99}), Error);
}

// Simulations. The number of hits of R independent runs is binomial: its share has the standard
// deviation sqrt(p (1 - p) / R), and with fixed seeds a bound of 4 of them fails by a defect only.

constexpr int kNumRuns = 1000;
// The outer quantiles of 1,000 resampled means lie on average where a share of 25.975 / 1001 is
// outside: 1.944 standard deviations of a normal distribution in place of 1.960.
constexpr int kNumSamples = 1000;

double four_sigma(double p) { return 4 * std::sqrt(p * (1 - p) / kNumRuns); }

/// Share of the runs with n drawn differences for whose result `is_hit` holds.
template <typename Draw, typename IsHit>
double rate_of(size_t n, double margin, const Draw& draw, const IsHit& is_hit) {
  std::mt19937 random(11);
  int num_hits = 0;
  std::vector<double> d(n);
  for (int run = 0; run < kNumRuns; ++run) {
    for (double& value : d) value = draw(random);
    num_hits += is_hit(equivalence_of(
        d, {.margin = margin, .num_samples = kNumSamples, .seed = static_cast<uint32_t>(run)}));
  }
  return static_cast<double>(num_hits) / kNumRuns;
}

bool is_pass(const Equivalence& result) { return result.verdict == Verdict::kPass; }

TEST(EquivalenceSimulation, IntervalsCoverTheMeanOfNormalDifferences) {
  // For normal values the interval is mean +- 1.944 s sqrt((n - 1) / n) / sqrt(n), which holds the
  // true mean with P(|t with 49 degrees of freedom| < 1.944 sqrt(49 / 50)) = 0.9399.
  constexpr double kExpected = 0.9399;
  const double rate = rate_of(
      50, 1, normal, [](const Equivalence& result) { return result.low <= 0 && 0 <= result.high; });
  EXPECT_NEAR(rate, kExpected, four_sigma(kExpected));
}

TEST(EquivalenceSimulation, IntervalsCoverTheMeanOfSkewedDifferences) {
  // As above with 99 degrees of freedom, 0.9441; half a percent is allowed for the skewness, whose
  // effect is of order 1 / n.
  constexpr double kExpected = 0.9441;
  const double rate = rate_of(100, 1, changed_sometimes, [](const Equivalence& result) {
    return result.low <= kMeanOfChanged && kMeanOfChanged <= result.high;
  });
  EXPECT_NEAR(rate, kExpected, four_sigma(kExpected) + 0.005);
}

TEST(EquivalenceSimulation, ADifferenceOfTheMarginSeldomPasses) {
  // P(t with 39 degrees of freedom < -1.944 sqrt(39 / 40)) = 0.0311.
  constexpr double kExpected = 0.0311;
  const double rate = rate_of(
      40, 1, [](std::mt19937& random) { return 1 + normal(random); }, is_pass);
  EXPECT_NEAR(rate, kExpected, four_sigma(kExpected));
}

TEST(EquivalenceSimulation, TheNumberOfArticlesNeededPassesFourTimesInFive) {
  constexpr double kSd = 1.5;
  for (const double mean : {0.0, 0.35}) {
    std::vector<double> pilot(50);  // of exactly this mean and standard deviation
    for (size_t i = 0; i < pilot.size(); ++i) {
      pilot[i] = mean + (i % 2 == 0 ? 1 : -1) * kSd * std::sqrt(49.0 / 50.0);
    }
    const Equivalence planned = equivalence_of(pilot, {.margin = 0.8});
    ASSERT_NEAR(planned.sd_difference, kSd, 1e-12);
    ASSERT_TRUE(planned.num_needed.has_value());
    const double rate = rate_of(
        static_cast<size_t>(*planned.num_needed), 0.8,
        [mean](std::mt19937& random) { return mean + kSd * normal(random); }, is_pass);
    // One percent for s in place of sd and for 1,000 resamples in place of all.
    EXPECT_NEAR(rate, 0.8, four_sigma(0.8) + 0.01) << mean << ": " << *planned.num_needed;
  }
}

}  // namespace
}  // namespace caravan
