#pragma once

#include <array>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/http_access.h"
#include "server/http_connection_table.h"
#include "server/http_encoding.h"
#include "server/http_head.h"
#include "server/http_reply.h"
#include "server/http_router.h"
#include "server/http_server.h"

namespace caravan {

/// What the connections of a server share. It outlives them.
struct HttpShared {
  HttpShared(HttpServerOptions server_options, std::vector<HttpRoute> server_routes);

  const HttpServerOptions options;
  const std::vector<HttpRoute> routes;
  const HttpAccess access;
  const std::shared_ptr<MemoryBudget> budget;
  HttpConnectionTable table;
  /// Runs the route's handler on another thread.
  std::function<void(const HttpRoute&, HttpRequest, MemoryShare, std::shared_ptr<HttpReply>)>
      run_handler;

  std::atomic<bool> is_draining{false};
  std::atomic<bool> is_stopping{false};
  std::atomic<int64_t> num_requests{0};
  std::atomic<int64_t> num_refused{0};
  std::atomic<int64_t> num_evicted{0};
  std::atomic<int64_t> num_disconnects{0};
  std::vector<std::atomic<int>> logged_status;  // of quick routes, as in `routes`; 0: none yet
};

/// One client. Everything runs on its strand: the coroutine serve() decides what is next; reads and
/// writes go on beside it and wake it, so that it sees a client leave whatever it waits for.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;

  /// `is_surplus`: above the limit of connections; only quick public routes are answered.
  HttpConnection(HttpShared& shared, Socket socket, bool is_surplus);

  /// Serves it on its own strand until it is over.
  void start();
  /// From any thread: looks again whether the server stops.
  void wake();
  /// From any thread: closes it unless it has a request.
  void evict();

 private:
  using Clock = std::chrono::steady_clock;
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;
  enum class Next { kRequest, kLinger, kClose };

  const HttpServerOptions& options() const { return shared_.options; }
  bool is_ending() const { return shared_.is_stopping; }

  // Input.
  void read_more();
  void on_readable(boost::system::error_code error);
  void consume(size_t num_bytes);
  void set_read_limit(size_t num_bytes);

  // Output.
  void write(std::string bytes);
  void write_some();
  void end_write();
  void note_unsent();
  /// Whether the client took too little in the window that has passed; begins the next one.
  bool is_too_slow_to_write();

  // The coroutine's steps.
  Awaitable<void> serve();
  Awaitable<void> sleep_until(Clock::time_point deadline);
  Awaitable<Next> serve_request(bool is_first);
  Awaitable<std::optional<HttpProblem>> read_head(HttpHead& head, bool is_first);
  Awaitable<std::optional<HttpProblem>> read_body(HttpHead& head, MemoryShare& share);
  Awaitable<Next> answer_request(const HttpRoute& route, HttpHead& head, MemoryShare& body_share);
  Awaitable<Next> send_refusal(HttpResponse response, bool keep_alive);
  Awaitable<Next> send_reply(std::shared_ptr<HttpReply> reply);
  Awaitable<bool> flush();
  Awaitable<void> linger();

  /// What send_reply() knows of the response under way.
  struct Sending {
    HttpBodyForm form = HttpBodyForm::kLength;
    Next next = Next::kClose;
    int status = 0;  // 0: no head yet
    int64_t num_body_bytes = 0;
    bool is_event_stream = false;
    bool was_told = false;  // the handler, that the client has ended its side
    bool has_more = false;
    Clock::time_point gone_deadline = Clock::time_point::max();
    Clock::time_point last_output;
  };
  void send_head(Sending& sending, HttpReply::Output& output);
  /// Writes what the reply has; false when it has not come to its end.
  bool send_output(Sending& sending, HttpReply& reply, bool& is_cut);

  std::optional<HttpResponse> refuse(const HttpHead& head, const HttpRouteMatch& match) const;
  HttpResponse options_response(const HttpRouteMatch& match) const;
  void begin_request(const HttpHead& head);
  void add_headers(HttpResponse& response) const;
  void log_request(int status, int64_t num_bytes) const;
  Next after(bool keep_alive) const {
    return keep_alive && !shared_.is_draining ? Next::kRequest : Next::kLinger;
  }

  HttpShared& shared_;
  Socket socket_;
  boost::asio::steady_timer wake_;
  const bool is_surplus_;
  const Clock::time_point accepted_;
  std::string peer_;
  bool is_evicted_ = false;

  std::string input_;
  MemoryShare input_share_;
  size_t read_limit_;
  bool is_reading_ = false;
  bool is_discarding_ = false;  // what comes matters no more
  int64_t num_discarded_ = 0;
  bool has_ended_ = false;  // the client sends nothing more
  bool has_failed_ = false;
  bool lacks_memory_ = false;

  std::deque<std::string> output_;
  size_t num_front_written_ = 0;  // of the first piece
  int64_t num_unsent_ = 0;        // of all of them
  int64_t num_written_ = 0;       // since the connection began
  bool is_writing_ = false;
  Clock::time_point window_begin_{};
  int64_t window_taken_ = 0;    // by the client, at the window's begin
  int64_t window_unsent_ = 0;   // then
  HttpReply* reply_ = nullptr;  // of the stream under way

  // Of the request in hand, for its response and its line in the log.
  std::string method_;
  std::string target_;
  std::string request_id_;
  HttpHeaders cors_;
  const HttpRoute* route_ = nullptr;
  bool keep_alive_ = false;
  bool is_http10_ = false;
  Clock::time_point began_{};
};

}  // namespace caravan
