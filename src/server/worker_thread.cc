#include "server/worker_thread.h"

#include <exception>
#include <utility>

#include "core/log.h"

namespace caravan {

WorkerThread::WorkerThread() : thread_([this] { run(); }) {}

WorkerThread::~WorkerThread() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  has_work_.notify_one();
  thread_.join();
}

void WorkerThread::post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  has_work_.notify_one();
}

void WorkerThread::run() {
  std::vector<std::function<void()>> tasks;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      has_work_.wait(lock, [this] { return !tasks_.empty() || is_ending_; });
      if (tasks_.empty()) return;
      tasks.swap(tasks_);
    }
    for (std::function<void()>& task : tasks) {
      try {
        task();
      } catch (const std::exception& error) {
        log_line(LogLevel::kError,
                 fmt::format("a task of the output thread failed: {}", error.what()));
      }
      task = nullptr;  // what it holds goes before the next one runs
    }
    tasks.clear();
  }
}

WorkerThread& OutputThreads::choose(int64_t num_bytes) {
  if (num_bytes < kLargeBytes) return small_;
  return large_[next_large_++ % large_.size()];
}

}  // namespace caravan
