#pragma once

#include <ctime>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace caravan {

/// Aborts when reading an input took more CPU time than its size allows: what is quadratic in a
/// seed's size, or whatever few bytes stand for, is a defect. Generous: sanitizers are slow.
class CpuBudget {
 public:
  /// fixed_seconds: what bounds that do not depend on the size may take.
  explicit CpuBudget(size_t num_bytes, double fixed_seconds = 1)
      : allowed_(fixed_seconds + 20e-6 * static_cast<double>(num_bytes)), start_(now()) {}
  CpuBudget(const CpuBudget&) = delete;
  CpuBudget& operator=(const CpuBudget&) = delete;
  ~CpuBudget() {
    const double taken = now() - start_;
    if (taken <= allowed_) return;
    std::fprintf(stderr, "%.2f s of CPU time, %.2f s are allowed for this size\n", taken, allowed_);
    std::abort();
  }

 private:
  static double now() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }

  double allowed_;
  double start_;
};

}  // namespace caravan
