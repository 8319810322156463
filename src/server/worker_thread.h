#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace caravan {

/// Runs tasks in order on a thread of its own.
class WorkerThread {
 public:
  WorkerThread();
  /// Runs what is queued, then ends.
  ~WorkerThread();
  WorkerThread(const WorkerThread&) = delete;
  WorkerThread& operator=(const WorkerThread&) = delete;

  /// From any thread; never waits for a task. A task that throws is logged as a defect.
  void post(std::function<void()> task);

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable has_work_;
  std::vector<std::function<void()>> tasks_;
  bool is_ending_ = false;
  std::thread thread_;  // last: it uses the others
};

/// The threads that make texts and answers: one for all that are small, and others for large ones,
/// whose work would hold up everybody's next token. What belongs to one answer stays on its thread.
class OutputThreads {
 public:
  /// For an answer of so many bytes.
  WorkerThread& choose(int64_t num_bytes);

 private:
  static constexpr int64_t kLargeBytes = int64_t{64} << 10;
  WorkerThread small_;
  std::array<WorkerThread, 2> large_;
  std::atomic<uint32_t> next_large_{0};
};

}  // namespace caravan
