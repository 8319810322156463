#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "server/http.h"

namespace caravan {

struct HttpReplyLimits {
  int64_t max_backlog = int64_t{256} << 10;  // of a stream, without a look at the client's speed
  double backlog_grace_s = 5;                // in which a client with more must take as much
  std::shared_ptr<MemoryBudget> budget;      // nullptr: none
};

/// One reply on its way from a handler, on any threads, to its connection. Holds nothing of the
/// connection but what attach() gave it until detach(), so an exchange may outlive the server.
class HttpReply {
 public:
  explicit HttpReply(HttpReplyLimits limits)
      : limits_(std::move(limits)), share_(limits_.budget), reserved_(limits_.budget) {}

  // The handler's side: see HttpExchange. Calls that come too late or twice have no effect.
  void respond(HttpResponse response);
  void start_stream(HttpResponse head);
  bool write(std::string chunk);
  void finish();
  void on_disconnect(std::function<void()> callback);
  bool is_gone();
  bool reserve(int64_t num_bytes);
  /// The handler failed, or dropped its exchange: 500 when nothing was sent, else the stream is
  /// cut.
  void fail(HttpResponse response);
  void abandon();

  // The connection's side.
  struct Output {
    std::optional<HttpResponse> head;  // once; with its body unless it is of a stream
    bool is_stream = false;
    std::string payload;       // of a stream, the next of what waits
    bool has_more = false;     // more of it can be taken at once
    bool is_complete = false;  // nothing more will come
    bool is_cut = false;       // the connection must end as if there were more
  };
  /// `notify` is called, on any thread and with a lock held, when take() has something new.
  void attach(std::function<void()> notify);
  void detach();
  bool is_detached();
  /// What is new. A payload counts as backlog until note_unsent() says otherwise.
  Output take();
  /// How much of what was taken the connection still holds.
  void note_unsent(int64_t num_bytes);
  /// The client has not read more than the cap, or is gone: nothing of the rest matters.
  bool is_too_slow();
  /// The client is gone: runs the callback of on_disconnect. Once; further calls do nothing.
  void disconnect();

 private:
  using Clock = std::chrono::steady_clock;

  void notify_locked();
  int64_t backlog_locked() const { return num_pending_ + num_unsent_; }
  void update_backlog_locked();

  const HttpReplyLimits limits_;
  std::mutex mutex_;
  MemoryShare share_;     // of what waits for the client
  MemoryShare reserved_;  // of an answer in the making
  std::function<void()> notify_;
  std::function<void()> on_disconnect_;
  HttpResponse head_;
  std::deque<std::string> pending_;
  int64_t num_pending_ = 0;  // bytes of pending_
  int64_t num_unsent_ = 0;   // taken, but not by the client
  int64_t num_taken_ = 0;
  // Since when the backlog is above the cap, and what the client must have read for it to be new.
  std::optional<Clock::time_point> above_since_;
  int64_t wanted_read_ = 0;
  bool is_notified_ = false;
  bool has_head_ = false;
  bool is_head_taken_ = false;
  bool is_stream_ = false;
  bool is_complete_ = false;
  bool is_cut_ = false;
  bool is_too_slow_ = false;
  bool is_gone_ = false;
  bool is_detached_ = false;
};

/// What a handler holds.
class ReplyExchange : public HttpExchange {
 public:
  ReplyExchange(HttpRequest request, MemoryShare body_share, std::shared_ptr<HttpReply> reply)
      : reply_(std::move(reply)) {
    request_ = std::move(request);
    body_share_ = std::move(body_share);
  }
  ~ReplyExchange() override { reply_->abandon(); }
  ReplyExchange(const ReplyExchange&) = delete;
  ReplyExchange& operator=(const ReplyExchange&) = delete;

  void respond(HttpResponse response) override { reply_->respond(std::move(response)); }
  void start_stream(HttpResponse head) override { reply_->start_stream(std::move(head)); }
  bool write(std::string chunk) override { return reply_->write(std::move(chunk)); }
  void finish() override { reply_->finish(); }
  void on_disconnect(std::function<void()> callback) override {
    reply_->on_disconnect(std::move(callback));
  }
  bool is_gone() const override { return reply_->is_gone(); }
  bool reserve(int64_t num_bytes) override { return reply_->reserve(num_bytes); }

 private:
  std::shared_ptr<HttpReply> reply_;
};

}  // namespace caravan
