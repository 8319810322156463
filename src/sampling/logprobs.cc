#include "sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace caravan {

ScoredToken score_token(std::span<const float> logits, int32_t token_id, int32_t num_top) {
  const auto vocab_size = static_cast<int32_t>(logits.size());
  CARAVAN_CHECK_CODE(
      token_id >= 0 && token_id < vocab_size && num_top >= 0 && num_top <= vocab_size, kInternal,
      "token {} and {} more of a vocabulary of {} are to be scored", token_id, num_top, vocab_size);
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const double log_sum = std::log(sum);
  const auto is_likelier = [&](int32_t a, int32_t b) {
    const float left = logits[static_cast<size_t>(a)];
    const float right = logits[static_cast<size_t>(b)];
    return left > right || (left == right && a < b);
  };
  const auto scored = [&](int32_t id, int32_t rank) {
    const double logprob = static_cast<double>(logits[static_cast<size_t>(id)]) - largest - log_sum;
    return TokenLogprob{id, static_cast<float>(logprob), rank};
  };
  int32_t rank = 1;
  for (int32_t id = 0; id < vocab_size; ++id) rank += is_likelier(id, token_id) ? 1 : 0;
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
