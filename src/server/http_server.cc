#include "server/http_server.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "server/http_body.h"
#include "server/http_encoding.h"
#include "server/http_head.h"
#include "server/http_reply.h"
#include "server/http_router.h"

namespace caravan {

namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using Socket = asio::generic::stream_protocol::socket;
using ReusePort = asio::detail::socket_option::boolean<SOL_SOCKET, SO_REUSEPORT>;

constexpr size_t kInputBytes = 65536;       // read ahead of what has been understood
constexpr int kSendBufferBytes = 131072;    // bounds what the kernel keeps for a slow reader
constexpr int64_t kSpareConnections = 256;  // above max_connections: they are told so
constexpr auto kLinger = std::chrono::seconds(2);
constexpr size_t kLingerBytes = size_t{1} << 20;
constexpr auto kGoneGrace = std::chrono::seconds(5);  // for a handler whose client has left
constexpr int kClientLeft = 499;                      // in the log only, as nginx has it
constexpr auto kAcceptBackOff = std::chrono::milliseconds(50);

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

bool is_unix_path(const std::string& host) {
  return host.size() > 5 && host.compare(host.size() - 5, 5, ".sock") == 0;
}

std::string join_host_port(const std::string& host, int port) {
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

/// "10.0.0.1:5555", or "local" for a Unix socket.
std::string peer_name(const Socket& socket) {
  error_code error;
  const asio::generic::stream_protocol::endpoint generic = socket.remote_endpoint(error);
  const int family = generic.protocol().family();
  if (error || (family != AF_INET && family != AF_INET6)) return "local";
  asio::ip::tcp::endpoint endpoint;
  if (generic.size() > endpoint.capacity()) return "local";
  std::memcpy(endpoint.data(), generic.data(), generic.size());
  endpoint.resize(generic.size());
  return join_host_port(endpoint.address().to_string(), endpoint.port());
}

HttpResponse problem_response(const HttpProblem& problem) {
  return error_response(problem.status, problem.message, "invalid_request_error");
}

void check_options(const HttpServerOptions& options) {
  const auto at_least = [](const char* name, double value, double least) {
    CARAVAN_CHECK(value >= least, "{}: got {}, expected at least {}", name, value, least);
  };
  CARAVAN_CHECK(options.port >= 0 && options.port <= 65535, "port: got {}, expected 0 to 65535",
                options.port);
  at_least("I/O threads", options.num_io_threads, 1);
  at_least("workers", options.num_workers, 1);
  at_least("connections", static_cast<double>(options.max_connections), 1);
  at_least("body bytes", static_cast<double>(options.max_body_bytes), 0);
  at_least("stream backlog", static_cast<double>(options.max_stream_backlog), 1);
  for (const double timeout : {options.header_timeout_s, options.body_timeout_s,
                               options.write_timeout_s, options.idle_timeout_s}) {
    CARAVAN_CHECK(timeout > 0 && timeout < 1e6, "time limit: got {} s, expected more than 0",
                  timeout);
  }
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(HttpServerOptions options, std::vector<HttpRoute> routes);
  ~Impl() { stop(); }

  void start();
  int port() const { return port_; }
  std::string url() const;
  bool drain(int64_t timeout_ms);
  void stop();
  HttpServerStats stats() const;

 private:
  class Connection;

  void listen_tcp();
  void listen_unix();
  template <typename Acceptor>
  asio::awaitable<void> accept_from(Acceptor& acceptor);
  void add(Socket socket);
  void remove(Connection* connection);
  void close_acceptors();
  void wake_all();
  bool wait_until_empty(int64_t timeout_ms);
  void run_handler(const HttpRoute& route, HttpRequest request,
                   const std::shared_ptr<HttpReply>& reply);

  const HttpServerOptions options_;
  const std::vector<HttpRoute> routes_;
  const HttpAccess access_;
  asio::io_context io_;
  asio::strand<asio::io_context::executor_type> accept_strand_{asio::make_strand(io_)};
  asio::ip::tcp::acceptor tcp_acceptor_{accept_strand_};
  asio::local::stream_protocol::acceptor unix_acceptor_{accept_strand_};
  int port_ = 0;

  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work_;
  std::optional<asio::thread_pool> workers_;
  std::vector<std::thread> threads_;

  std::atomic<bool> is_draining_{false};
  std::atomic<bool> is_stopping_{false};
  std::atomic<int64_t> num_requests_{0};
  std::atomic<int64_t> num_refused_{0};
  std::atomic<int64_t> num_disconnects_{0};

  std::mutex stop_mutex_;  // one stop() at a time
  mutable std::mutex mutex_;
  std::condition_variable is_empty_;
  std::unordered_map<Connection*, std::weak_ptr<Connection>> connections_;
};

/// One client. Everything runs on its strand: the coroutine serve() decides what is next; reads and
/// writes go on beside it and wake it, so that it sees a client leave whatever it waits for.
class HttpServer::Impl::Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Impl& server, Socket socket, bool is_surplus)
      : server_(server),
        socket_(std::move(socket)),
        wake_(socket_.get_executor()),
        is_surplus_(is_surplus) {
    error_code ignored;
    socket_.non_blocking(true, ignored);
    socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    socket_.set_option(asio::socket_base::keep_alive(true), ignored);
    socket_.set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
    peer_ = peer_name(socket_);
  }

