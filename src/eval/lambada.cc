#include "eval/lambada.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "eval/distributions.h"
#include "sampling/sampler.h"

namespace caravan {

std::pair<std::string_view, std::string_view> split_lambada(std::string_view text) {
  const size_t space = text.rfind(' ');
  if (space == std::string_view::npos) return {"", text};
  const size_t last = text.find_last_not_of(" \t\n\r\f\v", space);
  const size_t split = last == std::string_view::npos ? 0 : last + 1;
  return {text.substr(0, split), text.substr(split)};
}

LambadaItem make_lambada_item(const Tokenizer& tokenizer, std::string_view text, int32_t eos_id,
                              int64_t max_seq_len, const std::string& where) {
  CARAVAN_CHECK(!text.empty(), "{}: the passage is empty", where);
  if (text.find(' ') == std::string_view::npos) {
    return make_lambada_item(tokenizer, " " + std::string(text), eos_id, max_seq_len, where);
  }
  const std::string_view context = split_lambada(text).first;
  std::vector<int32_t> ids = tokenizer.encode(text);
  auto num_context = static_cast<int64_t>(tokenizer.encode(context).size());
  if (num_context == 0 && eos_id >= 0) {
    ids.insert(ids.begin(), eos_id);
    num_context = 1;
  }
  LambadaItem item;
  item.num_target = static_cast<int64_t>(ids.size()) - num_context;
  CARAVAN_CHECK(num_context >= 1 && item.num_target >= 1 && item.num_target <= max_seq_len,
                "{}: {} tokens of context and {} of the last word: expected at least 1 of each and "
                "a word of at most {}",
                where, num_context, item.num_target, max_seq_len);
  const int64_t kept = std::min(static_cast<int64_t>(ids.size()), max_seq_len + 1);
  item.ids.assign(ids.end() - kept, ids.end());
  return item;
}

LambadaReport measure_lambada(Scorer& scorer, std::span<const LambadaItem> items,
                              const std::function<void(int64_t)>& on_progress,
                              std::vector<LambadaResult>* results) {
  CARAVAN_CHECK(!items.empty(), "no passages");
  LambadaReport report;
  report.num_items = static_cast<int64_t>(items.size());
  std::vector<ScoreRequest> requests;
  for (const LambadaItem& item : items) {
    // Nothing is predicted from the last token.
    const std::span<const int32_t> fed = std::span(item.ids).first(item.ids.size() - 1);
    const auto num_fed = static_cast<int64_t>(fed.size());
    requests.push_back({fed, num_fed - item.num_target, num_fed});
    report.num_target_tokens += item.num_target;
    report.num_fed += num_fed;
  }
  std::vector<LambadaResult> all(items.size(), {.log_prob = 0, .is_correct = true});
  std::vector<LambadaResult> tokens;
  scorer.run(requests, [&](std::span<const LogitsRow> rows) {
    const auto target_of = [&](const LogitsRow& row) {
      return items[static_cast<size_t>(row.request)].ids[static_cast<size_t>(row.row + 1)];
    };
    tokens.resize(rows.size());
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < rows.size(); ++i) {
      const int32_t target = target_of(rows[i]);
      const double logit = rows[i].logits[static_cast<size_t>(target)];
      tokens[i] = {.log_prob = logit - logsumexp(rows[i].logits),
                   .is_correct = argmax(rows[i].logits) == target};
    }
    int64_t num_done = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto index = static_cast<size_t>(rows[i].request);
      all[index].log_prob += tokens[i].log_prob;
      all[index].is_correct = all[index].is_correct && tokens[i].is_correct;
      if (rows[i].row + 1 == requests[index].end_row) ++num_done;
    }
    if (on_progress && num_done > 0) on_progress(num_done);
  });
  BlockMean correct, log_prob;
  for (const LambadaResult& result : all) {
    report.num_correct += result.is_correct ? 1 : 0;
    correct.add(result.is_correct ? 1 : 0, 1);
    log_prob.add(result.log_prob, 1);
  }
  report.accuracy = correct.mean();
  report.log_prob = log_prob.mean();
  report.perplexity = exp_of({-report.log_prob.value, report.log_prob.standard_error});
  if (results != nullptr) *results = std::move(all);
  return report;
}

boost::json::object lambada_json(const LambadaReport& report) {
  return {{"num_items", report.num_items},
          {"num_correct", report.num_correct},
          {"num_target_tokens", report.num_target_tokens},
          {"num_fed", report.num_fed},
          {"accuracy", estimate_json(report.accuracy)},
          {"log_prob", estimate_json(report.log_prob)},
          {"perplexity", estimate_json(report.perplexity)}};
}

}  // namespace caravan
