#pragma once

#include <span>

namespace caravan {

/// log(sum(exp(logits))): float exponentials (each within 1 ulp), summed in double. -inf stands for
/// a probability of zero. logits: at least one value.
double logsumexp(std::span<const float> logits);

/// KL(softmax(p) || softmax(q)) in nats; p_logsumexp, q_logsumexp: logsumexp() of each.
///
/// Summed as p (exp(-d) - 1 + d) with d = log p - log q, which is the usual sum of p d because both
/// distributions sum to one: no term is negative, equal logits give exactly 0, and the error of a
/// log-sum-exp counts only squared, so that a divergence of 1e-12 is still seen.
/// NaN where a logit is; infinite where q is zero and p is not. p, q: logits of equal length.
double kl_divergence(std::span<const float> p, double p_logsumexp, std::span<const float> q,
                     double q_logsumexp);
double kl_divergence(std::span<const float> p, std::span<const float> q);

}  // namespace caravan
