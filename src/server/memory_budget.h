#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

namespace caravan {

/// Counts the bytes that a server holds for its clients: bodies, answers, what is not sent yet. A
/// quarter is kept for small shares, so that a few large ones never leave short requests without.
/// Thread safe.
class MemoryBudget {
 public:
  static constexpr int64_t kSmallBytes = int64_t{64} << 10;

  explicit MemoryBudget(int64_t limit) : limit_(limit) {}

  /// Takes the bytes, or none of them and returns false.
  bool try_take(int64_t num_bytes, bool is_small);
  /// Takes them whatever the limit: for what is bounded elsewhere.
  void take(int64_t num_bytes) { used_.fetch_add(num_bytes, std::memory_order_relaxed); }
  void give_back(int64_t num_bytes) { used_.fetch_sub(num_bytes, std::memory_order_relaxed); }

  int64_t limit() const { return limit_; }
  int64_t used() const { return used_.load(std::memory_order_relaxed); }
  int64_t num_refused() const { return num_refused_.load(std::memory_order_relaxed); }
  /// Whether large shares are about to be refused.
  bool is_tight() const { return used() > limit_ / 2; }

 private:
  const int64_t limit_;
  std::atomic<int64_t> used_{0};
  std::atomic<int64_t> num_refused_{0};
};

/// Bytes of a budget, given back when it goes. One without a budget takes what it likes.
class MemoryShare {
 public:
  MemoryShare() = default;
  explicit MemoryShare(std::shared_ptr<MemoryBudget> budget) : budget_(std::move(budget)) {}
  ~MemoryShare() { release(); }
  MemoryShare(MemoryShare&& other) noexcept
      : budget_(std::move(other.budget_)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}
  MemoryShare& operator=(MemoryShare&& other) noexcept {
    if (this != &other) {
      release();
      budget_ = std::move(other.budget_);
      num_bytes_ = std::exchange(other.num_bytes_, 0);
    }
    return *this;
  }

  int64_t num_bytes() const { return num_bytes_; }
  /// Holds so many bytes from here on, or as many as before and returns false.
  bool resize(int64_t num_bytes);
  /// The same, whatever the limit.
  void force(int64_t num_bytes);
  void release() { force(0); }

 private:
  std::shared_ptr<MemoryBudget> budget_;
  int64_t num_bytes_ = 0;
};

}  // namespace caravan
