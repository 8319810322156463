#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace caravan {

/// Throws kCorrupt naming the path when the text is what Git leaves in place of a large file.
void check_not_lfs_pointer(std::string_view text, const std::string& path);

/// A file, or standard input for "-", read from front to end. What begins as gzip is inflated on
/// the way, a UTF-8 byte order mark is skipped. Errors: kNotFound, kIo; kCorrupt naming the path
/// for a Git LFS pointer and for gzip that is broken, cut off, or inflates to more than kMaxRatio
/// bytes for each byte of the file.
class TextInput {
 public:
  static constexpr uint64_t kMaxRatio = 256;
  static constexpr uint64_t kFreeBytes = uint64_t{64} << 20;  // whatever the ratio

  explicit TextInput(const std::string& path);
  ~TextInput();
  TextInput(const TextInput&) = delete;
  TextInput& operator=(const TextInput&) = delete;

  /// The next byte, or -1 at the end.
  int get() {
    const int c = peek();
    begin_ += c >= 0;
    return c;
  }
  int peek() {
    if (begin_ == buffer_.size() && !fill()) return -1;
    return static_cast<unsigned char>(buffer_[begin_]);
  }
  /// The next line without its end; false at the end of the text. Stops with max_bytes + 1 bytes of
  /// a longer line.
  bool read_line(std::string& line, size_t max_bytes);

 private:
  class Gzip;
  bool fill();        // buffer_ from the file; false at its end
  void fill_plain();  // empty at the end
  void fill_inflated();

  std::string path_;
  int fd_ = -1;
  std::string buffer_;
  size_t begin_ = 0;
  uint64_t num_read_ = 0;      // bytes of the file
  uint64_t num_inflated_ = 0;  // bytes of text, where it is gzip
  std::unique_ptr<Gzip> gzip_;
};

}  // namespace caravan
