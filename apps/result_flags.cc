#include "apps/result_flags.h"

#include "core/error.h"
#include "core/json_text.h"
#include "format/checksum.h"

namespace caravan {

void ResultFlags::add_to(CLI::App& command) {
  command.add_option("--output,-o", output,
                     "File for the results, one JSON object a line; - for standard output");
  command.add_flag("--resume", resume,
                   "Continue --output: keep the lines that are there and make the missing ones");
  command.add_flag("--force", force, "Replace an --output that is there");
}

ResultLog::Mode ResultFlags::mode() const {
  CARAVAN_CHECK(!resume || is_file(), "--resume needs --output FILE: the file to continue");
  CARAVAN_CHECK(!resume || !force, "--resume and --force: give one of them");
  if (resume) return ResultLog::Mode::kResume;
  return force ? ResultLog::Mode::kReplace : ResultLog::Mode::kNew;
}

boost::json::object model_settings(const ModelFlags& flags) {
  boost::json::object settings = model_identity(flags.model);
  settings["--dtype"] = flags.dtype;
  settings["--kv-cache-dtype"] = flags.kv_cache_dtype;
  settings["--device"] = flags.device.substr(0, flags.device.find(':'));
  settings["--cpu-isa"] = flags.cpu_isa;
  return settings;
}

std::string line_checksum(const std::string& line) {
  return checksum_text(xxh3({reinterpret_cast<const std::byte*>(line.data()), line.size()}));
}

void ResumedLines::peek() {
  if (has_row_ || is_end_) return;
  std::optional<boost::json::object> row = log_.next_finished();
  is_end_ = !row;
  has_row_ = !is_end_;
  if (row) row_ = std::move(*row);
}

bool ResumedLines::is_empty() {
  peek();
  return !has_row_;
}

ResumedLines::Rows ResumedLines::take(int64_t line, const std::string& checksum) {
  Rows rows;
  for (peek(); has_row_; peek()) {
    const boost::json::value* number = row_.if_contains("line");
    const boost::json::value* made_from = row_.if_contains("input_checksum");
    CARAVAN_CHECK_CODE(
        number != nullptr && number->is_int64() && made_from != nullptr && made_from->is_string(),
        kCorrupt, "{}: no \"line\" and \"input_checksum\": not made by this command", log_.where());
    if (number->get_int64() != line && rows.count > 0) break;
    CARAVAN_CHECK(number->get_int64() == line && made_from->get_string() == checksum,
                  "{}: made from line {} of another --input than line {} of this one: give the "
                  "same file, or another --output",
                  log_.where(), number->get_int64(), line);
    ++rows.count;
    const boost::json::value* reason = row_.if_contains("finish_reason");
    rows.is_refused = rows.is_refused || row_.contains("error");
    rows.has_failed = rows.has_failed || row_.contains("error") ||
                      (reason != nullptr && reason->is_string() && reason->get_string() == "error");
    has_row_ = false;
  }
  return rows;
}

void ResumedLines::finish() {
  CARAVAN_CHECK(is_empty(),
                "{}: made from line {} of another --input, this one ends before: give the same "
                "file, or another --output",
                log_.where(), to_json_text(row_["line"]));
}

}  // namespace caravan
