#include "eval/comparison.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "eval/distributions.h"
#include "eval/quantile.h"
#include "sampling/sampler.h"

namespace caravan {

namespace {

double quantile_or_nan(const std::vector<double>& sorted, bool has_nan, double q) {
  if (sorted.empty() || has_nan) return std::numeric_limits<double>::quiet_NaN();
  return sorted_quantile(sorted, q);
}

}  // namespace

TokenComparison compare_token(std::span<const float> reference, std::span<const float> logits,
                              int32_t target) {
  const double reference_sum = logsumexp(reference);
  const double sum = logsumexp(logits);
  const auto t = static_cast<size_t>(target);
  return {.log_prob = static_cast<double>(logits[t]) - sum,
          .reference_log_prob = static_cast<double>(reference[t]) - reference_sum,
          .kl = kl_divergence(reference, reference_sum, logits, sum),
          .has_same_top = argmax(reference) == argmax(logits)};
}

void ComparisonMeter::add(const TokenComparison& token) {
  block_.kl += token.kl;
  block_.same_top += token.has_same_top ? 1 : 0;
  block_.change += std::abs(token.log_prob - token.reference_log_prob);
  block_.nll -= token.log_prob;
  block_.reference_nll -= token.reference_log_prob;
  block_.count += 1;
  kls_.push_back(token.kl);
}

void ComparisonMeter::end_block() {
  kl_.add(block_.kl, block_.count);
  same_top_.add(block_.same_top, block_.count);
  change_.add(block_.change, block_.count);
  nll_.add(block_.nll, block_.count);
  reference_nll_.add(block_.reference_nll, block_.count);
  nll_difference_.add(block_.nll - block_.reference_nll, block_.count);
  block_ = {};
}

ComparisonReport ComparisonMeter::report() const {
  std::vector<double> kls = kls_;
  const bool has_nan =
      std::any_of(kls.begin(), kls.end(), [](double kl) { return std::isnan(kl); });
  if (!has_nan) std::sort(kls.begin(), kls.end());
  const Estimate reference_nll = reference_nll_.mean();
  return {.num_tokens = static_cast<int64_t>(kls.size()),
          .kl_mean = kl_.mean(),
          .kl_median = quantile_or_nan(kls, has_nan, 0.5),
          .kl_p99 = quantile_or_nan(kls, has_nan, 0.99),
          .kl_max = quantile_or_nan(kls, has_nan, 1),
          .top1_agreement = same_top_.mean(),
          .log_prob_change = change_.mean(),
          .reference_nll = reference_nll,
          .reference_perplexity = exp_of(reference_nll),
          .perplexity_change = paired_exp_difference(nll_, reference_nll_),
          .perplexity_ratio = exp_of(nll_difference_.mean())};
}

boost::json::object comparison_json(const ComparisonReport& report) {
  return {{"num_tokens", report.num_tokens},
          {"kl_mean", estimate_json(report.kl_mean)},
          {"kl_median", number_json(report.kl_median)},
          {"kl_p99", number_json(report.kl_p99)},
          {"kl_max", number_json(report.kl_max)},
          {"top1_agreement", estimate_json(report.top1_agreement)},
          {"log_prob_change", estimate_json(report.log_prob_change)},
          {"reference_nll", estimate_json(report.reference_nll)},
          {"reference_perplexity", estimate_json(report.reference_perplexity)},
          {"perplexity_change", estimate_json(report.perplexity_change)},
          {"perplexity_ratio", estimate_json(report.perplexity_ratio)}};
}

}  // namespace caravan
