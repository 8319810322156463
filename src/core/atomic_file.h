#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace caravan {

/// A file that appears under its final name only when it is whole: writes go to
/// "<path>.partial-<pid>", commit() does fsync, rename and an fsync of the directory. Destroyed
/// without commit(), it removes what it wrote. Errors: kIo naming path, offset and the reason.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(const void* data, size_t num_bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Zero bytes until the next write lands on a multiple of `alignment`.
  void pad_to(uint64_t alignment);
  uint64_t offset() const { return offset_; }
  void commit();

 private:
  std::string path_;
  std::string temporary_path_;
  int fd_ = -1;
  uint64_t offset_ = 0;
};

/// The same for a directory: files are written under work_path(), a sibling of the final path,
/// and commit() syncs every file in it and renames it. The work path is "<path>.partial", stable
/// between runs, so that a job that was killed can look at what is there and go on (its lock keeps
/// a second process out). discard() removes it; destruction without commit() keeps it.
/// Errors: kIo; kInvalidArgument when `path` exists already and `replace` is false.
class AtomicDirectory {
 public:
  AtomicDirectory(const std::string& path, bool replace);
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;
  ~AtomicDirectory();

  const std::string& work_path() const { return work_path_; }
  void commit();
  void discard();

 private:
  std::string path_;
  std::string work_path_;
  bool replace_;
  int lock_fd_ = -1;
};

/// fsync of a file or directory by path. Errors: kIo.
void sync_path(const std::string& path);

}  // namespace caravan
