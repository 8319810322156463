#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace caravan {

/// The lines of a file as a stream ("-": standard input), one in memory at a time. Lines end with
/// \n or \r\n, the last one also without; every other byte is kept, NUL too. A UTF-8 byte order
/// mark before the first line is left out.
class LineReader {
 public:
  /// Errors: kNotFound; kIo for what cannot be read, a directory among them.
  explicit LineReader(std::string path);
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;
  ~LineReader();

  /// Reads the next line; false at the end. Of a line of more than max_bytes the rest is passed
  /// over and is_too_long() says so until the next call. Errors: kIo.
  bool next(std::string& line, size_t max_bytes);

  /// False when next() would wait for a writer at the other end of a pipe.
  bool is_ready() const;

  bool is_too_long() const { return is_too_long_; }
  /// Of the line that was read last: 1, 2, ...
  int64_t number() const { return number_; }
  /// "FILE:LINE", for messages.
  std::string where() const;
  const std::string& path() const { return path_; }
  int fd() const { return fd_; }

  /// Lines of a regular file, counted from its beginning; 0 for what can be read only once.
  int64_t count_lines() const;

 private:
  bool fill();

  std::string path_;
  int fd_ = -1;
  int64_t number_ = 0;
  bool is_too_long_ = false;
  std::string buffer_;
  size_t begin_ = 0;  // of what is not read yet, in buffer_
  bool has_begun_ = false;
  bool is_end_ = false;
};

/// All of standard input, at most max_bytes. Errors: kIo; kInvalidArgument for more.
std::string read_standard_input(size_t max_bytes);

}  // namespace caravan
