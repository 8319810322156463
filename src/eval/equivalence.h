#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace caravan {

/// What a sample says about |mean difference| < margin.
enum class Verdict {
  kPass,          // the whole interval lies inside (-margin, margin)
  kFail,          // the whole interval lies outside
  kInconclusive,  // neither, or fewer than kMinEquivalenceArticles articles
};

const char* verdict_name(Verdict verdict);  // "PASS", "FAIL", "INCONCLUSIVE"

/// With fewer, percentile intervals are too short to decide on: at 20 normal values a 95 % interval
/// holds the mean with 93 %, at 10 with 90 %.
inline constexpr size_t kMinEquivalenceArticles = 30;

struct EquivalenceOptions {
  double margin = 1.0;       // in the unit of the scores; above 0
  double confidence = 0.95;  // of the two-sided interval, between 0 and 1
  int num_samples = 10000;   // bootstrap resamples, 100 to 10^7
  uint32_t seed = 0;
};

struct Equivalence {
  Verdict verdict = Verdict::kInconclusive;
  size_t num_articles = 0;
  double mean_a = 0;
  double mean_b = 0;
  double mean_difference = 0;  // a - b
  double sd_difference = 0;    // of one article's, with n - 1; 0 for one article
  double low = 0;              // the interval of the mean difference
  double high = 0;
  /// Articles in all at which such a test passes with a probability of 80 %, if mean and standard
  /// deviation stay what they are; none when the mean itself lies at the margin or beyond it.
  std::optional<int64_t> num_needed = std::nullopt;
};

/// Equivalence of two systems that wrote about the same articles, from their paired scores.
/// The interval is that of a paired percentile bootstrap of the mean difference: articles are drawn
/// with replacement as np.random.choice draws them after np.random.seed(seed), and the bounds are
/// the quantiles (1 - confidence) / 2 and (1 + confidence) / 2. Lying inside (-margin, margin) is
/// two one-sided tests of level (1 - confidence) / 2 each: at the default of 0.95 a true difference
/// of the margin or more passes at most 2.5 % of the time, at 0.90 (the classical TOST) 5 %.
/// num_needed is the least n of kMinEquivalenceArticles or more with
///   Phi((margin - d) sqrt(n) / sd - z) + Phi((margin + d) sqrt(n) / sd - z) - 1 >= 0.8,
/// d the mean difference, z the normal quantile of (1 + confidence) / 2.
/// scores_a, scores_b: [num_articles], at least one. Time: num_samples * num_articles.
/// Errors: kInvalidArgument for unequal or no lengths, scores that are not finite, or options
/// outside their ranges.
/// Source: Schuirmann 1987 (two one-sided tests); Efron and Tibshirani 1993, chapter 13.
Equivalence test_equivalence(std::span<const double> scores_a, std::span<const double> scores_b,
                             const EquivalenceOptions& options);

}  // namespace caravan
