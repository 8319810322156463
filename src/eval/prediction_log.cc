#include "eval/prediction_log.h"

#include <filesystem>

#include "core/error.h"

namespace caravan {

PredictionLog::PredictionLog(const std::string& path, Mode mode, const ResultSettings& settings,
                             std::span<const SummaryItem> items) {
  if (path.empty()) return;
  log_.emplace(path, mode, settings);
  if (mode == Mode::kResume) resume(path, items);
}

void PredictionLog::resume(const std::string& path, std::span<const SummaryItem> items) {
  while (log_->next_finished()) {
  }
  if (!std::filesystem::exists(path) || std::filesystem::file_size(path) == 0) return;
  finished_ = read_predictions(path);
  CARAVAN_CHECK(finished_.size() <= items.size(), "{}: {} lines, this run has {} articles", path,
                finished_.size(), items.size());
  for (size_t i = 0; i < finished_.size(); ++i) {
    CARAVAN_CHECK(finished_[i].prompt_ids == items[i].prompt_ids,
                  "{}:{}: its prompt is not that of article {} (\"{}\"): the data set is another",
                  path, finished_[i].line, items[i].index, printable(items[i].id));
  }
}

void PredictionLog::append(const SummaryItem& item, const Prediction& prediction) {
  if (!log_) return;
  boost::json::object row = to_json(prediction);
  if (!item.hf_prompt_ids.empty()) {
    row["hf_prompt_ids"] = boost::json::value_from(item.hf_prompt_ids);
  }
  log_->append(std::move(row));
}

}  // namespace caravan
