#pragma once

#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "eval/predictions.h"

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
/// be continued. Each line carries the digest of the settings it was made with ("settings"), and
/// "hf_prompt_ids" when there are any.
class PredictionLog {
 public:
  enum class Mode { kNew, kReplace, kResume };

  /// path "": nothing is written. kNew refuses a file that is there. kResume takes the lines of the
  /// file (an unfinished last line is cut off; no file: nothing is done yet) as the predictions of
  /// the first items, in order.
  /// Errors: kIo; kInvalidArgument when the file exists (kNew), was written with other settings or
  /// for other items; kCorrupt.
  PredictionLog(const std::string& path, Mode mode, const std::string& settings_digest,
                std::span<const SummaryItem> items);

  /// Of the first items, from the file that is continued.
  const std::vector<Prediction>& finished() const { return finished_; }

  /// Writes one line and flushes it. Errors: kIo.
  void append(const SummaryItem& item, const Prediction& prediction);

 private:
  void resume(std::span<const SummaryItem> items);

  std::string path_;
  std::string digest_;
  std::vector<Prediction> finished_;
  std::ofstream file_;
};

}  // namespace caravan
