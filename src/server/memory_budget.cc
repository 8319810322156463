#include "server/memory_budget.h"

namespace caravan {

bool MemoryBudget::try_take(int64_t num_bytes, bool is_small) {
  const int64_t most = is_small ? limit_ : limit_ - limit_ / 4;
  int64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (num_bytes > most - used) {
      num_refused_.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
  } while (!used_.compare_exchange_weak(used, used + num_bytes, std::memory_order_relaxed));
  return true;
}

bool MemoryShare::resize(int64_t num_bytes) {
  if (budget_ && num_bytes > num_bytes_) {
    const bool is_small = num_bytes <= MemoryBudget::kSmallBytes;
    if (!budget_->try_take(num_bytes - num_bytes_, is_small)) return false;
    num_bytes_ = num_bytes;
  }
  force(num_bytes);
  return true;
}

void MemoryShare::force(int64_t num_bytes) {
  if (!budget_) return;
  if (num_bytes > num_bytes_) budget_->take(num_bytes - num_bytes_);
  if (num_bytes < num_bytes_) budget_->give_back(num_bytes_ - num_bytes);
  num_bytes_ = num_bytes;
}

}  // namespace caravan
