#include "eval/distributions.h"

#include <algorithm>
#include <cmath>

namespace caravan {

namespace {

/// exp(-d) - 1 + d. Below 1/16 the series to d^8: the first term left out is 1e-13 of the sum.
double excess(double d) {
  if (std::abs(d) >= 0.0625) return std::exp(-d) - 1 + d;
  double sum = 0;
  for (const double factor :
       {1.0 / 40320, -1.0 / 5040, 1.0 / 720, -1.0 / 120, 1.0 / 24, -1.0 / 6}) {
    sum = (sum + factor) * d;
  }
  return (sum + 0.5) * d * d;
}

}  // namespace

double logsumexp(std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return static_cast<double>(largest) + std::log(sum);
}

double kl_divergence(std::span<const float> p, double p_logsumexp, std::span<const float> q,
                     double q_logsumexp) {
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double p_log = static_cast<double>(p[i]) - p_logsumexp;
    const double q_log = static_cast<double>(q[i]) - q_logsumexp;
    if (p_log == q_log) continue;  // -inf twice too
    const double d = p_log - q_log;
    // Far from q both terms of p exp(-d) lose their digits: it is q.
    if (d < -30) {
      kl += std::exp(q_log) + std::exp(p_log) * (p_log > -800 ? d - 1 : 0);
    } else {
      // A float exponential is enough: no term is negative, so its relative error (about 1e-6) is
      // the sum's.
      const auto p_value = static_cast<double>(std::exp(static_cast<float>(p_log)));
      if (p_value != 0 || std::isnan(d)) kl += p_value * excess(d);
    }
  }
  return kl;
}

double kl_divergence(std::span<const float> p, std::span<const float> q) {
  return kl_divergence(p, logsumexp(p), q, logsumexp(q));
}

}  // namespace caravan
