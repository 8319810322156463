#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "apps/model_flags.h"
#include "eval/result_log.h"

namespace caravan {

/// The flags of commands that write one line for each line of their input: --output --resume
/// --force.
struct ResultFlags {
  std::string output;
  bool resume = false;
  bool force = false;

  void add_to(CLI::App& command);
  bool is_file() const { return !output.empty() && output != "-"; }
  /// Errors: kInvalidArgument.
  ResultLog::Mode mode() const;
};

/// The model and how it computes, for the settings of results.
boost::json::object model_settings(const ModelFlags& flags);

/// Where one line of the input is in a results file that is continued.
class ResumedLines {
 public:
  explicit ResumedLines(ResultLog& log) : log_(log) {}

  struct Rows {
    int64_t count = 0;
    bool has_failed = false;
    bool is_refused = false;  // the whole line, by one row
  };
  /// Takes the rows of one line of the input, which come in its order. checksum: line_checksum().
  /// Errors: those of ResultLog::next_finished(); kInvalidArgument when they were made from another
  /// line.
  Rows take(int64_t line, const std::string& checksum);
  /// After the last line. Errors: kInvalidArgument when rows are left.
  void finish();
  /// No rows are left.
  bool is_empty();

 private:
  void peek();

  ResultLog& log_;
  bool is_end_ = false;
  boost::json::object row_;
  bool has_row_ = false;
};

/// 16 hexadecimal digits.
std::string line_checksum(const std::string& line);

}  // namespace caravan
