#pragma once

#include <condition_variable>
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

}  // namespace caravan
