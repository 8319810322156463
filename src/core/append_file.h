#pragma once

#include <string>
#include <string_view>

namespace caravan {

/// A file that grows at its end by whole lines, or standard output. Every write goes to the
/// operating system at once. Errors of all: kIo naming the path and the reason.
class AppendFile {
 public:
  /// path "" or "-": standard output. A file that is not there is made.
  explicit AppendFile(const std::string& path);
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  ~AppendFile();

  /// False for standard output, pipes and devices: nothing below but write() is for them.
  bool is_regular() const { return is_regular_; }
  const std::string& path() const { return path_; }
  bool is_same_as(const std::string& path) const;
  /// Keeps other processes out while this object lives. Errors: kInvalidArgument when one is there.
  void lock();
  /// Removes what follows the last newline; says whether there was something.
  bool cut_unfinished_line();
  void truncate();
  void write(std::string_view text);

 private:
  std::string path_;
  int fd_ = -1;
  bool is_regular_ = false;
};

}  // namespace caravan
