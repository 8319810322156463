#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace caravan {

/// Lines that were not written because nobody read stderr, since the process began.
int64_t num_dropped_log_lines();

/// While it lives, log_line() never waits: lines go through a bounded queue to a thread that writes
/// them in order. When the queue is full, lines are dropped and counted, warnings and errors last;
/// a line says how many as soon as stderr is read again. One at a time.
class LogThread {
 public:
  static constexpr size_t kMaxBytes = size_t{1} << 20;

  explicit LogThread(int fd = 2, size_t max_bytes = kMaxBytes);
  /// Writes what waits, for a second at most: a reader that stalls does not hold up the end.
  ~LogThread();
  LogThread(const LogThread&) = delete;
  LogThread& operator=(const LogThread&) = delete;

  /// Whether everything was written before so many milliseconds were over.
  bool flush(int timeout_ms);

 private:
  struct Queue;
  std::shared_ptr<Queue> queue_;
};

}  // namespace caravan
