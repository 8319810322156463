#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "eval/predictions.h"
#include "eval/rouge.h"

namespace caravan {

/// Where two outputs part.
struct FirstDifference {
  size_t position = 0;             // of the token, from 0
  std::optional<int32_t> token_a;  // nothing: this output ended before
  std::optional<int32_t> token_b;
};

/// One article in two files.
struct ComparedArticle {
  std::string name;    // its id, or "line N"
  double score_a = 0;  // ROUGE fmeasure * 100
  double score_b = 0;
  bool is_same_prompt = true;  // also when one file does not tell
  bool is_same_output = true;  // by token ids when both files have them, else by text
  std::optional<FirstDifference> first_difference;  // when both have token ids and they differ

  double difference() const { return score_a - score_b; }
};

/// Matches two prediction files (match_predictions) and scores both sides against the same
/// references. A row's own reference counts, from either file.
/// kind: e.g. &RougeScores::rouge1.
/// Errors: as match_predictions; kInvalidArgument naming the lines when an article has no reference
/// or another one in each file.
std::vector<ComparedArticle> compare_predictions(
    const std::vector<Prediction>& a, const std::string& name_a, const std::vector<Prediction>& b,
    const std::string& name_b, const RougeScorer& scorer, RougeScore RougeScores::*kind);

/// At most `count` indexes of articles with different scores or outputs: largest |difference|
/// first, then in the file's order.
std::vector<size_t> most_moved(const std::vector<ComparedArticle>& articles, size_t count);

}  // namespace caravan
