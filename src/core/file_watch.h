#pragma once

#include <sys/stat.h>

#include <string>

namespace caravan {

/// Notices that a file was written to: its size or time of modification differ from those at the
/// construction. A file that another replaces under its name (rename) is still the same. Moves
/// only.
class FileWatch {
 public:
  /// Errors: kNotFound, kIo.
  explicit FileWatch(const std::string& path);
  FileWatch(FileWatch&& other) noexcept;
  FileWatch& operator=(FileWatch&& other) noexcept;
  ~FileWatch();

  /// Errors: kCorrupt naming the file when it changed. Costs one system call. Thread safe.
  void check() const;

 private:
  std::string path_;
  int fd_ = -1;
  struct stat first_ {};
};

}  // namespace caravan
