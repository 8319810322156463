#include "core/atomic_file.h"

#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <filesystem>
#include <optional>
#include <vector>

#include "core/error.h"

namespace caravan {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kSuffix = ".partial-";
constexpr size_t kRandomDigits = 12;

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

/// 12 hexadecimal digits that nobody else can foresee.
std::string random_digits() {
  uint64_t bits = 0;
  CARAVAN_CHECK_OS(::getrandom(&bits, sizeof(bits), 0) == sizeof(bits), "getrandom");
  return fmt::format("{:012x}", bits >> 16);
}

/// A descriptor of this process that the path names: "/dev/stdout", "/dev/fd/3". Opening the path
/// would not share the descriptor's position in the file.
std::optional<int> descriptor_of(const std::string& path) {
  if (path == "/dev/stdout") return STDOUT_FILENO;
  if (path == "/dev/stderr") return STDERR_FILENO;
  for (const std::string_view folder : {"/dev/fd/", "/proc/self/fd/"}) {
    if (!path.starts_with(folder)) continue;
    int fd = -1;
    const char* const end = path.data() + path.size();
    const auto [stop, error] = std::from_chars(path.data() + folder.size(), end, fd);
    if (error == std::errc() && stop == end && fd >= 0) return fd;
  }
  return std::nullopt;
}

/// Opens `path` when it is something that is written as it stands; -1 when it is or will be a file.
int open_stream(const std::string& path) {
  if (const auto fd = descriptor_of(path)) {
    const int copy = ::fcntl(*fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    CARAVAN_CHECK_OS(copy >= 0, "{}: cannot write", path);
    return copy;
  }
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return -1;
  CARAVAN_CHECK(!S_ISDIR(info.st_mode), "{}: is a directory, expected the name of a file", path);
  CARAVAN_CHECK(!S_ISBLK(info.st_mode), "{}: is a disk, expected the name of a file", path);
  const std::string normal = fs::path(path).lexically_normal().string();
  const bool is_system_link = normal.starts_with("/dev/") || normal.starts_with("/proc/");
  if (S_ISREG(info.st_mode) && !is_system_link) return -1;
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_NOCTTY | O_CLOEXEC);
  CARAVAN_CHECK_OS(fd >= 0, "{}: cannot write", path);
  return fd;
}

}  // namespace

std::string_view without_temporary_suffix(std::string_view name) {
  const size_t mark = name.rfind(kSuffix);
  if (mark == std::string_view::npos) return name;
  const std::string_view digits = name.substr(mark + kSuffix.size());
  const bool is_hex = !digits.empty() && digits.size() <= kRandomDigits &&
                      digits.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  return is_hex ? name.substr(0, mark) : name;
}

void sync_directory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // One may be allowed to write into a directory and not to read it.
  if (fd < 0 && errno == EACCES) return;
  CARAVAN_CHECK_OS(fd >= 0, "{}: cannot open to sync", path);
  const int failed = ::fsync(fd);
  const int reason = errno;
  ::close(fd);
  if (failed != 0 && reason != EINVAL) throw_os_error(reason, path + ": fsync failed");
}

int open_own_file(const FileAt& file, int extra_flags) {
  const int flags = O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | extra_flags;
  int fd = ::openat(file.directory_fd, file.name.c_str(), flags | O_CREAT | O_EXCL, 0666);
  if (fd >= 0) return fd;
  if (errno == EEXIST) fd = ::openat(file.directory_fd, file.name.c_str(), flags);
  CARAVAN_CHECK(fd >= 0 || errno != ELOOP,
                "{}: is a symbolic link, which caravan did not make; remove it", file.path);
  CARAVAN_CHECK_OS(fd >= 0, "{}: cannot open", file.path);
  struct stat info {};
  const bool is_ours = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_nlink == 1 &&
                       info.st_uid == ::geteuid();
  if (!is_ours) ::close(fd);
  CARAVAN_CHECK(is_ours,
                "{}: is not a file that caravan made (a device, another user's file, or one with a "
                "second name); remove it",
                file.path);
  return fd;
}

AtomicFile::AtomicFile(const FileAt& file) : file_(file) {
  if (file_.directory_fd == AT_FDCWD) fd_ = open_stream(file_.path);
  if (fd_ < 0) create_temporary();
}

void AtomicFile::create_temporary() {
  CARAVAN_CHECK(!file_.name.empty() && file_.name.back() != '/',
                "\"{}\": names a directory, expected the name of a file", file_.path);
  struct stat info {};
  const bool replaces_file =
      ::fstatat(file_.directory_fd, file_.name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0 &&
      S_ISREG(info.st_mode);
  // A rename does not ask for the file's permission.
  CARAVAN_CHECK_OS(
      !replaces_file || ::faccessat(file_.directory_fd, file_.name.c_str(), W_OK, AT_EACCESS) == 0,
      "{}: cannot replace", file_.path);
  std::string stem = file_.name;
  const size_t slash = stem.rfind('/') == std::string::npos ? 0 : stem.rfind('/') + 1;
  const size_t longest = NAME_MAX - kSuffix.size() - kRandomDigits;
  if (stem.size() - slash <= NAME_MAX) stem.resize(std::min(stem.size(), slash + longest));
  for (int attempt = 0; fd_ < 0; ++attempt) {
    temporary_name_ = fmt::format("{}{}{}", stem, kSuffix, random_digits());
    fd_ = ::openat(file_.directory_fd, temporary_name_.c_str(),
                   O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    CARAVAN_CHECK_OS(fd_ >= 0 || (errno == EEXIST && attempt < 100), "{}: cannot create",
                     file_.path);
  }
  if (replaces_file) ::fchmod(fd_, info.st_mode & 0777);
  if (file_.directory_fd == AT_FDCWD) {
    unfinished_ =
        std::make_unique<UnfinishedFile>(temporary_name_, UnfinishedFile::OnSignal::kRemove);
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  remove_temporary();
}

void AtomicFile::remove_temporary() {
  if (temporary_name_.empty()) return;
  ::unlinkat(file_.directory_fd, temporary_name_.c_str(), 0);
}

void AtomicFile::write(const void* data, size_t num_bytes) {
  const auto* bytes = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t n = ::write(fd_, bytes, num_bytes);
    if (n < 0 && errno == EINTR) continue;
    CARAVAN_CHECK_OS(n >= 0, "{}: write failed at offset {}", file_.path, offset_);
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
  const bool is_stream = temporary_name_.empty();
  // EINVAL, EROFS: a pipe or a device has nothing to sync.
  CARAVAN_CHECK_OS(::fsync(fd_) == 0 || (is_stream && (errno == EINVAL || errno == EROFS)),
                   "{}: fsync failed", file_.path);
  const int fd = fd_;
  fd_ = -1;
  int reason = ::close(fd) == 0 ? 0 : errno;
  if (is_stream) {
    if (reason != 0) throw_os_error(reason, file_.path + ": cannot finish");
    return;
  }
  if (reason == 0 && ::renameat(file_.directory_fd, temporary_name_.c_str(), file_.directory_fd,
                                file_.name.c_str()) != 0) {
    reason = errno;
  }
  if (reason != 0) {
    remove_temporary();
    throw_os_error(reason, file_.path + ": cannot finish the file");
  }
  unfinished_.reset();
  // The files of a held directory are synced with it, when it is committed.
  if (file_.directory_fd == AT_FDCWD) sync_directory(parent_of(file_.path));
}

}  // namespace caravan
