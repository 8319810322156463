#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "server/http.h"

namespace caravan {

/// One reply on its way from a handler, on any threads, to its connection. Holds nothing of the
/// connection but what attach() gave it until detach(), so an exchange may outlive the server.
class HttpReply {
 public:
  /// `max_backlog`: bytes of a stream that may wait for the client.
  explicit HttpReply(int64_t max_backlog) : max_backlog_(max_backlog) {}

  // The handler's side: see HttpExchange. Calls that come too late or twice have no effect.
  void respond(HttpResponse response);
  void start_stream(HttpResponse head);
  bool write(std::string chunk);
  void finish();
  void on_disconnect(std::function<void()> callback);
  /// The handler failed, or dropped its exchange: 500 when nothing was sent, else the stream is
  /// cut.
  void fail(HttpResponse response);
  void abandon();

  // The connection's side.
  struct Output {
    std::optional<HttpResponse> head;  // once; with its body unless it is of a stream
    bool is_stream = false;
    std::string payload;       // of a stream, since the last call
    bool is_complete = false;  // nothing more will come
    bool is_cut = false;       // the connection must end as if there were more
  };
  /// `notify` is called, on any thread and with a lock held, when take() has something new.
  void attach(std::function<void()> notify);
  void detach();
  /// What is new. The bytes count as backlog until sent().
  Output take();
  void sent();
  /// The client has not read more than the cap, or is gone: nothing of the rest matters.
  bool is_too_slow();
  /// The client is gone: runs the callback of on_disconnect. Once; further calls do nothing.
  void disconnect();

 private:
  void notify_locked();

  const int64_t max_backlog_;
  std::mutex mutex_;
  std::function<void()> notify_;
  std::function<void()> on_disconnect_;
  HttpResponse head_;
  std::string pending_;
  int64_t in_flight_ = 0;
  bool is_notified_ = false;
  bool has_head_ = false;
  bool is_head_taken_ = false;
  bool is_stream_ = false;
  bool is_complete_ = false;
  bool is_cut_ = false;
  bool is_too_slow_ = false;
  bool is_gone_ = false;
};

/// What a handler holds.
class ReplyExchange : public HttpExchange {
 public:
  ReplyExchange(HttpRequest request, std::shared_ptr<HttpReply> reply) : reply_(std::move(reply)) {
    request_ = std::move(request);
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

 private:
  std::shared_ptr<HttpReply> reply_;
};

}  // namespace caravan
