#include "eval/score.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "eval/distributions.h"

namespace caravan {

namespace {

std::vector<std::pair<int32_t, float>> most_likely(std::span<const float> logits, int count) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto kept = std::min(static_cast<size_t>(count), ids.size());
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(kept), ids.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)];
                      const float y = logits[static_cast<size_t>(b)];
                      if (std::isnan(x) || std::isnan(y)) {  // last, so that the order is one
                        return std::isnan(x) == std::isnan(y) ? a < b : std::isnan(y);
                      }
                      return x > y || (x == y && a < b);
                    });
  std::vector<std::pair<int32_t, float>> top;
  for (size_t i = 0; i < kept; ++i) top.emplace_back(ids[i], logits[static_cast<size_t>(ids[i])]);
  return top;
}

}  // namespace

Scorer::Scorer(ModelRunner& runner) : runner_(runner), batch_(runner.cache().block_size()) {
  const int64_t num_blocks = runner.cache().num_blocks();
  const int64_t blocks_per_seq =
      std::min(num_blocks, ceil_div(runner.max_seq_len(), runner.cache().block_size()));
  const int64_t num_seqs =
      std::min(num_blocks / blocks_per_seq, runner.model().limits().max_num_seqs);
  block_tables_.resize(static_cast<size_t>(num_seqs));
  int32_t next = 0;
  for (std::vector<int32_t>& table : block_tables_) {
    table.resize(static_cast<size_t>(blocks_per_seq));
    std::iota(table.begin(), table.end(), next);
    next += static_cast<int32_t>(blocks_per_seq);
  }
}

void Scorer::check(const ScoreRequest& request) const {
  const int64_t vocab_size = runner_.model().config().vocab_size;
  const auto num_tokens = static_cast<int64_t>(request.ids.size());
  CARAVAN_CHECK(num_tokens >= 1 && num_tokens <= runner_.max_seq_len(),
                "{} tokens to score, expected 1 to {}", num_tokens, runner_.max_seq_len());
  for (const int32_t id : request.ids) {
    CARAVAN_CHECK(id >= 0 && id < vocab_size, "token id {} is outside the vocabulary of {}", id,
                  vocab_size);
  }
  CARAVAN_CHECK(0 <= request.first_row && request.first_row <= request.end_row &&
                    request.end_row <= num_tokens,
                "rows {} to {} of {} tokens are wanted", request.first_row, request.end_row,
                num_tokens);
}

void Scorer::run(std::span<const ScoreRequest> requests, const OnRows& on_rows) {
  for (const ScoreRequest& request : requests) check(request);
  const int64_t max_step = runner_.model().limits().max_num_tokens;
  std::vector<WantedRow> wanted;
  size_t next = 0;   // the first request that is not done
  int64_t done = 0;  // its tokens that are in the cache
  while (next < requests.size()) {
    batch_.clear();
    wanted.clear();
    // Only the last sequence of a step can be cut, so the requests from `next` on are in the cache
    // one after the other and never more of them than there are tables.
    const size_t last = std::min(requests.size(), next + block_tables_.size());
    while (next < last && batch_.num_tokens() < max_step) {
      const ScoreRequest& request = requests[next];
      const auto num_tokens = static_cast<int64_t>(request.ids.size());
      const int64_t count = std::min(num_tokens - done, max_step - batch_.num_tokens());
      const int64_t offset = batch_.num_tokens() - done;
      for (int64_t row = std::max(request.first_row, done);
           row < std::min(request.end_row, done + count); ++row) {
        wanted.push_back({static_cast<int64_t>(next), row, static_cast<int32_t>(offset + row)});
      }
      batch_.add_sequence(request.ids.data() + done, count, done,
                          block_tables_[next % block_tables_.size()], LogitsWanted::kNone);
      done += count;
      if (done < num_tokens) break;
      ++next;
      done = 0;
    }
    runner_.forward(batch_);
    give_rows(wanted, on_rows);
  }
}

void Scorer::give_rows(std::span<const WantedRow> wanted, const OnRows& on_rows) {
  const auto vocab_size = static_cast<size_t>(runner_.model().config().vocab_size);
  const auto max_rows = static_cast<size_t>(runner_.max_num_logits());
  std::vector<int32_t> batch_rows;
  std::vector<LogitsRow> rows;
  while (!wanted.empty()) {
    const auto part = wanted.first(std::min(max_rows, wanted.size()));
    wanted = wanted.subspan(part.size());
    batch_rows.clear();
    for (const WantedRow& w : part) batch_rows.push_back(w.batch_row);
    const std::span<const float> logits = runner_.logits(batch_rows);
    rows.clear();
    for (size_t i = 0; i < part.size(); ++i) {
      rows.push_back({part[i].request, part[i].row, logits.subspan(i * vocab_size, vocab_size)});
    }
    on_rows(rows);
  }
}

Score Scorer::score(std::span<const int32_t> ids, int num_top, const OnLogits& on_logits) {
  const auto num_tokens = static_cast<int64_t>(ids.size());
  Score score;
  score.num_scored = num_tokens - 1;
  std::vector<double> logsumexps;
  const ScoreRequest request{ids, 0, num_tokens};
  run({&request, 1}, [&](std::span<const LogitsRow> rows) {
    logsumexps.resize(rows.size());
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows.size(); ++i) logsumexps[i] = logsumexp(rows[i].logits);
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto [unused, position, logits] = rows[i];
      if (on_logits) on_logits(position, logits);
      if (position + 1 < num_tokens) {
        const auto next = static_cast<size_t>(ids[static_cast<size_t>(position + 1)]);
        score.nll += logsumexps[i] - static_cast<double>(logits[next]);
      } else {
        score.last_top = most_likely(logits, num_top);
        score.last_logsumexp = logsumexps[i];
      }
    }
  });
  return score;
}

}  // namespace caravan