  Socket::executor_type executor() { return socket_.get_executor(); }
  asio::awaitable<void> serve();
  void wake() { wake_.cancel(); }

 private:
  enum class Next { kRequest, kLinger, kClose };

  const HttpServerOptions& options() const { return server_.options_; }
  bool is_ending() const { return server_.is_stopping_; }

  // Input.
  void read_more();
  void on_readable(error_code error);
  void consume(size_t num_bytes);

  // Output.
  void write(std::string bytes);
  void write_some();
  bool is_write_stuck() const {
    return is_writing_ && Clock::now() >= last_progress_ + seconds(options().write_timeout_s);
  }

  // The coroutine's steps.
  asio::awaitable<void> sleep_until(Clock::time_point deadline);
  asio::awaitable<Next> serve_request();
  asio::awaitable<std::optional<HttpProblem>> read_head(HttpHead& head, std::string& block);
  asio::awaitable<std::optional<HttpProblem>> read_body(const std::string& block,
                                                        HttpRequest& request);
  asio::awaitable<Next> send_refusal(HttpResponse response, bool keep_alive);
  asio::awaitable<Next> send_reply(std::shared_ptr<HttpReply> reply, bool is_http10);
  asio::awaitable<bool> flush();
  asio::awaitable<void> linger();

  HttpResponse options_response(const HttpRouteMatch& match) const;
  void begin_request(const HttpHead& head);
  void add_headers(HttpResponse& response) const;
  void log_request(int status, int64_t num_bytes) const;
  Next after(bool keep_alive) const {
    return keep_alive && !server_.is_draining_ ? Next::kRequest : Next::kLinger;
  }

  Impl& server_;
  Socket socket_;
  asio::steady_timer wake_;
  const bool is_surplus_;
  std::string peer_;

  std::string input_;
  bool is_reading_ = false;
  bool has_ended_ = false;  // the client sends nothing more
  bool has_failed_ = false;

  std::string output_;
  size_t num_written_ = 0;
  bool is_writing_ = false;
  Clock::time_point last_progress_{};

  // Of the request in hand, for its response and its line in the log.
  std::string method_;
  std::string target_;
  std::string request_id_;
  HttpHeaders cors_;
  bool keep_alive_ = false;
  Clock::time_point began_{};
};

void HttpServer::Impl::Connection::read_more() {
  if (is_reading_ || has_ended_ || has_failed_ || input_.size() >= kInputBytes) return;
  is_reading_ = true;
  socket_.async_wait(Socket::wait_read,
                     [self = shared_from_this()](error_code error) { self->on_readable(error); });
}

void HttpServer::Impl::Connection::on_readable(error_code error) {
  is_reading_ = false;
  if (!socket_.is_open()) return;
  std::array<char, 16384> buffer;
  while (!error && input_.size() < kInputBytes) {
    const size_t num_bytes = socket_.read_some(asio::buffer(buffer), error);
    input_.append(buffer.data(), num_bytes);
  }
  if (error == asio::error::eof) {
    has_ended_ = true;
  } else if (error && error != asio::error::would_block && error != asio::error::try_again) {
    has_failed_ = true;
  }
  read_more();
  wake();
}

