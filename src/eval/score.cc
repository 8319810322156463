#include "eval/score.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace caravan {

double logsumexp(std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return static_cast<double>(largest) + std::log(sum);
}

namespace {

std::vector<std::pair<int32_t, float>> most_likely(std::span<const float> logits, int count) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto kept = std::min(static_cast<size_t>(count), ids.size());
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(kept), ids.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)];
                      const float y = logits[static_cast<size_t>(b)];
                      return x > y || (x == y && a < b);
                    });
  std::vector<std::pair<int32_t, float>> top;
  for (size_t i = 0; i < kept; ++i) top.emplace_back(ids[i], logits[static_cast<size_t>(ids[i])]);
  return top;
}

}  // namespace

Scorer::Scorer(ModelRunner& runner) : runner_(runner), batch_(runner.cache().block_size()) {
  block_table_.resize(static_cast<size_t>(std::min(
      runner.cache().num_blocks(), ceil_div(runner.max_seq_len(), runner.cache().block_size()))));
  std::iota(block_table_.begin(), block_table_.end(), 0);
  logsumexps_.resize(static_cast<size_t>(runner.max_num_logits()));
}

Score Scorer::score(std::span<const int32_t> ids, int num_top, const OnLogits& on_logits) {
  const int64_t vocab_size = runner_.model().config().vocab_size;
  const auto num_tokens = static_cast<int64_t>(ids.size());
  CARAVAN_CHECK(num_tokens >= 1 && num_tokens <= runner_.max_seq_len(),
                "{} tokens to score, expected 1 to {}", num_tokens, runner_.max_seq_len());
  for (const int32_t id : ids) {
    CARAVAN_CHECK(id >= 0 && id < vocab_size, "token id {} is outside the vocabulary of {}", id,
                  vocab_size);
  }
  Score score;
  score.num_scored = num_tokens - 1;
  const int64_t max_step = runner_.model().limits().max_num_tokens;
  for (int64_t begin = 0; begin < num_tokens; begin += max_step) {
    const int64_t count = std::min(max_step, num_tokens - begin);
    batch_.clear();
    batch_.add_sequence(ids.data() + begin, count, begin, block_table_, false);
    runner_.forward(batch_);
    for (int64_t row = 0; row < count; row += runner_.max_num_logits()) {
      const int64_t num_rows = std::min(runner_.max_num_logits(), count - row);
      const std::span<const float> logits = runner_.logits(row, num_rows);
      const auto row_of = [&](int64_t i) {
        return logits.subspan(static_cast<size_t>(i * vocab_size), static_cast<size_t>(vocab_size));
      };
#pragma omp parallel for schedule(static)
      for (int64_t i = 0; i < num_rows; ++i) {
        logsumexps_[static_cast<size_t>(i)] = logsumexp(row_of(i));
      }
      for (int64_t i = 0; i < num_rows; ++i) {
        const int64_t position = begin + row + i;
        const std::span<const float> one = row_of(i);
        if (on_logits) on_logits(position, one);
        if (position + 1 < num_tokens) {
          const auto next = static_cast<size_t>(ids[static_cast<size_t>(position + 1)]);
          score.nll += logsumexps_[static_cast<size_t>(i)] - static_cast<double>(one[next]);
        } else {
          score.last_top = most_likely(one, num_top);
          score.last_logsumexp = logsumexps_[static_cast<size_t>(i)];
        }
      }
    }
  }
  return score;
}

}  // namespace caravan
