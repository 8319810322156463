#include "core/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include "core/error.h"

namespace caravan {

namespace fs = std::filesystem;

namespace {

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

// "a/b/" -> "a/b", so that siblings of the directory get the right name.
std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

void sync_path(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  CARAVAN_CHECK_CODE(fd >= 0, kIo, "{}: cannot open to sync: {}", path, std::strerror(errno));
  const int failed = ::fsync(fd);
  const int reason = errno;
  ::close(fd);
  CARAVAN_CHECK_CODE(failed == 0, kIo, "{}: fsync failed: {}", path, std::strerror(reason));
}

AtomicFile::AtomicFile(const std::string& path)
    : path_(path), temporary_path_(fmt::format("{}.partial-{}", path, ::getpid())) {
  fd_ = ::open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  CARAVAN_CHECK_CODE(fd_ >= 0, kIo, "{}: cannot create: {}", temporary_path_, std::strerror(errno));
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_path_.c_str());
}

void AtomicFile::write(const void* data, size_t num_bytes) {
  const auto* bytes = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t n = ::write(fd_, bytes, num_bytes);
    if (n < 0 && errno == EINTR) continue;
    CARAVAN_CHECK_CODE(n >= 0, kIo, "{}: write failed at offset {}: {}", path_, offset_,
                       std::strerror(errno));
    bytes += n;
    num_bytes -= static_cast<size_t>(n);
    offset_ += static_cast<uint64_t>(n);
  }
}

void AtomicFile::pad_to(uint64_t alignment) {
  const uint64_t rest = offset_ % alignment;
  if (rest == 0) return;
  const std::vector<char> zeros(alignment - rest, '\0');
  write(zeros.data(), zeros.size());
}

void AtomicFile::commit() {
  CARAVAN_CHECK_CODE(::fsync(fd_) == 0, kIo, "{}: fsync failed: {}", path_, std::strerror(errno));
  const int fd = fd_;
  fd_ = -1;
  if (::close(fd) != 0 || ::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    const int reason = errno;
    ::unlink(temporary_path_.c_str());
    CARAVAN_FAIL(kIo, "{}: cannot finish the file: {}", path_, std::strerror(reason));
  }
  sync_path(parent_of(path_));
}

AtomicDirectory::AtomicDirectory(const std::string& path, bool replace)
    : path_(without_trailing_slash(path)), work_path_(path_ + ".partial"), replace_(replace) {
  CARAVAN_CHECK(replace_ || !fs::exists(path_), "{}: exists already; give another --output", path_);
  std::error_code error;
  fs::create_directories(work_path_, error);
  CARAVAN_CHECK_CODE(!error, kIo, "{}: cannot create: {}", work_path_, error.message());
  lock_fd_ = ::open(work_path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  CARAVAN_CHECK_CODE(lock_fd_ >= 0, kIo, "{}: cannot open: {}", work_path_, std::strerror(errno));
  if (::flock(lock_fd_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_fd_);
    CARAVAN_FAIL(kInvalidArgument, "{}: another process is writing it", work_path_);
  }
}

AtomicDirectory::~AtomicDirectory() {
  if (lock_fd_ >= 0) ::close(lock_fd_);
}

void AtomicDirectory::commit() {
  for (const auto& entry : fs::recursive_directory_iterator(work_path_)) {
    sync_path(entry.path().string());
  }
  sync_path(work_path_);
  if (replace_ && fs::exists(path_)) {
    // rename() cannot replace a directory that has files, so the two change places in one step; at
    // no moment is the final name missing.
    CARAVAN_CHECK_CODE(
        ::renameat2(AT_FDCWD, work_path_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) == 0,
        kIo, "{}: cannot take the place of the old one: {}", path_, std::strerror(errno));
    fs::remove_all(work_path_);
  } else {
    CARAVAN_CHECK_CODE(::rename(work_path_.c_str(), path_.c_str()) == 0, kIo,
                       "{}: cannot rename: {}", path_, std::strerror(errno));
  }
  sync_path(parent_of(path_));
}

void AtomicDirectory::discard() {
  std::error_code ignored;  // what cannot be removed is left under its .partial name
  fs::remove_all(work_path_, ignored);
}

}  // namespace caravan
