#include "server/work_budget.h"

#include <fmt/core.h>

#include <utility>

#include "server/api_error.h"

namespace caravan {

namespace {

constexpr int kClientLeft = 499;  // nobody gets it

}  // namespace

WorkBudget::WorkBudget(size_t max_bytes, Clock::time_point deadline, std::function<bool()> is_gone)
    : max_bytes_(max_bytes), deadline_(deadline), is_gone_(std::move(is_gone)) {}

void WorkBudget::spend(size_t num_bytes) {
  if (is_gone_ && is_gone_()) throw ApiError(kClientLeft, "aborted", "the client has left");
  if (Clock::now() >= deadline_) {
    throw ApiError(504, "timeout_error",
                   "the request took longer to prepare than the server allows: send less text");
  }
  if (num_bytes > max_bytes_ - num_spent_) {
    throw ApiError(413, "invalid_request_error",
                   fmt::format("the request makes more than {} bytes of work: send less text, or "
                               "ask for less",
                               max_bytes_),
                   "", "request_too_large");
  }
  num_spent_ += num_bytes;
}

}  // namespace caravan
