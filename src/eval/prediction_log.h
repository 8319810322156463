#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/predictions.h"
#include "eval/result_log.h"

namespace caravan {

/// One article as it goes to the model.
struct SummaryItem {
  std::string id;
  int64_t index = 0;  // place in the data set
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> hf_prompt_ids;  // with --compat only: what the other side was given
  int64_t num_dropped_tokens = 0;
  std::string reference;  // the data set's summary
};

/// A predictions file (eval/predictions.h) that grows by one line for each finished article and can
/// be continued. Each line carries the settings it was made with ("settings"), and
/// "hf_prompt_ids" when there are any.
class PredictionLog {
 public:
  using Mode = ResultLog::Mode;

  /// path "": nothing is written; the modes are ResultLog's. kResume takes the lines of the file as
  /// the predictions of the first items, in order.
  /// Errors: those of ResultLog; kInvalidArgument when the file was written for other items.
  PredictionLog(const std::string& path, Mode mode, const ResultSettings& settings,
                std::span<const SummaryItem> items);

  /// Of the first items, from the file that is continued.
  const std::vector<Prediction>& finished() const { return finished_; }

  /// Writes one line and flushes it. Errors: kIo.
  void append(const SummaryItem& item, const Prediction& prediction);

 private:
  void resume(const std::string& path, std::span<const SummaryItem> items);

  std::vector<Prediction> finished_;
  std::optional<ResultLog> log_;
};

}  // namespace caravan
