#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <utility>

#include "core/error.h"
#include "core/line_reader.h"
#include "core/text_input.h"
#include "core/unfinished_file.h"

namespace caravan {

/// One entry of the table of mappings. A signal handler walks the table, so entries are used again
/// and never freed, and begin is 0 while the rest is not valid.
struct Mapping {
  std::atomic<uintptr_t> begin{0};
  std::atomic<size_t> num_bytes{0};
  std::string path;
  Mapping* next = nullptr;
};

namespace {

constexpr uint64_t kPage = 4096;

std::atomic<Mapping*> g_mappings{nullptr};
std::mutex g_mutex;  // of changes to the table

std::atomic<int> g_fault_status{0};
struct sigaction g_previous_action {};

Mapping* add_mapping(const void* data, size_t num_bytes, const std::string& path) {
  const std::lock_guard lock(g_mutex);
  Mapping* mapping = g_mappings.load();
  while (mapping != nullptr && mapping->begin.load() != 0) mapping = mapping->next;
  const bool is_new = mapping == nullptr;
  if (is_new) mapping = new Mapping;
  mapping->path = path;
  mapping->num_bytes.store(num_bytes);
  mapping->begin.store(reinterpret_cast<uintptr_t>(data));
  if (is_new) {
    mapping->next = g_mappings.load();
    g_mappings.store(mapping);
  }
  return mapping;
}

void write_text(const char* text) {
  const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
  static_cast<void>(ignored);  // nothing can be done about it
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Mapping* at = g_mappings.load(); at != nullptr; at = at->next) {
    const uintptr_t begin = at->begin.load();
    // The last page is mapped whole.
    const size_t num_bytes = (at->num_bytes.load() + kPage - 1) / kPage * kPage;
    if (begin == 0 || address < begin || address - begin >= num_bytes) continue;
    write_text("caravan: error: ");
    write_text(at->path.c_str());
    write_text(": was cut short while it was in use, or its disk failed; begin again\n");
    tidy_unfinished_files();
    ::_exit(g_fault_status.load());
  }
  if ((g_previous_action.sa_flags & SA_SIGINFO) != 0) {
    return g_previous_action.sa_sigaction(signal, info, context);
  }
  if (g_previous_action.sa_handler != SIG_DFL && g_previous_action.sa_handler != SIG_IGN) {
    return g_previous_action.sa_handler(signal);
  }
  std::signal(signal, SIG_DFL);  // the instruction runs again and ends the process
}

class FileDescriptor {
 public:
  // O_NONBLOCK: opening a FIFO must not wait for a writer; it is refused below.
  explicit FileDescriptor(const std::string& path)
      : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    CARAVAN_CHECK_CODE(fd_ >= 0 || errno != ENOENT, kNotFound, "{}: no such file", path);
    CARAVAN_CHECK_OS(fd_ >= 0, "{}: cannot open", path);
    struct stat info {};
    const bool is_known = ::fstat(fd_, &info) == 0;
    if (!is_known || !S_ISREG(info.st_mode)) {
      ::close(fd_);
      CARAVAN_CHECK(!is_known || !S_ISDIR(info.st_mode), "{}: is a directory, expected a file",
                    path);
      CARAVAN_FAIL(kIo, "{}: not a regular file", path);
    }
    identity_ = FileIdentity::of(info);
  }
  ~FileDescriptor() { ::close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  const FileIdentity& identity() const { return identity_; }
  size_t size() const { return static_cast<size_t>(identity_.num_bytes); }

 private:
  int fd_;
  FileIdentity identity_;
};

}  // namespace

MappedFile MappedFile::open(const std::string& path) {
  const FileDescriptor fd(path);
  MappedFile file;
  file.path_ = path;
  file.identity_ = fd.identity();
  file.size_ = fd.size();
  if (file.size_ == 0) return file;
  void* data = mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  CARAVAN_CHECK_OS(data != MAP_FAILED, "{}: cannot map {} bytes", path, file.size_);
  file.data_ = data;
  file.mapping_ = add_mapping(data, file.size_, path);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      identity_(other.identity_),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapping_(std::exchange(other.mapping_, nullptr)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    unmap();
    path_ = std::move(other.path_);
    identity_ = other.identity_;
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    mapping_ = std::exchange(other.mapping_, nullptr);
  }
  return *this;
}

MappedFile::~MappedFile() { unmap(); }

void MappedFile::unmap() {
  if (data_ == nullptr) return;
  // First: another mapping may take the addresses at once.
  {
    const std::lock_guard lock(g_mutex);
    mapping_->begin.store(0);
  }
  munmap(data_, size_);
}

void end_on_mapping_fault(int status) {
  if (g_fault_status.exchange(status) != 0) return;
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &g_previous_action);
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
    CARAVAN_CHECK_OS(n >= 0, "{}: read failed at offset {}", path, done);
    CARAVAN_CHECK_CODE(n > 0, kIo, "{}: read failed at offset {}: the file shrank", path, done);
    done += static_cast<size_t>(n);
  }
  check_not_lfs_pointer(text, path);
  return text;
}

void check_directory(const std::string& path) {
  struct stat info {};
  const bool is_known = ::stat(path.c_str(), &info) == 0;
  CARAVAN_CHECK_CODE(is_known || errno != ENOENT, kNotFound, "{}: no such directory", path);
  CARAVAN_CHECK_OS(is_known, "{}: cannot open", path);
  CARAVAN_CHECK_CODE(S_ISDIR(info.st_mode), kNotFound, "{}: no such directory: it is a file", path);
}

bool path_exists(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) return true;
  CARAVAN_CHECK_OS(errno == ENOENT || errno == ENOTDIR, "{}: cannot open", path);
  return false;
}

}  // namespace caravan
