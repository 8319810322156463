#pragma once

#include <string>

#include "core/json.h"
#include "eval/rouge.h"

namespace caravan {

/// {"rouge1": {"precision", "recall", "fmeasure"}, ...}, shares from 0 to 1.
boost::json::object rouge_to_json(const RougeScores& scores);
/// {"rouge1": {"low": {"precision", "recall", "fmeasure"}, "mid": ..., "high": ...}, ...}
boost::json::object rouge_to_json(const RougeIntervals& intervals);

/// A heading and a line for each kind, times 100: F with its interval, precision, recall.
std::string rouge_table(const RougeIntervals& intervals);

}  // namespace caravan
