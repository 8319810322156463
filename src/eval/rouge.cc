#include "eval/rouge.h"

#include <algorithm>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/keyed_hash.h"
#include "eval/lcs.h"
#include "eval/numpy_random.h"
#include "eval/quantile.h"
#include "eval/rouge_tokenizer.h"

namespace caravan {

namespace {

using Tokens = std::vector<int32_t>;

/// Numbers words in order of appearance.
class Vocabulary {
 public:
  Tokens ids(const std::vector<std::string>& words) {
    Tokens out;
    out.reserve(words.size());
    for (const std::string& word : words) {
      out.push_back(ids_.emplace(word, static_cast<int32_t>(ids_.size())).first->second);
    }
    return out;
  }
  size_t size() const { return ids_.size(); }

 private:
  KeyedMap<std::string, int32_t> ids_;
};

/// The tokens of the lines of a text that have any, and all of them in order.
struct TokenizedText {
  std::vector<Tokens> lines;
  Tokens all;
};

TokenizedText tokenize(std::string_view text, bool use_stemmer, Vocabulary& vocabulary) {
  TokenizedText out;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    Tokens line = vocabulary.ids(rouge_tokenize(text.substr(0, end), use_stemmer));
    out.all.insert(out.all.end(), line.begin(), line.end());
    if (!line.empty()) out.lines.push_back(std::move(line));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

double divide(int64_t count, size_t total) {
  return static_cast<double>(count) / static_cast<double>(total);
}

/// The score of `overlap` units found among num_target and num_prediction; 0 where one has none.
RougeScore score_of(int64_t overlap, size_t num_target, size_t num_prediction) {
  if (num_target == 0 || num_prediction == 0) return {};
  RougeScore score{divide(overlap, num_prediction), divide(overlap, num_target), 0};
  const double sum = score.precision + score.recall;
  if (sum > 0) score.fmeasure = 2 * score.precision * score.recall / sum;
  return score;
}

/// n-grams as numbers, sorted; n is 1 or 2.
std::vector<uint64_t> sorted_ngrams(const Tokens& tokens, size_t n) {
  std::vector<uint64_t> out;
  for (size_t i = 0; i + n <= tokens.size(); ++i) {
    const uint64_t second = n == 2 ? static_cast<uint64_t>(tokens[i + 1]) : 0;
    out.push_back(static_cast<uint64_t>(tokens[i]) << 32 | second);
  }
  std::sort(out.begin(), out.end());
  return out;
}

RougeScore score_ngrams(const Tokens& target, const Tokens& prediction, size_t n) {
  const std::vector<uint64_t> a = sorted_ngrams(target, n);
  const std::vector<uint64_t> b = sorted_ngrams(prediction, n);
  int64_t overlap = 0;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    if (a[i] == b[j]) ++overlap;
    const bool steps_a = a[i] <= b[j];
    const bool steps_b = b[j] <= a[i];
    i += steps_a;
    j += steps_b;
  }
  return score_of(overlap, a.size(), b.size());
}

/// Each word counts as often as it is in both texts at most (ROUGE-1.5.5; the paper's formula would
/// count it once for every line).
RougeScore score_lsum(const TokenizedText& target, const TokenizedText& prediction,
                      size_t vocabulary_size) {
  std::vector<int64_t> left(vocabulary_size);  // in both texts and not counted yet
  {
    std::vector<int64_t> in_prediction(vocabulary_size);
    for (const int32_t token : target.all) ++left[static_cast<size_t>(token)];
    for (const int32_t token : prediction.all) ++in_prediction[static_cast<size_t>(token)];
    for (size_t i = 0; i < vocabulary_size; ++i) left[i] = std::min(left[i], in_prediction[i]);
  }
  int64_t num_hits = 0;
  for (const Tokens& line : target.lines) {
    Lcs lcs(line);
    std::vector<bool> is_in(line.size());
    for (const Tokens& other : prediction.lines) lcs.mark(other, is_in);
    for (size_t i = 0; i < line.size(); ++i) {
      int64_t& rest = left[static_cast<size_t>(line[i])];
      if (!is_in[i] || rest == 0) continue;
      --rest;
      ++num_hits;
    }
  }
  return score_of(num_hits, target.all.size(), prediction.all.size());
}

using Measure = double RougeScore::*;
constexpr std::array<Measure, 3> kMeasures{&RougeScore::precision, &RougeScore::recall,
                                           &RougeScore::fmeasure};

RougeInterval aggregate(std::span<const RougeScores> scores, RougeScore RougeScores::*kind,
                        std::mt19937& random, const RougeBootstrap& options) {
  const size_t n = scores.size();
  std::vector<RougeScore> column(n);
  for (size_t i = 0; i < n; ++i) column[i] = scores[i].*kind;
  std::array<std::vector<double>, 3> means;  // of kMeasures
  for (int sample = 0; sample < options.num_samples; ++sample) {
    RougeScore sum;  // one addition after the other, as NumPy reduces rows
    for (size_t i = 0; i < n; ++i) {
      const RougeScore& drawn = column[random_index(random, n)];
      for (const Measure m : kMeasures) sum.*m += drawn.*m;
    }
    for (size_t m = 0; m < means.size(); ++m) {
      means[m].push_back(sum.*kMeasures[m] / static_cast<double>(n));
    }
  }
  // The detour over percent is NumPy's too: its rounding moves the last bit.
  const double tail = (1 - options.confidence) / 2;
  RougeInterval interval;
  for (size_t m = 0; m < means.size(); ++m) {
    std::sort(means[m].begin(), means[m].end());
    interval.low.*kMeasures[m] = sorted_quantile(means[m], 100 * tail / 100);
    interval.mid.*kMeasures[m] = sorted_quantile(means[m], 0.5);
    interval.high.*kMeasures[m] = sorted_quantile(means[m], 100 * (1 - tail) / 100);
  }
  return interval;
}

}  // namespace

RougeScores RougeScorer::score(std::string_view target, std::string_view prediction) const {
  Vocabulary vocabulary;
  const TokenizedText t = tokenize(target, use_stemmer_, vocabulary);
  const TokenizedText p = tokenize(prediction, use_stemmer_, vocabulary);
  return {.rouge1 = score_ngrams(t.all, p.all, 1),
          .rouge2 = score_ngrams(t.all, p.all, 2),
          .rougeL = score_of(Lcs(t.all).length(p.all), t.all.size(), p.all.size()),
          .rougeLsum = score_lsum(t, p, vocabulary.size())};
}

RougeIntervals aggregate_rouge(std::span<const RougeScores> scores, uint32_t seed,
                               const RougeBootstrap& options) {
  std::mt19937 random(seed);
  return aggregate_rouge(scores, random, options);
}

RougeIntervals aggregate_rouge(std::span<const RougeScores> scores, std::mt19937& random,
                               const RougeBootstrap& options) {
  CARAVAN_CHECK(!scores.empty(), "aggregate_rouge: there are no scores");
  CARAVAN_CHECK(options.num_samples > 0, "aggregate_rouge: num_samples is {}, expected at least 1",
                options.num_samples);
  CARAVAN_CHECK(options.confidence >= 0 && options.confidence <= 1,
                "aggregate_rouge: confidence is {}, expected 0 to 1", options.confidence);
  RougeIntervals out;
  for (size_t k = 0; k < kRougeKinds<RougeScore>.size(); ++k) {
    out.*kRougeKinds<RougeInterval>[k].member =
        aggregate(scores, kRougeKinds<RougeScore>[k].member, random, options);
  }
  return out;
}

}  // namespace caravan
