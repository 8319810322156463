#include "core/standard_output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>

#include "core/error.h"

namespace caravan {

namespace {

[[noreturn]] void fail(int error) {
  CARAVAN_FAIL(kIo, "standard output: write failed{}",
               error == 0 ? "" : ": " + std::generic_category().message(error));
}

}  // namespace

void write_output(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) fail(errno);
}

void flush_output() {
  errno = 0;
  if (std::fflush(stdout) != 0) fail(errno);
  if (std::ferror(stdout) != 0) fail(0);
}

void reserve_standard_descriptors() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (::fcntl(fd, F_GETFD) != -1 || errno != EBADF) continue;
    // The mode that does not serve: reading 0 and writing 1 or 2 still fail with EBADF. open()
    // takes the lowest free number, which is fd.
    const int opened = ::open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
    if (opened > 2) ::close(opened);
  }
}

void close_output() {
  const bool was_lost = std::ferror(stdout) != 0;
  errno = 0;
  if (std::fflush(stdout) != 0) fail(errno);
  if (was_lost) fail(0);
  // Some file systems (NFS, quotas) report a lost write only here. EBADF: nothing was written. Not
  // fclose(): the C++ streams flush stdout once more at exit.
  if (::close(STDOUT_FILENO) != 0 && errno != EBADF) fail(errno);
}

}  // namespace caravan
