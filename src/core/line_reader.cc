#include "core/line_reader.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/text_input.h"

namespace caravan {

namespace {

constexpr size_t kBufferBytes = size_t{256} << 10;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

/// At most num_bytes; 0 at the end.
size_t read_some(int fd, char* data, size_t num_bytes, const std::string& path) {
  ssize_t count = 0;
  do {
    count = ::read(fd, data, num_bytes);
  } while (count < 0 && errno == EINTR);
  CARAVAN_CHECK_OS(count >= 0, "{}: cannot read", path);
  return static_cast<size_t>(count);
}

}  // namespace

LineReader::LineReader(std::string path) : path_(std::move(path)) {
  if (path_ == "-") {
    fd_ = STDIN_FILENO;
  } else {
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    CARAVAN_CHECK_OS(fd_ >= 0, "{}: cannot open", printable(path_, 4096));
  }
  buffer_.reserve(kBufferBytes);
}

LineReader::~LineReader() {
  if (fd_ > STDIN_FILENO) ::close(fd_);
}

std::string LineReader::where() const { return fmt::format("{}:{}", path_, number_); }

/// Puts more of the file into the empty buffer; false at the end.
bool LineReader::fill() {
  if (is_end_) return false;
  const bool is_first = !has_begun_;
  buffer_.resize(kBufferBytes);
  size_t size = 0;
  // A mark can arrive in pieces.
  do {
    const size_t count = read_some(fd_, buffer_.data() + size, kBufferBytes - size, path_);
    is_end_ = count == 0;
    size += count;
  } while (is_first && !is_end_ && size < kByteOrderMark.size() &&
           kByteOrderMark.starts_with(std::string_view(buffer_.data(), size)));
  buffer_.resize(size);
  begin_ = 0;
  has_begun_ = true;
  if (is_first) {
    check_not_lfs_pointer(buffer_, path_);
    CARAVAN_CHECK_CODE(!buffer_.starts_with("\x1f\x8b"), kUnsupported,
                       "{}: compressed with gzip; pipe it in: gunzip -c FILE | caravan ... -",
                       path_);
    if (buffer_.starts_with(kByteOrderMark)) begin_ = kByteOrderMark.size();
  }
  // A mark may come alone.
  return begin_ < buffer_.size() || (!is_end_ && fill());
}

bool LineReader::next(std::string& line, size_t max_bytes) {
  line.clear();
  is_too_long_ = false;
  if (begin_ == buffer_.size() && !fill()) return false;
  ++number_;
  for (;;) {
    const char* data = buffer_.data() + begin_;
    const size_t size = buffer_.size() - begin_;
    const void* end = std::memchr(data, '\n', size);
    const size_t count =
        end == nullptr ? size : static_cast<size_t>(static_cast<const char*>(end) - data);
    const size_t kept = std::min(count, max_bytes - line.size());
    line.append(data, kept);
    is_too_long_ = is_too_long_ || kept < count;
    begin_ += count + (end == nullptr ? 0 : 1);
    if (end != nullptr || !fill()) break;
  }
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return true;
}

bool LineReader::is_ready() const {
  if (is_end_ || buffer_.find('\n', begin_) != std::string::npos) return true;
  pollfd wanted{.fd = fd_, .events = POLLIN, .revents = 0};
  return ::poll(&wanted, 1, 0) != 0;
}

int64_t LineReader::count_lines() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) return 0;
  std::string buffer(kBufferBytes, '\0');
  int64_t count = 0;
  char last = '\n';
  for (off_t offset = 0;;) {
    ssize_t size = 0;
    do {
      size = ::pread(fd_, buffer.data(), buffer.size(), offset);
    } while (size < 0 && errno == EINTR);
    CARAVAN_CHECK_OS(size >= 0, "{}: cannot read", path_);
    if (size == 0) return count + (last == '\n' ? 0 : 1);
    count += std::count(buffer.data(), buffer.data() + size, '\n');
    last = buffer[static_cast<size_t>(size) - 1];
    offset += size;
  }
}

std::string read_standard_input(size_t max_bytes) {
  std::string text;
  for (;;) {
    const size_t size = text.size();
    text.resize(size + kBufferBytes);
    const size_t count = read_some(STDIN_FILENO, text.data() + size, kBufferBytes, "-");
    text.resize(size + count);
    CARAVAN_CHECK(text.size() <= max_bytes, "standard input: more than {} bytes", max_bytes);
    if (count == 0) return text;
  }
}

}  // namespace caravan
