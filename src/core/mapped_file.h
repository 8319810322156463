#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace caravan {

/// A whole regular file mapped read-only; the mapping lives as long as this object. Moves only.
class MappedFile {
 public:
  MappedFile() = default;
  /// Errors: kNotFound, kIo (each names the path); an empty file maps to an empty span.
  static MappedFile open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  size_t size() const { return size_; }
  const std::byte* data() const { return static_cast<const std::byte*>(data_); }

  /// Bytes [offset, offset + length). Errors: kCorrupt naming path, offset, length and file size.
  std::span<const std::byte> bytes(uint64_t offset, uint64_t length) const;

  /// The kernel may drop these pages from memory; they are read again when touched. Keeps a
  /// streaming reader's resident set small.
  void release(uint64_t offset, uint64_t length) const;
  /// The pages will be needed soon, in order.
  void will_need(uint64_t offset, uint64_t length) const;

 private:
  std::string path_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

/// The whole file as a string, for small text files; "-" is standard input. Errors: kNotFound, kIo,
/// and kCorrupt when it is larger than max_bytes.
std::string read_text_file(const std::string& path, size_t max_bytes);

}  // namespace caravan