void HttpServer::Impl::Connection::consume(size_t num_bytes) {
  input_.erase(0, num_bytes);
  if (input_.empty() && input_.capacity() > 1024) input_ = std::string();  // idle ones are many
  read_more();
}

void HttpServer::Impl::Connection::write(std::string bytes) {
  output_ += bytes;
  if (!is_writing_ && !output_.empty()) {
    is_writing_ = true;
    last_progress_ = Clock::now();
    write_some();
  }
}

void HttpServer::Impl::Connection::write_some() {
  // Most of the time the kernel takes everything at once.
  error_code error;
  while (num_written_ < output_.size() && !error) {
    num_written_ += socket_.write_some(
        asio::buffer(output_.data() + num_written_, output_.size() - num_written_), error);
    if (!error) last_progress_ = Clock::now();
  }
  if (error == asio::error::would_block || error == asio::error::try_again) {
    socket_.async_wait(Socket::wait_write, [self = shared_from_this()](error_code wait_error) {
      if (wait_error) {
        self->has_failed_ = true;
        self->is_writing_ = false;
        self->wake();
      } else {
        self->write_some();
      }
    });
    return;
  }
  if (error) has_failed_ = true;
  output_ = std::string();
  num_written_ = 0;
  is_writing_ = false;
  wake();
}

