#include "core/file_watch.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace caravan {

FileWatch::FileWatch(const std::string& path)
    : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (fd_ < 0 && errno == ENOENT) CARAVAN_FAIL(kNotFound, "{}: no such file", path);
  CARAVAN_CHECK_CODE(fd_ >= 0, kIo, "{}: cannot open: {}", path, std::strerror(errno));
  if (::fstat(fd_, &first_) == 0) return;
  ::close(fd_);
  CARAVAN_FAIL(kIo, "{}: cannot look at it: {}", path, std::strerror(errno));
}

FileWatch::FileWatch(FileWatch&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), first_(other.first_) {}

FileWatch& FileWatch::operator=(FileWatch&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    path_ = std::move(other.path_);
    fd_ = std::exchange(other.fd_, -1);
    first_ = other.first_;
  }
  return *this;
}

FileWatch::~FileWatch() {
  if (fd_ >= 0) ::close(fd_);
}

void FileWatch::check() const {
  struct stat now {};
  CARAVAN_CHECK_CODE(::fstat(fd_, &now) == 0, kIo, "{}: cannot look at it: {}", path_,
                     std::strerror(errno));
  CARAVAN_CHECK_CODE(now.st_size == first_.st_size, kCorrupt,
                     "{}: the weights changed on disk while they were in use: {} bytes, {} when it "
                     "was opened; start again",
                     path_, now.st_size, first_.st_size);
  CARAVAN_CHECK_CODE(
      now.st_mtim.tv_sec == first_.st_mtim.tv_sec && now.st_mtim.tv_nsec == first_.st_mtim.tv_nsec,
      kCorrupt,
      "{}: the weights changed on disk while they were in use: the file was written "
      "to; start again, and replace weights by renaming a new file",
      path_);
}

}  // namespace caravan
