#include "server/http_reply.h"

#include <utility>

namespace caravan {

namespace {

constexpr int64_t kFreeBytes = int64_t{16} << 10;   // of a reply: never refused for the budget
constexpr size_t kPayloadBytes = size_t{64} << 10;  // up to which take() joins chunks

}  // namespace

void HttpReply::notify_locked() {
  if (is_notified_ || !notify_) return;
  is_notified_ = true;
  notify_();
}

void HttpReply::respond(HttpResponse response) {
  std::function<void()> dropped;  // may own the exchange: destroyed without the lock
  const std::lock_guard lock(mutex_);
  if (has_head_) return;
  if (reserved_.num_bytes() > 0) share_ = std::move(reserved_);
  const auto num_bytes = static_cast<int64_t>(response.body.size());
  if (num_bytes <= kFreeBytes) {
    share_.force(num_bytes);
  } else if (!share_.resize(num_bytes)) {
    response = overloaded_response("the server has no memory for this answer now; try again");
  }
  head_ = std::move(response);
  has_head_ = is_complete_ = true;
  dropped = std::exchange(on_disconnect_, nullptr);
  notify_locked();
}

void HttpReply::start_stream(HttpResponse head) {
  const std::lock_guard lock(mutex_);
  if (has_head_) return;
  head_ = std::move(head);
  has_head_ = is_stream_ = true;
  notify_locked();
}

/// A client is judged by what it reads, not by what a handler writes at once: it is too slow when
/// in all of the grace more than the cap waited and it took less than that.
void HttpReply::update_backlog_locked() {
  const int64_t num_read = num_taken_ - num_unsent_;
  if (backlog_locked() <= limits_.max_backlog) {
    above_since_.reset();
  } else if (!above_since_ || num_read >= wanted_read_) {
    above_since_ = Clock::now();
    wanted_read_ = num_read + limits_.max_backlog;
  }
  share_.force(backlog_locked());
}

bool HttpReply::write(std::string chunk) {
  const std::lock_guard lock(mutex_);
  if (!is_stream_ || is_complete_ || is_cut_ || is_gone_) return false;
  if (chunk.empty()) return true;
  const auto num_bytes = static_cast<int64_t>(chunk.size());
  const std::chrono::duration<double> grace(limits_.backlog_grace_s);
  const bool is_late = above_since_ && Clock::now() - *above_since_ >= grace;
  const int64_t backlog = backlog_locked() + num_bytes;
  const bool is_too_much = limits_.budget && backlog > limits_.budget->limit() / 4;
  if (is_late || is_too_much || (backlog > kFreeBytes && !share_.resize(backlog))) {
    is_cut_ = is_too_slow_ = true;
    pending_.clear();
    num_pending_ = 0;
    is_notified_ = false;  // the connection may be busy writing and not have taken the last ones
    notify_locked();
    return false;
  }
  pending_.push_back(std::move(chunk));
  num_pending_ += num_bytes;
  update_backlog_locked();
  notify_locked();
  return true;
}

void HttpReply::finish() {
  std::function<void()> dropped;
  const std::lock_guard lock(mutex_);
  if (!is_stream_ || is_complete_) return;
  is_complete_ = true;
  dropped = std::exchange(on_disconnect_, nullptr);
  notify_locked();
}

void HttpReply::on_disconnect(std::function<void()> callback) {
  {
    const std::lock_guard lock(mutex_);
    if (is_complete_) return;
    if (!is_gone_) {
      std::swap(on_disconnect_, callback);
      return;
    }
  }
  callback();
}

bool HttpReply::is_gone() {
  const std::lock_guard lock(mutex_);
  return is_gone_;
}

bool HttpReply::reserve(int64_t num_bytes) {
  const std::lock_guard lock(mutex_);
  return reserved_.resize(reserved_.num_bytes() + num_bytes);
}

void HttpReply::fail(HttpResponse response) {
  respond(std::move(response));
  abandon();
}

void HttpReply::abandon() {
  const std::lock_guard lock(mutex_);
  reserved_.release();
  if (is_complete_) return;
  is_complete_ = true;
  if (has_head_ || is_gone_) {
    is_cut_ = true;
  } else {
    head_ = error_response(500, "the request was dropped without an answer", "internal_error");
    has_head_ = true;
  }
  notify_locked();
}

void HttpReply::attach(std::function<void()> notify) {
  const std::lock_guard lock(mutex_);
  notify_ = std::move(notify);
}

void HttpReply::detach() {
  std::function<void()> dropped;
  std::function<void()> dropped_callback;
  const std::lock_guard lock(mutex_);
  is_gone_ = is_detached_ = true;
  dropped = std::exchange(notify_, nullptr);
  if (is_complete_) dropped_callback = std::exchange(on_disconnect_, nullptr);
  pending_.clear();
  num_pending_ = num_unsent_ = 0;
  share_.release();
}

bool HttpReply::is_detached() {
  const std::lock_guard lock(mutex_);
  return is_detached_;
}

HttpReply::Output HttpReply::take() {
  const std::lock_guard lock(mutex_);
  is_notified_ = false;
  Output output;
  if (has_head_ && !is_head_taken_) {
    is_head_taken_ = true;
    output.head = std::move(head_);
  }
  output.is_stream = is_stream_;
  while (!pending_.empty() && (output.payload.empty() ||
                               output.payload.size() + pending_.front().size() <= kPayloadBytes)) {
    if (output.payload.empty()) {
      output.payload = std::move(pending_.front());
    } else {
      output.payload += pending_.front();
    }
    pending_.pop_front();
  }
  const auto num_bytes = static_cast<int64_t>(output.payload.size());
  num_pending_ -= num_bytes;
  num_unsent_ += num_bytes;
  num_taken_ += num_bytes;
  output.has_more = !pending_.empty();
  output.is_complete = is_complete_ && !output.has_more;
  output.is_cut = is_cut_;
  return output;
}

void HttpReply::note_unsent(int64_t num_bytes) {
  const std::lock_guard lock(mutex_);
  if (!is_stream_ || is_cut_) return;
  num_unsent_ = num_bytes;
  update_backlog_locked();
}

bool HttpReply::is_too_slow() {
  const std::lock_guard lock(mutex_);
  return is_too_slow_;
}

void HttpReply::disconnect() {
  std::function<void()> callback;
  {
    const std::lock_guard lock(mutex_);
    is_gone_ = true;
    callback = std::exchange(on_disconnect_, nullptr);
    if (is_complete_ && !is_cut_) return;
  }
  if (callback) callback();
}

}  // namespace caravan
