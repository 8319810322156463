#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "core/append_file.h"
#include "core/json.h"
#include "core/line_reader.h"

namespace caravan {

/// The settings that results were made with, by the names of their flags, as a short text that goes
/// into every line of a results file.
class ResultSettings {
 public:
  ResultSettings() = default;
  /// Values of any kind; a member's name is what a message calls it, such as "--temperature".
  explicit ResultSettings(const boost::json::object& settings);

  /// 16 hexadecimal digits of all settings, "-", two of each.
  const std::string& text() const { return text_; }
  /// The names of the settings that differ from those of `text`, with commas between them; "" when
  /// it was made by another version, or differs where two digits do not.
  std::string changed(std::string_view text) const;

 private:
  std::string text_;
  std::string names_;  // each followed by a newline
};

/// Contents of config.json, names and sizes of the files with weights and of the tokenizer: for the
/// settings of whatever a model makes.
boost::json::object model_identity(const std::string& directory);

/// A JSON Lines file of results that grows by one line for each and can be continued after a kill;
/// or standard output. Every line of a file has the member "settings". The file is locked while
/// this object lives, so that two runs do not write to it together.
class ResultLog {
 public:
  enum class Mode : uint8_t { kNew, kReplace, kResume };

  /// path "" or "-": standard output. kNew refuses a file that is there. kReplace takes the place
  /// of a file of results, and of nothing else, with the first line that is written. kResume
  /// continues a file, whose unfinished last line is cut off; there may be none. Pipes and devices
  /// are written to as they are. Errors: kIo; kInvalidArgument for a file that is there (kNew),
  /// that has no results (kReplace), that another process writes to or that is `input`.
  ResultLog(const std::string& path, Mode mode, ResultSettings settings,
            const std::string& input = "");

  /// The next line of a file that is continued, nothing at its end. All are to be taken before
  /// append(). Errors: kInvalidArgument when it was made with other settings, naming them;
  /// kCorrupt.
  std::optional<boost::json::object> next_finished();
  /// "FILE:LINE" of the line that next_finished() gave last.
  std::string where() const;

  /// The line that append() would write.
  std::string line_of(boost::json::object row) const;
  /// Writes one line. Errors: kIo.
  void append(boost::json::object row);
  /// The same for lines that line_of() made, or for other text on standard output.
  void write(std::string_view text);

  /// A file that can be continued.
  bool is_file() const { return file_->is_regular(); }

 private:
  void check_replaceable() const;
  void check_first_line() const;
  void check_settings(const boost::json::object& row, const std::string& where) const;

  Mode mode_;
  ResultSettings settings_;
  std::unique_ptr<AppendFile> file_;
  bool is_truncated_ = false;  // by kReplace
  std::unique_ptr<LineReader> finished_;
  std::string line_;
};

}  // namespace caravan
