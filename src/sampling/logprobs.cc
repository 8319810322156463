#include "sampling/logprobs.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace caravan {

namespace {

// Loops of this many steps become vector instructions.
constexpr size_t kLanes = 16;

float largest_of(std::span<const float> values) {
  std::array<float, kLanes> lanes;
  lanes.fill(values.front());
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (size_t k = 0; k < kLanes; ++k) lanes[k] = std::max(lanes[k], values[i + k]);
  }
  float largest = *std::max_element(lanes.begin(), lanes.end());
  for (; i < values.size(); ++i) largest = std::max(largest, values[i]);
  return largest;
}

/// e^x of x <= 0, of float32's precision; 1e-38 where the result would be less. x = n ln 2 + r with
/// |r| <= ln 2 / 2; Taylor's polynomial of degree 7 in r is exact to 6e-9.
float exp_of(float x) {
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 x 2^23: the last bits of the sum are n's
  constexpr float kLn2High = 0.693145751953125f;
  constexpr float kLn2Low = 1.4286068203094172e-06f;
  x = std::max(x, -87.0f);
  const float shifted = x * 1.4426950408889634f + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) +
                              (std::bit_cast<uint32_t>(shifted) << 23));
}

double sum_of_exp(std::span<const float> logits, float largest) {
  std::array<double, kLanes> lanes{};
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t k = 0; k < kLanes; ++k) lanes[k] += exp_of(logits[i + k] - largest);
  }
  double sum = std::accumulate(lanes.begin(), lanes.end(), 0.0);
  for (; i < logits.size(); ++i) sum += exp_of(logits[i] - largest);
  return sum;
}

int32_t count_above(std::span<const float> values, float limit) {
  int32_t count = 0;
  for (const float value : values) count += value > limit ? 1 : 0;
  return count;
}

}  // namespace

ScoredToken score_token(std::span<const float> logits, int32_t token_id, int32_t num_top) {
  const auto vocab_size = static_cast<int32_t>(logits.size());
  CARAVAN_CHECK_CODE(
      token_id >= 0 && token_id < vocab_size && num_top >= 0 && num_top <= vocab_size, kInternal,
      "token {} and {} more of a vocabulary of {} are to be scored", token_id, num_top, vocab_size);
  const float largest = largest_of(logits);
  const double log_sum = std::log(sum_of_exp(logits, largest));
  const auto is_likelier = [&](int32_t a, int32_t b) {
    const float left = logits[static_cast<size_t>(a)];
    const float right = logits[static_cast<size_t>(b)];
    return left > right || (left == right && a < b);
  };
  const auto scored = [&](int32_t id, int32_t rank) {
    const double logprob = static_cast<double>(logits[static_cast<size_t>(id)]) - largest - log_sum;
    return TokenLogprob{id, static_cast<float>(logprob), rank};
  };
  const float logit = logits[static_cast<size_t>(token_id)];
  const auto before = logits.first(static_cast<size_t>(token_id));
  const auto rank = static_cast<int32_t>(1 + count_above(logits, logit) +
                                         std::count(before.begin(), before.end(), logit));
  ScoredToken token{.token_id = token_id, .logprob = scored(token_id, rank), .top_logprobs = {}};
  if (num_top == 0) return token;
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + num_top, order.end(), is_likelier);
  token.top_logprobs.reserve(static_cast<size_t>(num_top));
  for (int32_t i = 0; i < num_top; ++i) {
    token.top_logprobs.push_back(scored(order[static_cast<size_t>(i)], i + 1));
  }
  return token;
}

}  // namespace caravan
