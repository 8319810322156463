#include "core/log.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "core/log_thread.h"

namespace caravan {

namespace {

constexpr size_t kPieceBytes = 4096;  // PIPE_BUF: a pipe that poll() calls writable takes so many
constexpr int kPollMs = 100;
constexpr int kEndMs = 1000;

// The one process-wide setting: what a person wants to see on stderr.
std::atomic<LogLevel> g_level{LogLevel::kInfo};

std::atomic<int64_t> g_num_dropped{0};
// Where lines go while there is a LogThread; a line of another thread may outlive it.
std::atomic<bool> g_is_queued{false};
std::mutex g_mutex;
std::function<void(LogLevel, std::string)> g_push;

const char* prefix(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug: ";
    case LogLevel::kWarning:
      return "warning: ";
    case LogLevel::kError:
      return "error: ";
    default:
      return "";
  }
}

std::string format_line(LogLevel level, std::string_view message) {
  return fmt::format("caravan: {}{}\n", prefix(level), message);
}

}  // namespace

void set_log_level(LogLevel level) { g_level.store(level, std::memory_order_relaxed); }
LogLevel log_level() { return g_level.load(std::memory_order_relaxed); }
int64_t num_dropped_log_lines() { return g_num_dropped.load(std::memory_order_relaxed); }

void log_line(LogLevel level, std::string_view message) {
  if (level < log_level()) return;
  std::string line = format_line(level, message);
  if (g_is_queued.load(std::memory_order_acquire)) {
    const std::lock_guard lock(g_mutex);
    if (g_push) return g_push(level, std::move(line));
  }
  std::fwrite(line.data(), 1, line.size(), stderr);
}

struct LogThread::Queue {
  Queue(int stream, size_t most) : fd(stream), max_bytes(most) {}

  void push(LogLevel level, std::string line);
  void run();
  bool write_all(const std::string& text);
  bool wait_until_written(int timeout_ms);

  const int fd;
  const size_t max_bytes;
  std::mutex mutex;
  std::condition_variable changes;
  std::string lines;
  size_t num_writing = 0;   // bytes that the thread has taken from `lines`
  int64_t num_dropped = 0;  // since the line that said so
  bool is_ending = false;
  std::atomic<bool> is_abandoned{false};
};

void LogThread::Queue::push(LogLevel level, std::string line) {
  const std::lock_guard lock(mutex);
  const size_t most = level >= LogLevel::kWarning ? 2 * max_bytes : max_bytes;
  if (lines.size() + num_writing + line.size() > most) {
    ++num_dropped;
    g_num_dropped.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  lines += line;
  changes.notify_all();
}

/// False when the queue was abandoned before all of it was written.
bool LogThread::Queue::write_all(const std::string& text) {
  for (size_t begin = 0; begin < text.size();) {
    if (is_abandoned) return false;
    pollfd poll_fd = {.fd = fd, .events = POLLOUT, .revents = 0};
    if (::poll(&poll_fd, 1, kPollMs) == 0) continue;
    const ssize_t count =
        ::write(fd, text.data() + begin, std::min(kPieceBytes, text.size() - begin));
    if (count > 0) {
      begin += static_cast<size_t>(count);
    } else if (errno == EAGAIN) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    } else if (errno != EINTR) {
      return true;  // nobody can read it: closed, or a full disk
    }
  }
  return true;
}

void LogThread::Queue::run() {
  std::unique_lock lock(mutex);
  for (;;) {
    changes.wait(lock, [this] { return !lines.empty() || is_ending; });
    if (lines.empty()) return;
    std::string text = std::exchange(lines, std::string());
    num_writing = text.size();
    lock.unlock();
    const bool is_written = write_all(text);
    lock.lock();
    num_writing = 0;
    if (!is_written) return;
    if (num_dropped > 0) {
      lines += format_line(LogLevel::kWarning,
                           fmt::format("{} lines of the log were dropped: stderr was not read",
                                       std::exchange(num_dropped, 0)));
    }
    changes.notify_all();
  }
}

bool LogThread::Queue::wait_until_written(int timeout_ms) {
  std::unique_lock lock(mutex);
  return changes.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                          [this] { return lines.empty() && num_writing == 0; });
}

LogThread::LogThread(int fd, size_t max_bytes) : queue_(std::make_shared<Queue>(fd, max_bytes)) {
  // Detached, because a write may never return.
  std::thread([queue = queue_] { queue->run(); }).detach();
  const std::lock_guard lock(g_mutex);
  g_push = [queue = queue_](LogLevel level, std::string line) {
    queue->push(level, std::move(line));
  };
  g_is_queued.store(true, std::memory_order_release);
}

LogThread::~LogThread() {
  const bool is_written = flush(kEndMs);
  const std::lock_guard lock(g_mutex);
  {
    const std::lock_guard queue_lock(queue_->mutex);
    queue_->is_ending = true;
  }
  queue_->is_abandoned = !is_written;
  queue_->changes.notify_all();
  if (is_written) {
    g_push = nullptr;
    g_is_queued.store(false, std::memory_order_release);
  } else {
    // Writing to stderr would wait for its reader.
    g_push = [](LogLevel, std::string) { g_num_dropped.fetch_add(1, std::memory_order_relaxed); };
  }
}

bool LogThread::flush(int timeout_ms) { return queue_->wait_until_written(timeout_ms); }

}  // namespace caravan
