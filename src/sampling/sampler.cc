#include "sampling/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "core/error.h"
#include "core/split_mix.h"

namespace caravan {

namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
/// Largest penalty and bias: far above any logit, and sums with them stay finite.
constexpr float kMaxAdjustment = 1e9f;

/// Above so many candidates a radix sort is faster than std::sort: all 50,258 of GPT-2 take a fifth
/// of the time.
constexpr size_t kMinRadixSort = 2048;

/// Grows as the logit falls; the two zeros are equal. Not for NaN.
uint32_t descending_key(float logit) {
  const auto bits = std::bit_cast<uint32_t>(logit + 0.0f);  // -0 + 0 is 0
  return (bits & 0x80000000u) != 0 ? bits : ~bits & 0x7fffffffu;
}

void check_token(int32_t id, int64_t vocab_size, const char* field) {
  CARAVAN_CHECK(id >= 0 && id < vocab_size, "{}: token id {} is outside the vocabulary of {}",
                field, id, vocab_size);
}

void check_logit_bias(const SamplingParams& p, int64_t vocab_size) {
  std::vector<int32_t> ids;
  ids.reserve(p.logit_bias.size());
  for (const auto& [id, bias] : p.logit_bias) {
    check_token(id, vocab_size, "logit_bias");
    CARAVAN_CHECK(std::abs(bias) <= kMaxAdjustment,
                  "logit_bias of token {}: {}, expected within -1e9 ... 1e9", id, bias);
    ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  CARAVAN_CHECK(twice == ids.end(), "logit_bias names token {} twice", *twice);
}

}  // namespace

double uniform_random(uint64_t seed, uint64_t counter) {
  const uint64_t key = split_mix(seed + kGolden);
  return static_cast<double>(split_mix(key + (counter + 1) * kGolden) >> 11) * 0x1.0p-53;
}

uint64_t resolve_seed(uint64_t seed) {
  if (seed != kRandomSeed) return seed;
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32 | device()) >> 1;
}