asio::awaitable<void> HttpServer::Impl::Connection::sleep_until(Clock::time_point deadline) {
  error_code ignored;
  wake_.expires_at(deadline);
  co_await wake_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

asio::awaitable<void> HttpServer::Impl::Connection::serve() {
  Next next = Next::kClose;
  try {
    read_more();
    do {
      next = co_await serve_request();
    } while (next == Next::kRequest);
    if (next == Next::kLinger) co_await linger();
  } catch (const std::exception& error) {
    log_warning("connection of {}: {}", peer_, error.what());
  }
  error_code ignored;
  socket_.close(ignored);
  server_.remove(this);
}

asio::awaitable<std::optional<HttpProblem>> HttpServer::Impl::Connection::read_head(
    HttpHead& head, std::string& block) {
  HttpHeadScanner scanner;
  bool has_begun = false;
  Clock::time_point deadline = Clock::now() + seconds(options().idle_timeout_s);
  for (;;) {
    if (std::optional<HttpProblem> problem = scanner.scan(input_)) co_return problem;
    if (scanner.is_complete()) break;
    if (!has_begun && !input_.empty()) {
      has_begun = true;
      began_ = Clock::now();
      deadline = began_ + seconds(options().header_timeout_s);
    }
    const bool is_late = Clock::now() >= deadline;
    const bool is_unwanted = is_ending() || (!has_begun && server_.is_draining_);
    if (has_failed_ || is_unwanted || (!has_begun && (has_ended_ || is_late))) {
      co_return HttpProblem{0, ""};  // nobody waits for an answer
    }
    if (has_ended_) co_return HttpProblem{400, "the request ends within its head"};
    if (is_late) co_return HttpProblem{408, "the head took too long"};
    co_await sleep_until(deadline);
  }
  if (!has_begun) began_ = Clock::now();
  block = input_.substr(scanner.begin(), scanner.end() - scanner.begin());
  consume(scanner.end());
  co_return parse_http_head(block, head);
}

asio::awaitable<std::optional<HttpProblem>> HttpServer::Impl::Connection::read_body(
    const std::string& block, HttpRequest& request) {
  HttpBodyReader reader(block, options().max_body_bytes, options().max_chunks);
  const Clock::time_point deadline = Clock::now() + seconds(options().body_timeout_s);
  for (;;) {
    consume(reader.put(input_));
    if (reader.problem()) co_return reader.problem();
    if (reader.is_done()) break;
    if (has_failed_ || is_ending()) co_return HttpProblem{0, ""};
    if (has_ended_) co_return HttpProblem{400, "the request ends within its body"};
    if (Clock::now() >= deadline) co_return HttpProblem{408, "the body took too long"};
    co_await sleep_until(deadline);
  }
  request.body = reader.take_body();
  co_return std::nullopt;
}

HttpResponse HttpServer::Impl::Connection::options_response(const HttpRouteMatch& match) const {
  HttpResponse response{.status = 204, .content_type = "", .body = "", .headers = {}};
  response.headers.emplace_back(
      "allow", match.allowed_methods.empty() ? "GET, HEAD, POST, OPTIONS" : match.allowed_methods);
  return response;
}

void HttpServer::Impl::Connection::begin_request(const HttpHead& head) {
  method_ = head.request.method;
  target_ = head.request.path;
  request_id_ = choose_request_id(head.request.header("x-request-id"));
  cors_ = server_.access_.cors_headers(head.request);
}

asio::awaitable<HttpServer::Impl::Connection::Next> HttpServer::Impl::Connection::serve_request() {
  method_ = target_ = request_id_ = "";
  cors_.clear();
  if (is_surplus_) {
    HttpResponse full = error_response(503, "too many connections", "overloaded_error");
    full.headers.emplace_back("retry-after", "1");
    co_return co_await send_refusal(std::move(full), false);
  }
  HttpHead head;
  std::string block;
  std::optional<HttpProblem> problem = co_await read_head(head, block);
  if (problem) {
    if (problem->status == 0) co_return Next::kClose;
    co_return co_await send_refusal(problem_response(*problem), false);
  }
  begin_request(head);
  const HttpRouteMatch match = match_route(server_.routes_, head.request.method, head.request.path);
  std::optional<HttpResponse> refused =
      refuse_request(server_.access_, match, head, options().max_body_bytes);
  if (refused) {
    // The body of a refused request is not read, so nothing can follow it.
    co_return co_await send_refusal(std::move(*refused), head.keep_alive && !head.has_body());
  }
  if (head.has_body()) {
    if (head.expects_continue && input_.empty()) write("HTTP/1.1 100 Continue\r\n\r\n");
    problem = co_await read_body(block, head.request);
    if (problem) {
      if (problem->status == 0) co_return Next::kClose;
      co_return co_await send_refusal(problem_response(*problem), false);
    }
  }
  if (match.route == nullptr) {
    co_return co_await send_refusal(options_response(match), head.keep_alive);
  }
  keep_alive_ = head.keep_alive;
  auto& headers = head.request.headers;
  std::erase_if(headers, [](const auto& header) { return header.first == "x-request-id"; });
  headers.emplace_back("x-request-id", request_id_);

  auto reply = std::make_shared<HttpReply>(options().max_stream_backlog);
  reply->attach(
      [self = shared_from_this()] { asio::post(self->executor(), [self] { self->wake(); }); });
  server_.run_handler(*match.route, std::move(head.request), reply);
  const Next next = co_await send_reply(reply, head.minor_version == 0);
  if (next == Next::kClose) {
    ++server_.num_disconnects_;
    log_request(kClientLeft, 0);
    reply->disconnect();
  }
  reply->detach();
  co_return next;
}

void HttpServer::Impl::Connection::add_headers(HttpResponse& response) const {
  if (!request_id_.empty()) response.headers.emplace_back("x-request-id", request_id_);
  response.headers.insert(response.headers.end(), cors_.begin(), cors_.end());
}

void HttpServer::Impl::Connection::log_request(int status, int64_t num_bytes) const {
  ++server_.num_requests_;
  if (!options().log_requests) return;
  const double ms = method_.empty()
                        ? 0
                        : std::chrono::duration<double, std::milli>(Clock::now() - began_).count();
  log_info("{} {} {} {} {} B {:.1f} ms {}", peer_, method_.empty() ? "-" : printable(method_),
           target_.empty() ? "-" : printable(target_, 256), status, num_bytes, ms,
           request_id_.empty() ? "-" : request_id_);
}

/// Waits until everything is written; false when that fails.
asio::awaitable<bool> HttpServer::Impl::Connection::flush() {
  while (is_writing_ && !has_failed_ && !is_ending()) {
    if (is_write_stuck()) co_return false;
    co_await sleep_until(last_progress_ + seconds(options().write_timeout_s));
  }
  co_return !is_writing_ && !has_failed_;
}

asio::awaitable<HttpServer::Impl::Connection::Next> HttpServer::Impl::Connection::send_refusal(
    HttpResponse response, bool keep_alive) {
  add_headers(response);
  const Next next = after(keep_alive);
  std::string bytes = encode_response_head(response, HttpBodyForm::kLength, next == Next::kRequest);
  if (method_ != "HEAD") bytes += response.body;
  log_request(response.status, static_cast<int64_t>(response.body.size()));
  write(std::move(bytes));
  const bool is_sent = co_await flush();
  co_return is_sent ? next : Next::kClose;
}

asio::awaitable<HttpServer::Impl::Connection::Next> HttpServer::Impl::Connection::send_reply(
    std::shared_ptr<HttpReply> reply, bool is_http10) {
  HttpBodyForm form = HttpBodyForm::kLength;
  Next next = Next::kClose;
  int status = 0;
  int64_t num_body_bytes = 0;
  bool is_event_stream = false;
  bool was_told = false;
  Clock::time_point gone_deadline = Clock::time_point::max();
  Clock::time_point last_output = Clock::now();
  const bool has_ping = options().ping_interval_s > 0;
  for (;;) {
    bool is_complete = false;
    bool is_cut = false;
    if (!is_writing_) {
      reply->sent();
      HttpReply::Output output = reply->take();
      std::string bytes;
      if (output.head) {
        const bool is_close = output.is_stream && is_http10;
        if (is_close) keep_alive_ = false;
        next = after(keep_alive_);
        form = !output.is_stream ? HttpBodyForm::kLength
               : is_http10       ? HttpBodyForm::kToTheEnd
                                 : HttpBodyForm::kChunked;
        status = output.head->status;
        is_event_stream =
            output.is_stream && output.head->content_type.rfind("text/event-stream", 0) == 0;
        add_headers(*output.head);
        bytes = encode_response_head(*output.head, form, next == Next::kRequest);
        if (!output.is_stream) {
          num_body_bytes += static_cast<int64_t>(output.head->body.size());
          if (method_ != "HEAD" && status != 204 && status != 304) bytes += output.head->body;
        }
      }
      const bool is_silent = is_event_stream && output.payload.empty() && !output.is_complete;
      if (is_silent && has_ping && bytes.empty() &&
          Clock::now() >= last_output + seconds(options().ping_interval_s)) {
        output.payload = ": ping\n\n";
      }
      num_body_bytes += static_cast<int64_t>(output.payload.size());
      if (!output.payload.empty() && method_ != "HEAD") {
        bytes += form == HttpBodyForm::kChunked ? encode_chunk(output.payload) : output.payload;
      }
      if (output.is_complete && form == HttpBodyForm::kChunked && !output.is_cut &&
          method_ != "HEAD") {
        bytes += kLastChunk;
      }
      if (!bytes.empty()) {
        last_output = Clock::now();
        write(std::move(bytes));
      }
      is_complete = output.is_complete;
      is_cut = output.is_cut;
    }
    if (is_complete && status != 0 && !(is_cut && was_told) && !reply->is_too_slow()) {
      const bool is_sent = co_await flush();
      if (is_sent) log_request(status, num_body_bytes);
      co_return !is_sent ? Next::kClose : is_cut ? Next::kLinger : next;
    }
    if (is_complete || reply->is_too_slow() || has_failed_ || is_ending() || is_write_stuck() ||
        Clock::now() >= gone_deadline) {
      co_return Next::kClose;
    }
    if (has_ended_ && !was_told) {
      // It may have closed only its side, and then still gets a short answer that is under way.
      was_told = true;
      gone_deadline = Clock::now() + kGoneGrace;
      reply->disconnect();
    }
    if (is_writing_) {
      co_await sleep_until(
          std::min(gone_deadline, last_progress_ + seconds(options().write_timeout_s)));
    } else {
      co_await sleep_until(
          is_event_stream && has_ping
              ? std::min(gone_deadline, last_output + seconds(options().ping_interval_s))
              : gone_deadline);
    }
  }
}

/// Lets the client read the last response: closing a socket that has unread input resets it.
asio::awaitable<void> HttpServer::Impl::Connection::linger() {
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  const Clock::time_point deadline = Clock::now() + kLinger;
  size_t num_bytes = 0;
  while (!has_ended_ && !has_failed_ && !is_ending() && Clock::now() < deadline &&
         num_bytes < kLingerBytes) {
    num_bytes += input_.size();
    consume(input_.size());
    co_await sleep_until(deadline);
  }
}

HttpServer::Impl::Impl(HttpServerOptions options, std::vector<HttpRoute> routes)
    : options_(std::move(options)),
      routes_(std::move(routes)),
      access_(HttpAccessOptions{.bind_host = options_.host,
                                .api_keys = options_.api_keys,
                                .allowed_hosts = options_.allowed_hosts,
                                .cors_origins = options_.cors_origins}) {
  check_options(options_);
  try {
    is_unix_path(options_.host) ? listen_unix() : listen_tcp();
  } catch (const boost::system::system_error& error) {
    CARAVAN_FAIL(kIo, "cannot listen on {}: {}", url(), error.code().message());
  }
}

void HttpServer::Impl::listen_tcp() {
  error_code error;
  asio::ip::tcp::endpoint endpoint(asio::ip::make_address(options_.host, error),
                                   static_cast<uint16_t>(options_.port));
  if (error) {
    asio::ip::tcp::resolver resolver(io_);
    endpoint = *resolver.resolve(options_.host, std::to_string(options_.port)).begin();
  }
  port_ = options_.port;
  tcp_acceptor_.open(endpoint.protocol());
  tcp_acceptor_.set_option(asio::socket_base::reuse_address(true));
  if (options_.reuse_port) tcp_acceptor_.set_option(ReusePort(true));
  tcp_acceptor_.bind(endpoint);
  tcp_acceptor_.listen();
  port_ = tcp_acceptor_.local_endpoint().port();
}

void HttpServer::Impl::listen_unix() {
  // A socket that a killed server left behind would be in the way; one in use is not touched.
  asio::local::stream_protocol::socket probe(io_);
  error_code error;
  probe.connect(asio::local::stream_protocol::endpoint(options_.host), error);
  if (error == asio::error::connection_refused) ::unlink(options_.host.c_str());
  const asio::local::stream_protocol::endpoint endpoint(options_.host);
  unix_acceptor_.open(endpoint.protocol());
  unix_acceptor_.bind(endpoint);
  unix_acceptor_.listen();
}

std::string HttpServer::Impl::url() const {
  if (is_unix_path(options_.host)) return "unix:" + options_.host;
  return "http://" + join_host_port(options_.host, port_);
}

void HttpServer::Impl::start() {
  CARAVAN_CHECK(threads_.empty(), "the server has been started already");
  workers_.emplace(static_cast<size_t>(options_.num_workers));
  work_.emplace(io_.get_executor());
  if (is_unix_path(options_.host)) {
    asio::co_spawn(accept_strand_, accept_from(unix_acceptor_), asio::detached);
  } else {
    asio::co_spawn(accept_strand_, accept_from(tcp_acceptor_), asio::detached);
  }
  for (int i = 0; i < options_.num_io_threads; ++i) {
    threads_.emplace_back([this] {
      while (!io_.stopped()) {
        try {
          io_.run();
        } catch (const std::exception& error) {
          log_warning("HTTP server: {}", error.what());
        }
      }
    });
  }
}

template <typename Acceptor>
asio::awaitable<void> HttpServer::Impl::accept_from(Acceptor& acceptor) {
  asio::steady_timer timer(accept_strand_);
  bool is_logged = false;
  while (acceptor.is_open() && !is_draining_) {
    Socket socket(asio::make_strand(io_));
    error_code error;
    co_await acceptor.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (!acceptor.is_open() || error == asio::error::operation_aborted) break;
    if (error == asio::error::connection_aborted) continue;
    if (error) {
      // Out of descriptors or memory: those who wait in the queue keep waiting.
      if (!is_logged) log_warning("cannot accept connections: {}", error.message());
      is_logged = true;
      timer.expires_after(kAcceptBackOff);
      co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    is_logged = false;
    try {
      add(std::move(socket));
    } catch (const std::exception& failure) {
      log_warning("a connection was dropped: {}", failure.what());
    }
  }
}

void HttpServer::Impl::add(Socket socket) {
  std::shared_ptr<Connection> connection;
  {
    const std::lock_guard lock(mutex_);
    const auto count = static_cast<int64_t>(connections_.size());
    if (count >= options_.max_connections) ++num_refused_;
    if (count >= options_.max_connections + kSpareConnections) return;
    connection =
        std::make_shared<Connection>(*this, std::move(socket), count >= options_.max_connections);
    connections_.emplace(connection.get(), connection);
  }
  // A named closure: GCC 12 destroys temporaries of a spawned coroutine's arguments too early.
  auto run = [connection]() -> asio::awaitable<void> { return connection->serve(); };
  asio::co_spawn(connection->executor(), std::move(run), asio::detached);
}

void HttpServer::Impl::remove(Connection* connection) {
  const std::lock_guard lock(mutex_);
  connections_.erase(connection);
  if (connections_.empty()) is_empty_.notify_all();
}

void HttpServer::Impl::run_handler(const HttpRoute& route, HttpRequest request,
                                   const std::shared_ptr<HttpReply>& reply) {
  auto exchange = std::make_shared<ReplyExchange>(std::move(request), reply);
  asio::post(*workers_, [&route, reply, exchange = std::move(exchange)]() mutable {
    try {
      route.handler(exchange);  // kept here: dropped within, it would answer before the error does
    } catch (const Error& error) {
      const bool is_clients = error.code() == ErrorCode::kInvalidArgument;
      if (!is_clients) log_warning("{}: {}", route.path, error.what());
      reply->fail(error_response(is_clients ? 400 : 500, error.what(),
                                 is_clients ? "invalid_request_error" : "internal_error"));
    } catch (const std::exception& error) {
      log_warning("{}: {}", route.path, printable(error.what(), 256));
      reply->fail(error_response(500, "internal error", "internal_error"));
    }
  });
}

void HttpServer::Impl::close_acceptors() {
  is_draining_ = true;
  asio::post(accept_strand_, [this] {
    error_code ignored;
    tcp_acceptor_.close(ignored);
    if (unix_acceptor_.is_open()) {
      unix_acceptor_.close(ignored);
      ::unlink(options_.host.c_str());
    }
  });
}

void HttpServer::Impl::wake_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& [raw, weak] : connections_) {
    if (std::shared_ptr<Connection> connection = weak.lock()) {
      asio::post(connection->executor(), [connection] { connection->wake(); });
    }
  }
}

