#include "eval/result_log.h"

#include <filesystem>
#include <map>
#include <system_error>

#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "core/mapped_file.h"
#include "format/checksum.h"

namespace caravan {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxLineBytes = size_t{1} << 30;

uint64_t hash(std::string_view text) {
  return xxh3({reinterpret_cast<const std::byte*>(text.data()), text.size()});
}

/// "settings" of one line.
std::string settings_of(const boost::json::object& row, const std::string& where) {
  const boost::json::value* settings = row.if_contains("settings");
  CARAVAN_CHECK_CODE(settings != nullptr && settings->is_string(), kCorrupt,
                     "{}: no \"settings\": not a line of results that caravan wrote to a file",
                     where);
  return {settings->get_string().data(), settings->get_string().size()};
}

boost::json::object parse_row(std::string_view line, const std::string& where) {
  boost::json::value value = parse_json(line, where);
  CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: expected a JSON object", where);
  return std::move(value.get_object());
}

}  // namespace

ResultSettings::ResultSettings(const boost::json::object& settings) {
  const std::string all = to_json_text(settings);
  text_ = checksum_text(hash(all)) + "-";
  for (const auto& member : settings) {
    text_ += fmt::format("{:02x}", hash(to_json_text(member.value())) & 0xff);
    names_.append(member.key().data(), member.key().size()).append("\n");
  }
}

std::string ResultSettings::changed(std::string_view text) const {
  if (text.size() != text_.size()) return "";
  std::string changed;
  size_t begin = 0;
  for (size_t i = text_.find('-') + 1; i < text_.size(); i += 2) {
    const size_t end = names_.find('\n', begin);
    if (text.substr(i, 2) != std::string_view(text_).substr(i, 2)) {
      changed += (changed.empty() ? "" : ", ") + names_.substr(begin, end - begin);
    }
    begin = end + 1;
  }
  return changed;
}

boost::json::object model_identity(const std::string& directory) {
  constexpr size_t kMaxConfigBytes = size_t{64} << 20;
  std::map<std::string, int64_t> weights;
  boost::json::object tokenizer;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    const std::string suffix = entry.path().extension().string();
    if (suffix != ".safetensors" && suffix != ".bin") continue;
    weights[entry.path().filename().string()] = static_cast<int64_t>(entry.file_size());
  }
  for (const char* name : {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json",
                           "special_tokens_map.json", "tokenizer_config.json"}) {
    std::error_code error;
    const auto size = fs::file_size(fs::path(directory) / name, error);
    if (!error) tokenizer[name] = size;
  }
  boost::json::object files;
  for (const auto& [name, size] : weights) files[name] = size;
  return {{"the model's config.json", read_text_file(directory + "/config.json", kMaxConfigBytes)},
          {"the model's weight files", std::move(files)},
          {"the model's tokenizer files", std::move(tokenizer)}};
}

ResultLog::ResultLog(const std::string& path, Mode mode, ResultSettings settings,
                     const std::string& input)
    : mode_(mode), settings_(std::move(settings)) {
  const bool is_standard = path.empty() || path == "-";
  CARAVAN_CHECK(!is_standard || mode_ != Mode::kResume,
                "--resume needs --output FILE: the file to continue");
  if (!is_standard) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    CARAVAN_CHECK(!fs::is_directory(status), "{}: is a directory, expected a file to write", path);
    CARAVAN_CHECK(!fs::is_regular_file(status) || mode_ != Mode::kNew,
                  "{}: exists already: --resume continues it, --force replaces it", path);
  }
  file_ = std::make_unique<AppendFile>(path);
  if (!file_->is_regular()) {
    CARAVAN_CHECK(mode_ != Mode::kResume,
                  "{}: not a regular file, so --resume cannot know what is in it", path);
    return;
  }
  CARAVAN_CHECK(input.empty() || input == "-" || !file_->is_same_as(input),
                "{}: the file that is read, expected another one to write", path);
  file_->lock();
  if (mode_ == Mode::kReplace) check_replaceable();
  if (mode_ == Mode::kResume) {
    check_first_line();
    if (file_->cut_unfinished_line()) {
      log_warning("{}: its last line is unfinished and is made again", path);
    }
    finished_ = std::make_unique<LineReader>(path);
  }
}

/// A file of results or an empty one, so that a wrong name costs nobody a file.
void ResultLog::check_replaceable() const {
  LineReader reader(file_->path());
  std::string line;
  if (!reader.next(line, kMaxLineBytes)) return;
  bool is_ours = false;
  try {
    is_ours = parse_row(line, file_->path()).contains("settings");
  } catch (const Error&) {
  }
  CARAVAN_CHECK(is_ours,
                "{}: not a file of results that caravan wrote: --force replaces no other; remove "
                "it, or choose another --output",
                file_->path());
}

void ResultLog::check_settings(const boost::json::object& row, const std::string& where) const {
  const std::string settings = settings_of(row, where);
  if (settings == settings_.text()) return;
  const std::string changed = settings_.changed(settings);
  CARAVAN_FAIL(kInvalidArgument,
               "{}: made with other settings ({}): use the same model and flags, or another "
               "--output",
               where,
               changed.empty() ? fmt::format("{}, now {}", printable(settings), settings_.text())
                               : changed + " changed");
}

/// Before anything of the file is changed.
void ResultLog::check_first_line() const {
  LineReader reader(file_->path());
  std::string line;
  if (!reader.next(line, kMaxLineBytes)) return;
  boost::json::object row;
  try {
    row = parse_row(line, reader.where());
  } catch (const Error&) {
    return;  // unfinished, or next_finished() says what is wrong
  }
  check_settings(row, reader.where());
}

std::optional<boost::json::object> ResultLog::next_finished() {
  if (!finished_ || !finished_->next(line_, kMaxLineBytes)) return std::nullopt;
  boost::json::object row = parse_row(line_, finished_->where());
  check_settings(row, finished_->where());
  return row;
}

std::string ResultLog::where() const { return finished_ ? finished_->where() : file_->path(); }

std::string ResultLog::line_of(boost::json::object row) const {
  if (is_file()) row["settings"] = settings_.text();
  return to_json_text(row) + "\n";
}

void ResultLog::append(boost::json::object row) { write(line_of(std::move(row))); }

void ResultLog::write(std::string_view text) {
  if (mode_ == Mode::kReplace && is_file() && !is_truncated_) {
    file_->truncate();
    is_truncated_ = true;
  }
  file_->write(text);
}

}  // namespace caravan
