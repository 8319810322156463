#include "core/append_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/error.h"

namespace caravan {

AppendFile::AppendFile(const std::string& path) : path_(path) {
  if (path_.empty() || path_ == "-") {
    path_ = "standard output";
    fd_ = STDOUT_FILENO;
    return;
  }
  struct stat status {};
  is_regular_ = ::stat(path_.c_str(), &status) != 0 || S_ISREG(status.st_mode);
  const int flags = is_regular_ ? O_RDWR | O_CREAT | O_APPEND : O_WRONLY;
  fd_ = ::open(path_.c_str(), flags | O_CLOEXEC, 0666);
  CARAVAN_CHECK_OS(fd_ >= 0, "{}: cannot write", path_);
}

AppendFile::~AppendFile() {
  if (fd_ > STDERR_FILENO) ::close(fd_);
}

bool AppendFile::is_same_as(const std::string& path) const {
  struct stat ours {};
  struct stat theirs {};
  return ::fstat(fd_, &ours) == 0 && ::stat(path.c_str(), &theirs) == 0 &&
         ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

void AppendFile::lock() {
  // A file system without locks does without.
  CARAVAN_CHECK(::flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK,
                "{}: another process writes to it", path_);
}

bool AppendFile::cut_unfinished_line() {
  struct stat status {};
  CARAVAN_CHECK_OS(::fstat(fd_, &status) == 0, "{}: cannot look at it", path_);
  off_t end = status.st_size;
  std::string part(size_t{64} << 10, '\0');
  while (end > 0) {
    const off_t begin = std::max<off_t>(0, end - static_cast<off_t>(part.size()));
    const ssize_t size = ::pread(fd_, part.data(), static_cast<size_t>(end - begin), begin);
    CARAVAN_CHECK_OS(size == end - begin, "{}: cannot read", path_);
    const size_t newline = std::string_view(part.data(), static_cast<size_t>(size)).rfind('\n');
    if (newline != std::string_view::npos) {
      end = begin + static_cast<off_t>(newline) + 1;
      break;
    }
    end = begin;
  }
  if (end == status.st_size) return false;
  CARAVAN_CHECK_OS(::ftruncate(fd_, end) == 0, "{}: cannot cut the last line", path_);
  return true;
}

void AppendFile::truncate() {
  CARAVAN_CHECK_OS(::ftruncate(fd_, 0) == 0, "{}: cannot replace", path_);
}

void AppendFile::write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(fd_, text.data(), text.size());
    if (count >= 0) {
      text.remove_prefix(static_cast<size_t>(count));
      continue;
    }
    if (errno == EAGAIN) {  // a pipe that its owner made non-blocking
      pollfd wanted{.fd = fd_, .events = POLLOUT, .revents = 0};
      ::poll(&wanted, 1, -1);
      continue;
    }
    CARAVAN_CHECK_OS(errno == EINTR, "{}: write failed", path_);
  }
}

}  // namespace caravan
