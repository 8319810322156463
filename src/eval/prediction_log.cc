#include "eval/prediction_log.h"

#include <cerrno>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "core/log.h"
#include "core/mapped_file.h"

namespace caravan {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFileBytes = size_t{4} << 30;

/// "settings" of one line.
std::string settings_of(std::string_view line, const std::string& where) {
  const boost::json::value value = parse_json(line, where);
  const boost::json::value* settings =
      value.is_object() ? value.get_object().if_contains("settings") : nullptr;
  CARAVAN_CHECK_CODE(settings != nullptr && settings->is_string(), kCorrupt,
                     "{}: no \"settings\": not a file that `caravan summarize` wrote", where);
  return {settings->get_string().data(), settings->get_string().size()};
}

}  // namespace

PredictionLog::PredictionLog(const std::string& path, Mode mode, const std::string& settings_digest,
                             std::span<const SummaryItem> items)
    : path_(path), digest_(settings_digest) {
  if (path_.empty()) return;
  const bool exists = fs::exists(path_);
  CARAVAN_CHECK(!exists || mode != Mode::kNew,
                "{}: exists already: --resume continues it, --force replaces it", path_);
  if (exists && mode == Mode::kResume) resume(items);
  file_.open(path_, mode == Mode::kResume ? std::ios::app | std::ios::binary
                                          : std::ios::trunc | std::ios::binary);
  CARAVAN_CHECK_CODE(file_.is_open(), kIo, "{}: cannot write: {}", path_,
                     std::generic_category().message(errno));
}

void PredictionLog::resume(std::span<const SummaryItem> items) {
  const std::string text = read_text_file(path_, kMaxFileBytes);
  const size_t whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
  std::string_view rest(text.data(), whole);
  for (size_t i = 0; !rest.empty(); ++i) {
    const std::string where = fmt::format("{}:{}", path_, i + 1);
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(line.size() + 1);
    const std::string settings = settings_of(line, where);
    CARAVAN_CHECK(settings == digest_,
                  "{}: made with other settings ({}, now {}): use the same model and flags, or "
                  "another --output",
                  where, printable(settings), digest_);
  }
  if (whole < text.size()) {
    log_warning("{}: its last line is unfinished and is made again", path_);
    std::error_code error;
    fs::resize_file(path_, whole, error);
    CARAVAN_CHECK_CODE(!error, kIo, "{}: {}", path_, error.message());
  }
  if (whole == 0) return;
  finished_ = read_predictions(path_);
  CARAVAN_CHECK(finished_.size() <= items.size(), "{}: {} lines, this run has {} articles", path_,
                finished_.size(), items.size());
  for (size_t i = 0; i < finished_.size(); ++i) {
    CARAVAN_CHECK(finished_[i].prompt_ids == items[i].prompt_ids,
                  "{}:{}: its prompt is not that of article {} (\"{}\"): the data set is another",
                  path_, finished_[i].line, items[i].index, printable(items[i].id));
  }
}

void PredictionLog::append(const SummaryItem& item, const Prediction& prediction) {
  if (path_.empty()) return;
  boost::json::object row = to_json(prediction);
  row["settings"] = digest_;
  if (!item.hf_prompt_ids.empty()) {
    row["hf_prompt_ids"] = boost::json::value_from(item.hf_prompt_ids);
  }
  file_ << to_json_text(row) << '\n' << std::flush;
  CARAVAN_CHECK_CODE(file_.good(), kIo, "{}: write failed: {}", path_,
                     std::generic_category().message(errno));
}

}  // namespace caravan
