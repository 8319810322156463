#pragma once

#include <chrono>
#include <cstddef>
#include <functional>

namespace caravan {

/// What a handler may spend on one request: bytes that it encodes or writes, and time. Its loops
/// ask as they go on, so that no request holds a thread, or memory, without a bound.
class WorkBudget {
 public:
  using Clock = std::chrono::steady_clock;

  /// is_gone: whether nobody waits for the answer any more; may be empty.
  WorkBudget(size_t max_bytes, Clock::time_point deadline, std::function<bool()> is_gone);

  /// Errors: ApiError 499 when nobody waits, 504 after the deadline, 413 when more bytes are wanted
  /// than the budget has.
  void spend(size_t num_bytes);
  void check() { spend(0); }
  size_t num_spent() const { return num_spent_; }

 private:
  size_t max_bytes_;
  Clock::time_point deadline_;
  std::function<bool()> is_gone_;
  size_t num_spent_ = 0;
};

}  // namespace caravan
