#include "core/atomic_directory.h"

#include <dirent.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace fs = std::filesystem;

namespace {

// An empty file, made first and removed last in a work directory.
constexpr const char* kWorkMarker = "caravan.partial";

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

struct Entry {
  std::string name;
  struct stat info {};
};

std::vector<Entry> entries_of(int directory_fd, const std::string& path) {
  const int fd = ::openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  CARAVAN_CHECK_OS(fd >= 0, "{}: cannot open", path);
  DIR* const stream = ::fdopendir(fd);
  if (stream == nullptr) {
    const int reason = errno;
    ::close(fd);
    throw_os_error(reason, path + ": cannot list");
  }
  std::vector<Entry> entries;
  for (errno = 0; const dirent* item = ::readdir(stream); errno = 0) {
    const std::string_view name = item->d_name;
    if (name == "." || name == "..") continue;
    Entry entry;
    entry.name = name;
    // One that vanishes meanwhile is not there.
    if (::fstatat(directory_fd, item->d_name, &entry.info, AT_SYMLINK_NOFOLLOW) != 0) continue;
    entries.push_back(std::move(entry));
  }
  const int reason = errno;
  ::closedir(stream);
  if (reason != 0) throw_os_error(reason, path + ": cannot list");
  return entries;
}

const char* kind_of(mode_t mode) {
  if (S_ISLNK(mode)) return "a symbolic link";
  if (S_ISDIR(mode)) return "a directory";
  return S_ISREG(mode) ? "a file" : "a device, FIFO or socket";
}

std::string head_of(int directory_fd, const char* name, size_t max_bytes) {
  const Descriptor fd(::openat(directory_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat info {};
  if (fd.get() < 0 || ::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) return {};
  std::string text(std::min(static_cast<size_t>(info.st_size), max_bytes), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

bool is_known(const DirectoryKind& kind, std::string_view name) {
  return kind.is_known_name(without_temporary_suffix(name));
}

bool has_marker(const DirectoryKind& kind, int directory_fd) {
  return kind.is_marked([directory_fd](const char* name, size_t max_bytes) {
    return head_of(directory_fd, name, max_bytes);
  });
}

/// What keeps a directory from being replaced, or "".
std::string foreign_in_output(const DirectoryKind& kind, int fd, const std::string& path) {
  for (const Entry& entry : entries_of(fd, path)) {
    if (!S_ISREG(entry.info.st_mode) || !is_known(kind, entry.name)) {
      return fmt::format("holds {} \"{}\", which caravan did not write",
                         kind_of(entry.info.st_mode), printable(entry.name));
    }
  }
  if (has_marker(kind, fd)) return {};
  return fmt::format("has no {}", kind.mark);
}

/// The same of a work directory.
std::string foreign_in_work(const DirectoryKind& kind, int fd, const struct stat& info, bool is_new,
                            const std::string& path) {
  const std::vector<Entry> entries = entries_of(fd, path);
  // A new one belongs to another user where a file server maps users.
  if (info.st_uid != ::geteuid() && !(is_new && entries.empty())) {
    return fmt::format("belongs to user {}", info.st_uid);
  }
  for (const Entry& entry : entries) {
    if (!S_ISREG(entry.info.st_mode) ||
        (!is_known(kind, entry.name) && entry.name != kWorkMarker)) {
      return fmt::format("holds {} \"{}\", which caravan did not write",
                         kind_of(entry.info.st_mode), printable(entry.name));
    }
    if (entry.info.st_nlink != 1) {
      return fmt::format("its file \"{}\" has a second name elsewhere", printable(entry.name));
    }
  }
  const bool is_marked = std::any_of(entries.begin(), entries.end(), [](const Entry& entry) {
    return entry.name == kWorkMarker && entry.info.st_size == 0;
  });
  if (entries.empty() || is_marked || has_marker(kind, fd)) return {};
  return "has no mark of caravan's";
}

bool is_mount_point(int parent_fd, const std::string& name) {
  struct statx info {};
  if (::statx(parent_fd, name.c_str(), AT_SYMLINK_NOFOLLOW, 0, &info) != 0) return false;
  return (info.stx_attributes & info.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) != 0;
}

/// Opens the directory that `path` names when it may be replaced; -1 when nothing is there.
int open_replaceable(int parent_fd, const std::string& name, const std::string& path, bool replace,
                     const DirectoryKind& kind) {
  struct stat info {};
  if (::fstatat(parent_fd, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    CARAVAN_CHECK_OS(errno == ENOENT, "{}: cannot look at it", path);
    return -1;
  }
  CARAVAN_CHECK(replace,
                "{}: exists already; give another --output, or --force to replace what caravan "
                "wrote there",
                path);
  CARAVAN_CHECK(S_ISDIR(info.st_mode),
                "{}: is {}, and --force replaces only a directory that caravan wrote; remove it or "
                "give another --output",
                path, kind_of(info.st_mode));
  CARAVAN_CHECK(!is_mount_point(parent_fd, name),
                "{}: is a mount point, which cannot be replaced; give a new directory in it", path);
  Descriptor fd(::openat(parent_fd, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  CARAVAN_CHECK_OS(fd.get() >= 0, "{}: cannot open", path);
  const std::string foreign = foreign_in_output(kind, fd.get(), path);
  CARAVAN_CHECK(foreign.empty(),
                "{}: {}, so --force does not replace it; remove it or give another --output", path,
                foreign);
  return fd.release();
}

/// Whether `name` in the parent is the directory behind `fd`.
bool names_directory(int parent_fd, const std::string& name, int fd) {
  struct stat named {};
  struct stat held {};
  return ::fstatat(parent_fd, name.c_str(), &named, AT_SYMLINK_NOFOLLOW) == 0 &&
         ::fstat(fd, &held) == 0 && named.st_dev == held.st_dev && named.st_ino == held.st_ino;
}

std::string bare_path(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::string name = fs::path(path).filename().string();
  CARAVAN_CHECK(!name.empty() && name != "." && name != ".." && name != "/",
                "--output \"{}\": expected the name of a new directory", path);
  return path;
}

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

void remove_file(int directory_fd, const std::string& name, const std::string& path) {
  CARAVAN_CHECK_OS(::unlinkat(directory_fd, name.c_str(), 0) == 0 || errno == ENOENT,
                   "{}/{}: cannot remove", path, name);
}

/// Removes the known files of the directory behind `fd`, then its name.
void remove_directory(const DirectoryKind& kind, int parent_fd, const std::string& name, int fd,
                      const std::string& path) {
  std::string reason;
  try {
    for (const Entry& entry : entries_of(fd, path)) {
      if (S_ISREG(entry.info.st_mode) &&
          (is_known(kind, entry.name) || entry.name == kWorkMarker)) {
        remove_file(fd, entry.name, path);
      }
    }
    if (!names_directory(parent_fd, name, fd)) return;
    if (::unlinkat(parent_fd, name.c_str(), AT_REMOVEDIR) == 0) return;
    reason = std::generic_category().message(errno);
  } catch (const Error& e) {
    reason = e.what();
  }
  log_warning("{}: is left behind ({}); remove it", path, reason);
}

}  // namespace

void AtomicDirectory::check(const std::string& path, bool replace, const DirectoryKind& kind) {
  const std::string bare = bare_path(path);
  const Descriptor parent(::open(parent_of(bare).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (parent.get() < 0 && errno == ENOENT) return;
  CARAVAN_CHECK_OS(parent.get() >= 0, "{}: cannot open", parent_of(bare));
  const Descriptor old(
      open_replaceable(parent.get(), fs::path(bare).filename().string(), bare, replace, kind));
}

AtomicDirectory::AtomicDirectory(const std::string& path, bool replace, const DirectoryKind& kind)
    : kind_(kind),
      replace_(replace),
      path_(bare_path(path)),
      work_path_(path_ + ".partial"),
      name_(fs::path(path_).filename().string()),
      work_name_(name_ + ".partial") {
  const std::string parent = parent_of(path_);
  std::error_code error;
  fs::create_directories(parent, error);
  if (error) throw_os_error(error.value(), parent + ": cannot create");
  Descriptor parent_fd(::open(parent.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  CARAVAN_CHECK_OS(parent_fd.get() >= 0, "{}: cannot open", parent);
  parent_fd_ = parent_fd.get();
  const Descriptor old(open_replaceable(parent_fd_, name_, path_, replace_, kind_));
  open_work_directory();
  parent_fd.release();
  unfinished_ = std::make_unique<UnfinishedFile>(work_path_, UnfinishedFile::OnSignal::kName);
}

void AtomicDirectory::open_work_directory() {
  const bool is_new = ::mkdirat(parent_fd_, work_name_.c_str(), 0777) == 0;
  CARAVAN_CHECK_OS(is_new || errno == EEXIST, "{}: cannot create", work_path_);
  Descriptor fd(
      ::openat(parent_fd_, work_name_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  CARAVAN_CHECK(fd.get() >= 0 || (errno != ELOOP && errno != ENOTDIR),
                "{}: is no directory, and caravan works there; remove it or give another --output",
                work_path_);
  CARAVAN_CHECK_OS(fd.get() >= 0, "{}: cannot open", work_path_);
  const bool is_locked = ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0;
  CARAVAN_CHECK(is_locked || errno != EWOULDBLOCK, "{}: another process is writing it", work_path_);
  CARAVAN_CHECK_OS(is_locked, "{}: cannot lock", work_path_);
  // A process that just finished may have renamed it before the lock was ours.
  CARAVAN_CHECK(names_directory(parent_fd_, work_name_, fd.get()),
                "{}: another process is writing it", work_path_);
  struct stat info {};
  CARAVAN_CHECK_OS(::fstat(fd.get(), &info) == 0, "{}: cannot look at it", work_path_);
  const std::string foreign = is_mount_point(parent_fd_, work_name_)
                                  ? "is a mount point"
                                  : foreign_in_work(kind_, fd.get(), info, is_new, work_path_);
  CARAVAN_CHECK(foreign.empty(),
                "{}: {}, and caravan works there; move it away or give another --output",
                work_path_, foreign);
  const Descriptor marker(open_own_file({fd.get(), kWorkMarker, work_path_ + "/" + kWorkMarker}));
  work_fd_ = fd.release();
}

AtomicDirectory::~AtomicDirectory() {
  if (work_fd_ >= 0) ::close(work_fd_);
  if (parent_fd_ >= 0) ::close(parent_fd_);
}

FileAt AtomicDirectory::file(const std::string& name) const {
  return {work_fd_, name, work_path_ + "/" + name};
}

void AtomicDirectory::clear(const std::set<std::string>& kept) {
  for (const Entry& entry : entries_of(work_fd_, work_path_)) {
    if (entry.name == kWorkMarker || kept.contains(entry.name)) continue;
    CARAVAN_CHECK(S_ISREG(entry.info.st_mode) && is_known(kind_, entry.name),
                  "{}: holds {} \"{}\", which caravan did not write; move it away", work_path_,
                  kind_of(entry.info.st_mode), printable(entry.name));
    remove_file(work_fd_, entry.name, work_path_);
  }
}

void AtomicDirectory::check_room(uint64_t num_bytes) const {
  struct statvfs info {};
  if (::fstatvfs(work_fd_, &info) != 0 || info.f_blocks == 0) return;  // it does not say
  uint64_t available = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  for (const Entry& entry : entries_of(work_fd_, work_path_)) {
    available += static_cast<uint64_t>(entry.info.st_blocks) * 512;
  }
  CARAVAN_CHECK_CODE(num_bytes <= available, kIo,
                     "{}: the files take {:.3f} GB, the file system has {:.3f} GB free: make room "
                     "or give another --output",
                     path_, static_cast<double>(num_bytes) / 1e9,
                     static_cast<double>(available) / 1e9);
}

void AtomicDirectory::commit() {
  remove_file(work_fd_, kWorkMarker, work_path_);
  for (const Entry& entry : entries_of(work_fd_, work_path_)) {
    const Descriptor fd(
        ::openat(work_fd_, entry.name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    CARAVAN_CHECK_OS(fd.get() >= 0 && ::fsync(fd.get()) == 0, "{}/{}: fsync failed", work_path_,
                     entry.name);
  }
  CARAVAN_CHECK_OS(::fsync(work_fd_) == 0 || errno == EINVAL, "{}: fsync failed", work_path_);
  CARAVAN_CHECK_CODE(names_directory(parent_fd_, work_name_, work_fd_), kIo,
                     "{}: was moved away while it was written", work_path_);
  take_place();
  unfinished_.reset();
  sync_directory(parent_of(path_));
}

void AtomicDirectory::take_place() {
  const auto rename = [this](unsigned flags) {
    return ::renameat2(parent_fd_, work_name_.c_str(), parent_fd_, name_.c_str(), flags) == 0;
  };
  const Descriptor old(open_replaceable(parent_fd_, name_, path_, replace_, kind_));
  if (old.get() < 0) {
    // A file system without RENAME_NOREPLACE replaces an empty directory, at most.
    const bool is_done =
        rename(RENAME_NOREPLACE) || ((errno == EINVAL || errno == ENOSYS) && rename(0));
    CARAVAN_CHECK_OS(is_done, "{}: cannot rename", path_);
    return;
  }
  // rename() cannot replace a directory that has files, so the two change places in one step; at no
  // moment is the final name missing.
  CARAVAN_CHECK_OS(rename(RENAME_EXCHANGE), "{}: cannot take the place of the old one", path_);
  if (!names_directory(parent_fd_, work_name_, old.get())) {
    const bool is_undone = rename(RENAME_EXCHANGE);
    CARAVAN_FAIL(kIo, "{}: was replaced by something else in the last moment{}", path_,
                 is_undone ? "" : "; that lies under .partial now");
  }
  remove_directory(kind_, parent_fd_, work_name_, old.get(), work_path_);
}

void AtomicDirectory::discard() {
  if (!names_directory(parent_fd_, work_name_, work_fd_)) return;
  remove_directory(kind_, parent_fd_, work_name_, work_fd_, work_path_);
}

}  // namespace caravan
