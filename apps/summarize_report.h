#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "eval/summarize.h"

namespace caravan {

/// What `caravan summarize` says at its end.
struct SummarizeReport {
  std::string model;    // directory
  std::string device;   // Llm::description()
  std::string dataset;  // path
  SummarizeRun run;
  int64_t batch_size = 0;
  int64_t num_articles_cut = 0;
  int64_t num_dropped_tokens = 0;
  RougeIntervals rouge;
  std::string reference;  // path of the other side's predictions, "" for none
  std::optional<RougeIntervals> reference_rouge;
  std::optional<SummaryAgreement> agreement;
  std::optional<double> threshold;  // of --check-accuracy

  double rouge1() const { return 100 * rouge.rouge1.mid.fmeasure; }
  /// One-sided and strict, as in 2023.
  bool is_accurate() const { return !threshold || rouge1() > *threshold; }
};

/// Lines of text for stdout.
std::string summarize_text(const SummarizeReport& report);
boost::json::object summarize_json(const SummarizeReport& report);

}  // namespace caravan
