#pragma once

#include <fcntl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "core/unfinished_file.h"

namespace caravan {

/// A file that is named by a path, or by its name in a directory that is held open: then nobody can
/// put another directory in its place.
struct FileAt {
  FileAt(const std::string& file_path) : name(file_path), path(file_path) {}  // most have a path
  FileAt(int held_directory, const std::string& file_name, const std::string& file_path)
      : directory_fd(held_directory), name(file_name), path(file_path) {}

  int directory_fd = AT_FDCWD;
  std::string name;
  std::string path;  // for messages
};

/// Opens a file that this program wrote into a directory of its own, or makes it; for reading and
/// writing. What others may have planted there is refused: a link of either kind, a device.
/// Errors: kIo, kPermission, kInvalidArgument.
int open_own_file(const FileAt& file, int extra_flags = 0);

/// A file that appears under its final name only when it is whole: writes go to a temporary file
/// beside it whose name nobody can foresee, commit() does fsync, rename and an fsync of the
/// directory. Destroyed without commit(), or by a signal, it removes what it wrote. A symbolic link
/// at the name is replaced, never followed; so is a file, whose mode is kept. What is no file
/// (/dev/stdout, /dev/null, a FIFO) is written as it stands.
/// Errors: kIo naming path, offset and the reason; kNotFound, kPermission; kInvalidArgument for a
/// directory or a block device.
class AtomicFile {
 public:
  explicit AtomicFile(const FileAt& file);
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
  void create_temporary();
  void remove_temporary();

  FileAt file_;
  std::string temporary_name_;  // "" when written as it stands
  std::unique_ptr<UnfinishedFile> unfinished_;
  int fd_ = -1;
  uint64_t offset_ = 0;
};

/// "a.json.partial-0123456789ab" -> "a.json": what an AtomicFile was going to be; other names as
/// they are.
std::string_view without_temporary_suffix(std::string_view name);

/// fsync of a directory, where the file system has that and the user may. Errors: kIo.
void sync_directory(const std::string& path);

}  // namespace caravan
