#include "eval/prediction_comparison.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace caravan {

namespace {

const std::string& reference_of(const Prediction& a, const std::string& name_a, const Prediction& b,
                                const std::string& name_b) {
  CARAVAN_CHECK(a.reference || b.reference,
                "{}:{}: no member \"reference\", nor in {}:{}: give --references FILE", name_a,
                a.line, name_b, b.line);
  CARAVAN_CHECK(!a.reference || !b.reference || *a.reference == *b.reference,
                "{}:{} and {}:{} have different references: give the right ones with --references "
                "FILE",
                name_a, a.line, name_b, b.line);
  return a.reference ? *a.reference : *b.reference;
}

std::optional<FirstDifference> first_difference(const std::vector<int32_t>& a,
                                                const std::vector<int32_t>& b) {
  const auto [at_a, at_b] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  if (at_a == a.end() && at_b == b.end()) return std::nullopt;
  FirstDifference first{static_cast<size_t>(at_a - a.begin()), std::nullopt, std::nullopt};
  if (at_a != a.end()) first.token_a = *at_a;
  if (at_b != b.end()) first.token_b = *at_b;
  return first;
}

}  // namespace

std::vector<ComparedArticle> compare_predictions(
    const std::vector<Prediction>& a, const std::string& name_a, const std::vector<Prediction>& b,
    const std::string& name_b, const RougeScorer& scorer, RougeScore RougeScores::*kind) {
  std::vector<ComparedArticle> articles;
  for (const auto& [i, j] : match_predictions(a, name_a, b, name_b)) {
    const std::string& reference = reference_of(a[i], name_a, b[j], name_b);
    ComparedArticle& article = articles.emplace_back();
    article.name = a[i].id.empty() ? fmt::format("line {}", a[i].line) : a[i].id;
    article.score_a = 100 * (scorer.score(reference, a[i].text).*kind).fmeasure;
    article.score_b = 100 * (scorer.score(reference, b[j].text).*kind).fmeasure;
    article.is_same_prompt =
        !a[i].prompt_ids || !b[j].prompt_ids || *a[i].prompt_ids == *b[j].prompt_ids;
    if (a[i].output_ids && b[j].output_ids) {
      article.first_difference = first_difference(*a[i].output_ids, *b[j].output_ids);
      article.is_same_output = !article.first_difference;
    } else {
      article.is_same_output = a[i].text == b[j].text;
    }
  }
  return articles;
}

std::vector<size_t> most_moved(const std::vector<ComparedArticle>& articles, size_t count) {
  std::vector<size_t> moved;
  for (size_t i = 0; i < articles.size(); ++i) {
    if (!articles[i].is_same_output || articles[i].difference() != 0) moved.push_back(i);
  }
  std::stable_sort(moved.begin(), moved.end(), [&](size_t x, size_t y) {
    return std::abs(articles[x].difference()) > std::abs(articles[y].difference());
  });
  moved.resize(std::min(count, moved.size()));
  return moved;
}

}  // namespace caravan
