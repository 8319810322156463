#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/line_reader.h"

namespace caravan {

namespace {

constexpr uint64_t kPage = 4096;

class FileDescriptor {
 public:
  // O_NONBLOCK: opening a FIFO must not wait for a writer; it is refused below.
  explicit FileDescriptor(const std::string& path)
      : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (fd_ < 0 && errno == ENOENT) CARAVAN_FAIL(kNotFound, "{}: no such file", path);
    CARAVAN_CHECK_CODE(fd_ >= 0, kIo, "{}: cannot open: {}", path, std::strerror(errno));
    struct stat info {};
    if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
      ::close(fd_);
      CARAVAN_FAIL(kIo, "{}: not a regular file", path);
    }
    size_ = static_cast<size_t>(info.st_size);
  }
  ~FileDescriptor() { ::close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  size_t size() const { return size_; }

 private:
  int fd_;
  size_t size_ = 0;
};

}  // namespace

MappedFile MappedFile::open(const std::string& path) {
  const FileDescriptor fd(path);
  MappedFile file;
  file.path_ = path;
  file.size_ = fd.size();
  if (file.size_ == 0) return file;
  void* data = mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  CARAVAN_CHECK_CODE(data != MAP_FAILED, kIo, "{}: cannot map {} bytes: {}", path, file.size_,
                     std::strerror(errno));
  file.data_ = data;
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) munmap(data_, size_);
    path_ = std::move(other.path_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

std::span<const std::byte> MappedFile::bytes(uint64_t offset, uint64_t length) const {
  CARAVAN_CHECK_CODE(offset <= size_ && length <= size_ - offset, kCorrupt,
                     "{}: bytes at offset {}, length {}, lie outside the file of {} bytes", path_,
                     offset, length, size_);
  return {data() + offset, static_cast<size_t>(length)};
}

void MappedFile::release(uint64_t offset, uint64_t length) const {
  const uint64_t begin = (offset + kPage - 1) / kPage * kPage;
  const uint64_t end = (offset + length) / kPage * kPage;
  if (data_ == nullptr || end <= begin || end > size_) return;
  madvise(static_cast<char*>(data_) + begin, end - begin, MADV_DONTNEED);
}

void MappedFile::will_need(uint64_t offset, uint64_t length) const {
  const uint64_t begin = offset / kPage * kPage;
  if (data_ == nullptr || begin >= size_) return;
  madvise(static_cast<char*>(data_) + begin, std::min<uint64_t>(offset + length, size_) - begin,
          MADV_WILLNEED);
}

std::string read_text_file(const std::string& path, size_t max_bytes) {
  if (path == "-") return read_standard_input(max_bytes);
  const FileDescriptor fd(path);
  CARAVAN_CHECK_CODE(fd.size() <= max_bytes, kCorrupt, "{}: {} bytes, at most {} are accepted",
                     path, fd.size(), max_bytes);
  std::string text(fd.size(), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    CARAVAN_CHECK_CODE(n > 0, kIo, "{}: read failed at offset {}: {}", path, done,
                       n < 0 ? std::strerror(errno) : "the file shrank");
    done += static_cast<size_t>(n);
  }
  return text;
}

}  // namespace caravan
