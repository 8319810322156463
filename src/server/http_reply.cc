#include "server/http_reply.h"

#include <utility>

namespace caravan {

void HttpReply::notify_locked() {
  if (is_notified_ || !notify_) return;
  is_notified_ = true;
  notify_();
}

void HttpReply::respond(HttpResponse response) {
  std::function<void()> dropped;  // may own the exchange: destroyed without the lock
  const std::lock_guard lock(mutex_);
  if (has_head_) return;
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

bool HttpReply::write(std::string chunk) {
  const std::lock_guard lock(mutex_);
  if (!is_stream_ || is_complete_ || is_cut_ || is_gone_) return false;
  const int64_t backlog = in_flight_ + static_cast<int64_t>(pending_.size());
  // One chunk above the cap may go to a client that has read all before it.
  if (backlog > 0 && backlog + static_cast<int64_t>(chunk.size()) > max_backlog_) {
    is_cut_ = is_too_slow_ = true;
    pending_.clear();
    is_notified_ = false;  // the connection may be busy writing and not have taken the last ones
    notify_locked();
    return false;
  }
  pending_ += chunk;
  if (!chunk.empty()) notify_locked();
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

void HttpReply::fail(HttpResponse response) {
  respond(std::move(response));
  abandon();
}

void HttpReply::abandon() {
  const std::lock_guard lock(mutex_);
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
  is_gone_ = true;
  dropped = std::exchange(notify_, nullptr);
  if (is_complete_) dropped_callback = std::exchange(on_disconnect_, nullptr);
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
  output.payload = std::exchange(pending_, std::string());
  in_flight_ += static_cast<int64_t>(output.payload.size());
  output.is_complete = is_complete_;
  output.is_cut = is_cut_;
  return output;
}

void HttpReply::sent() {
  const std::lock_guard lock(mutex_);
  in_flight_ = 0;
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