void validate(const SamplingParams& p, int64_t vocab_size) {
  // 0: only the prompt is scored.
  const int64_t least_output = p.num_prompt_logprobs >= 0 ? 0 : 1;
  CARAVAN_CHECK(p.max_output_len >= least_output, "max output length {}, expected at least {}",
                p.max_output_len, least_output);
  CARAVAN_CHECK(p.min_output_len >= 0 && p.min_output_len <= p.max_output_len,
                "min output length {}, expected 0 ... {} (the most)", p.min_output_len,
                p.max_output_len);
  CARAVAN_CHECK(p.temperature >= 0 && p.temperature <= 100,
                "temperature {}, expected 0 (greedy) ... 100", p.temperature);
  CARAVAN_CHECK(p.top_k >= 0, "top_k {}, expected 0 (all) or more", p.top_k);
  CARAVAN_CHECK(p.top_p > 0 && p.top_p <= 1, "top_p {}, expected in (0, 1]", p.top_p);
  CARAVAN_CHECK(p.min_p >= 0 && p.min_p <= 1, "min_p {}, expected in [0, 1]", p.min_p);
  CARAVAN_CHECK(std::isfinite(p.repetition_penalty) && p.repetition_penalty > 0,
                "repetition_penalty {}, expected more than 0", p.repetition_penalty);
  CARAVAN_CHECK(std::abs(p.presence_penalty) <= kMaxAdjustment,
                "presence_penalty {}, expected within -1e9 ... 1e9", p.presence_penalty);
  CARAVAN_CHECK(std::abs(p.frequency_penalty) <= kMaxAdjustment,
                "frequency_penalty {}, expected within -1e9 ... 1e9", p.frequency_penalty);
  check_logit_bias(p, vocab_size);
  for (const int32_t id : p.stop_token_ids) check_token(id, vocab_size, "stop_token_ids");
  for (const std::string& stop : p.stop) {
    CARAVAN_CHECK(!stop.empty(), "a stop string is empty");
  }
  const auto most_logprobs = static_cast<int32_t>(std::min<int64_t>(kMaxLogprobs, vocab_size));
  for (const auto& [field, count] : {std::pair{"num_logprobs", p.num_logprobs},
                                     std::pair{"num_prompt_logprobs", p.num_prompt_logprobs}}) {
    CARAVAN_CHECK(count >= -1 && count <= most_logprobs, "{} {}, expected -1 (none) ... {}", field,
                  count, most_logprobs);
  }
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

bool is_finite(std::span<const float> logits) {
  // Counts, because those become vector instructions and flags do not.
  int32_t num_below_infinity = 0, num_numbers = 0;
  for (const float logit : logits) {
    num_below_infinity += logit < kInfinity ? 1 : 0;
    num_numbers += logit > -kInfinity ? 1 : 0;
  }
  return static_cast<size_t>(num_below_infinity) == logits.size() && num_numbers > 0;
}

std::span<const float> Sampler::adjusted(std::span<const float> logits,
                                         const SamplingParams& params,
                                         std::span<const int32_t> history,
                                         int64_t num_prompt_tokens,
                                         std::span<const int32_t> banned) {
  const bool has_repetition = params.repetition_penalty != 1.0f;
  const bool has_counts = params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
  if (!has_repetition && !has_counts && params.logit_bias.empty() && banned.empty()) return logits;
  logits_.assign(logits.begin(), logits.end());
  const auto logit_of = [&](int32_t id) -> float& { return logits_[static_cast<size_t>(id)]; };
  for (const int32_t id : banned) logit_of(id) = -kInfinity;
  for (const auto& [id, bias] : params.logit_bias) logit_of(id) += bias;
  counts_.resize(logits.size(), 0);
  const auto count_of = [&](int32_t id) -> int32_t& { return counts_[static_cast<size_t>(id)]; };
  // Each token is changed where it occurs first; counts end as zeros again.
  if (has_repetition) {
    for (const int32_t id : history) {
      float& logit = logit_of(id);
      if (count_of(id)++ > 0) continue;
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    for (const int32_t id : history) count_of(id) = 0;
  }
  if (has_counts) {
    const auto output = history.subspan(static_cast<size_t>(num_prompt_tokens));
    for (const int32_t id : output) ++count_of(id);
    for (const int32_t id : output) {
      if (count_of(id) == 0) continue;
      logit_of(id) -= params.frequency_penalty * static_cast<float>(count_of(id));
      logit_of(id) -= params.presence_penalty;
      count_of(id) = 0;
    }
  }
  return logits_;
}

// The tokens that may be drawn, most likely first.
void Sampler::find_candidates(std::span<const float> logits, const SamplingParams& params) {
  candidates_.clear();
  double least = -kInfinity;
  if (params.min_p > 0) {
    const float highest = *std::max_element(logits.begin(), logits.end()) / params.temperature;
    least = static_cast<double>(highest) + std::log(static_cast<double>(params.min_p));
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i] / params.temperature;
    if (logit > -kInfinity && logit >= least)
      candidates_.push_back({logit, static_cast<int32_t>(i)});
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
  if (top_k > 0 || candidates_.size() < kMinRadixSort) {
    std::sort(candidates_.begin(), candidates_.end(), more_likely);
  } else {
    sort_candidates();
  }
}

// By a radix sort, which keeps the order of equal logits: they come by id.
void Sampler::sort_candidates() {
  constexpr int kDigitBits = 11;
  constexpr int kNumDigits = 3;
  constexpr size_t kNumValues = size_t{1} << kDigitBits;
  const auto digit_of = [](const Candidate& c, int digit) {
    return (descending_key(c.logit) >> (digit * kDigitBits)) & (kNumValues - 1);
  };
  std::array<std::array<uint32_t, kNumValues>, kNumDigits> starts{};
  for (const Candidate& c : candidates_) {
    for (int digit = 0; digit < kNumDigits; ++digit) {
      ++starts[static_cast<size_t>(digit)][digit_of(c, digit)];
    }
  }
  sorted_.resize(candidates_.size());
  for (int digit = 0; digit < kNumDigits; ++digit) {
    auto& start = starts[static_cast<size_t>(digit)];
    std::exclusive_scan(start.begin(), start.end(), start.begin(), uint32_t{0});
    for (const Candidate& c : candidates_) sorted_[start[digit_of(c, digit)]++] = c;
    candidates_.swap(sorted_);
  }
}

int32_t Sampler::sample(std::span<const float> logits, const SamplingParams& params,
                        std::span<const int32_t> history, int64_t num_prompt_tokens,
                        std::span<const int32_t> banned) {
  if (!is_finite(logits)) return kNotFinite;
  logits = adjusted(logits, params, history, num_prompt_tokens, banned);
  const int32_t best = argmax(logits);
  const float highest = logits[static_cast<size_t>(best)];
  if (highest == -kInfinity) return kNotFinite;
  // Infinity has no softmax: the first one.
  if (params.temperature == 0.0f || highest == kInfinity) return best;
  find_candidates(logits, params);
  if (candidates_.empty()) return best;
  if (candidates_.front().logit == kInfinity) return candidates_.front().id;

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
