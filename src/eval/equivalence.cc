#include "eval/equivalence.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "core/error.h"
#include "eval/numpy_random.h"
#include "eval/quantile.h"

namespace caravan {

namespace {

constexpr double kPower = 0.8;
constexpr int64_t kMostArticles = int64_t{1} << 50;

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

/// The x with normal_cdf(x) = p, for 0.5 <= p < 1.
double normal_quantile(double p) {
  double low = 0;
  double high = 40;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (normal_cdf(middle) < p ? low : high) = middle;
  }
  return high;
}

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double sd_of(std::span<const double> values, double mean) {
  if (values.size() < 2) return 0;
  double sum = 0;
  for (const double v : values) sum += (v - mean) * (v - mean);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

std::optional<int64_t> articles_needed(double mean, double sd, const EquivalenceOptions& options) {
  if (std::abs(mean) >= options.margin) return std::nullopt;
  const double z = normal_quantile((1 + options.confidence) / 2);
  const auto passes = [&](int64_t n) {
    const double unit = sd / std::sqrt(static_cast<double>(n));
    if (unit == 0) return true;
    return normal_cdf((options.margin - mean) / unit - z) +
               normal_cdf((options.margin + mean) / unit - z) - 1 >=
           kPower;
  };
  int64_t least = kMinEquivalenceArticles;
  if (passes(least)) return least;
  int64_t most = least;
  while (!passes(most)) {
    if (most > kMostArticles) return std::nullopt;
    least = most;
    most *= 2;
  }
  while (most - least > 1) {
    const int64_t middle = least + (most - least) / 2;
    (passes(middle) ? most : least) = middle;
  }
  return most;
}

}  // namespace

const char* verdict_name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kPass:
      return "PASS";
    case Verdict::kFail:
      return "FAIL";
    case Verdict::kInconclusive:
      return "INCONCLUSIVE";
  }
  return "";
}

Equivalence test_equivalence(std::span<const double> scores_a, std::span<const double> scores_b,
                             const EquivalenceOptions& options) {
  CARAVAN_CHECK(scores_a.size() == scores_b.size() && !scores_a.empty(),
                "test_equivalence: {} and {} scores, expected equally many and at least one",
                scores_a.size(), scores_b.size());
  CARAVAN_CHECK(options.margin > 0 && std::isfinite(options.margin),
                "the margin is {}, expected a number above 0", options.margin);
  CARAVAN_CHECK(options.confidence > 0 && options.confidence < 1,
                "the confidence is {}, expected a number between 0 and 1, e.g. 0.95",
                options.confidence);
  CARAVAN_CHECK(options.num_samples >= 100 && options.num_samples <= 10'000'000,
                "{} bootstrap samples, expected 100 to 10,000,000", options.num_samples);
  const size_t n = scores_a.size();
  std::vector<double> differences(n);
  for (size_t i = 0; i < n; ++i) {
    differences[i] = scores_a[i] - scores_b[i];
    CARAVAN_CHECK(std::isfinite(differences[i]), "test_equivalence: score {} is not finite", i);
  }

  Equivalence out{.num_articles = n,
                  .mean_a = mean_of(scores_a),
                  .mean_b = mean_of(scores_b),
                  .mean_difference = mean_of(differences)};
  out.sd_difference = sd_of(differences, out.mean_difference);
  out.num_needed = articles_needed(out.mean_difference, out.sd_difference, options);

  std::mt19937 random(options.seed);
  std::vector<double> means(static_cast<size_t>(options.num_samples));
  for (double& mean : means) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += differences[random_index(random, n)];
    mean = sum / static_cast<double>(n);
  }
  std::sort(means.begin(), means.end());
  out.low = sorted_quantile(means, (1 - options.confidence) / 2);
  out.high = sorted_quantile(means, (1 + options.confidence) / 2);

  if (n < kMinEquivalenceArticles) {
    out.verdict = Verdict::kInconclusive;
  } else if (out.low > -options.margin && out.high < options.margin) {
    out.verdict = Verdict::kPass;
  } else if (out.low >= options.margin || out.high <= -options.margin) {
    out.verdict = Verdict::kFail;
  }
  return out;
}

}  // namespace caravan