bool HttpServer::Impl::wait_until_empty(int64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  return is_empty_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                            [this] { return connections_.empty(); });
}

bool HttpServer::Impl::drain(int64_t timeout_ms) {
  close_acceptors();
  wake_all();
  return wait_until_empty(timeout_ms);
}

void HttpServer::Impl::stop() {
  const std::lock_guard lock(stop_mutex_);
  if (threads_.empty()) return;
  is_stopping_ = true;
  close_acceptors();
  // Connections that were accepted a moment ago are woken by the next round.
  do wake_all();
  while (!wait_until_empty(50));
  workers_->join();
  work_.reset();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

HttpServerStats HttpServer::Impl::stats() const {
  HttpServerStats stats{.num_connections = 0,
                        .num_requests = num_requests_,
                        .num_refused = num_refused_,
                        .num_disconnects = num_disconnects_};
  const std::lock_guard lock(mutex_);
  stats.num_connections = static_cast<int64_t>(connections_.size());
  return stats;
}

HttpServer::HttpServer(HttpServerOptions options, std::vector<HttpRoute> routes)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(routes))) {}
HttpServer::~HttpServer() = default;
void HttpServer::start() { impl_->start(); }
int HttpServer::port() const { return impl_->port(); }
std::string HttpServer::url() const { return impl_->url(); }
bool HttpServer::drain(int64_t timeout_ms) { return impl_->drain(timeout_ms); }
void HttpServer::stop() { impl_->stop(); }
HttpServerStats HttpServer::stats() const { return impl_->stats(); }

}  // namespace caravan
