#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "core/file_identity.h"

namespace caravan {

/// A whole regular file mapped read-only; the mapping lives as long as this object. Moves only. The
/// file should not change meanwhile: see end_on_mapping_fault(), and FileWatch for weights.
class MappedFile {
 public:
  MappedFile() = default;
  /// Errors: kNotFound, kPermission, kInvalidArgument for a directory, kIo (each names the path);
  /// an empty file maps to an empty span.
  static MappedFile open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  size_t size() const { return size_; }
  /// As it was when it was opened.
  const FileIdentity& identity() const { return identity_; }
  const std::byte* data() const { return static_cast<const std::byte*>(data_); }

  /// Bytes [offset, offset + length). Errors: kCorrupt naming path, offset, length and file size.
  std::span<const std::byte> bytes(uint64_t offset, uint64_t length) const;

  /// The kernel may drop these pages from memory; they are read again when touched. Keeps a
  /// streaming reader's resident set small.
  void release(uint64_t offset, uint64_t length) const;
  /// The pages will be needed soon, in order.
  void will_need(uint64_t offset, uint64_t length) const;

 private:
  void unmap();

  std::string path_;
  FileIdentity identity_;
  void* data_ = nullptr;
  size_t size_ = 0;
  struct Mapping* mapping_ = nullptr;  // its entry in the table of all
};

/// Reading a mapped page that its file does not have any more (it was cut short, or the disk
/// failed) raises SIGBUS. From now on that names the file on stderr and ends the process with
/// `status`; a fault anywhere else goes to whoever handled it before. May be called again to change
/// the status. For main(): a library leaves signals to its program.
void end_on_mapping_fault(int status);

/// The whole file as a string, for small text files; "-" is standard input. Errors: as
/// MappedFile::open, and kCorrupt when it is larger than max_bytes or a Git LFS pointer.
std::string read_text_file(const std::string& path, size_t max_bytes);

/// Errors: kNotFound when the directory is not there or is a file, kPermission, kIo.
void check_directory(const std::string& path);

/// False when nothing is at the path. Errors: kPermission, kIo when that cannot be told.
bool path_exists(const std::string& path);

}  // namespace caravan
