#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/split_mix.h"

namespace caravan {

namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;

}  // namespace

double uniform_random(uint64_t seed, uint64_t counter) {
  const uint64_t key = split_mix(seed + kGolden);
  return static_cast<double>(split_mix(key + (counter + 1) * kGolden) >> 11) * 0x1.0p-53;
}

void validate(const SamplingParams& p) {
  CARAVAN_CHECK(p.max_output_len >= 1, "max output length {}, expected at least 1",
                p.max_output_len);
  CARAVAN_CHECK(std::isfinite(p.temperature) && p.temperature >= 0,
                "temperature {}, expected 0 (greedy) or more", p.temperature);
  CARAVAN_CHECK(p.top_k >= 0, "top_k {}, expected 0 (all) or more", p.top_k);
  CARAVAN_CHECK(p.top_p > 0 && p.top_p <= 1, "top_p {}, expected in (0, 1]", p.top_p);
  CARAVAN_CHECK(std::isfinite(p.repetition_penalty) && p.repetition_penalty > 0,
                "repetition_penalty {}, expected more than 0", p.repetition_penalty);
  for (const std::string& stop : p.stop) {
    CARAVAN_CHECK(!stop.empty(), "a stop string is empty");
  }
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

int32_t Sampler::sample(std::span<const float> logits, const SamplingParams& params,
                        std::span<const int32_t> history) {
  if (params.repetition_penalty != 1.0f) {
    logits_.assign(logits.begin(), logits.end());
    seen_.assign(logits.size(), 0);
    for (const int32_t id : history) {
      uint8_t& seen = seen_[static_cast<size_t>(id)];
      float& logit = logits_[static_cast<size_t>(id)];
      if (seen == 0) {
        logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      }
      seen = 1;
    }
    logits = logits_;
  }
  if (params.temperature == 0.0f) return argmax(logits);

  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates_[i] = {logits[i] / params.temperature, static_cast<int32_t>(i)};
  }
  const auto more_likely = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  const auto top_k = static_cast<size_t>(params.top_k);
  if (top_k > 0 && top_k < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + params.top_k, candidates_.end(),
                     more_likely);
    candidates_.resize(top_k);
  }
  std::sort(candidates_.begin(), candidates_.end(), more_likely);

  cumulative_.resize(candidates_.size());
  double total = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    total += std::exp(static_cast<double>(candidates_[i].logit) - candidates_.front().logit);
    cumulative_[i] = total;
  }
  size_t kept = candidates_.size();
  if (params.top_p < 1.0f) {
    const auto first = std::lower_bound(cumulative_.begin(), cumulative_.end(),
                                        static_cast<double>(params.top_p) * total);
    kept = std::min(kept, static_cast<size_t>(first - cumulative_.begin()) + 1);
  }
  const double draw = uniform_random(params.seed, history.size()) * cumulative_[kept - 1];
  const auto chosen = std::upper_bound(
      cumulative_.begin(), cumulative_.begin() + static_cast<std::ptrdiff_t>(kept), draw);
  const size_t index = std::min(static_cast<size_t>(chosen - cumulative_.begin()), kept - 1);
  return candidates_[index].id;
}

}  // namespace caravan
