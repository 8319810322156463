#include "apps/rouge_report.h"

#include <fmt/core.h>

namespace caravan {

namespace {

boost::json::object score_to_json(const RougeScore& score) {
  return {{"precision", score.precision}, {"recall", score.recall}, {"fmeasure", score.fmeasure}};
}

}  // namespace

boost::json::object rouge_to_json(const RougeScores& scores) {
  boost::json::object out;
  for (const auto& [name, member] : kRougeKinds<RougeScore>) {
    out[name] = score_to_json(scores.*member);
  }
  return out;
}

boost::json::object rouge_to_json(const RougeIntervals& intervals) {
  boost::json::object out;
  for (const auto& [name, member] : kRougeKinds<RougeInterval>) {
    const RougeInterval& at = intervals.*member;
    out[name] = boost::json::object{{"low", score_to_json(at.low)},
                                    {"mid", score_to_json(at.mid)},
                                    {"high", score_to_json(at.high)}};
  }
  return out;
}

std::string rouge_table(const RougeIntervals& intervals) {
  std::string text = fmt::format("{:<10} {:>28} {:>12} {:>12}\n", "", "fmeasure [low, high]",
                                 "precision", "recall");
  for (const auto& [name, member] : kRougeKinds<RougeInterval>) {
    const RougeInterval& at = intervals.*member;
    text += fmt::format("{:<10} {:>8.4f} [{:>7.4f}, {:>7.4f}] {:>12.4f} {:>12.4f}\n", name,
                        100 * at.mid.fmeasure, 100 * at.low.fmeasure, 100 * at.high.fmeasure,
                        100 * at.mid.precision, 100 * at.mid.recall);
  }
  return text;
}

}  // namespace caravan
