#include "server/http_server.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <cmath>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "server/http_connection.h"
#include "server/http_listener.h"
#include "server/memory_trimmer.h"

namespace caravan {

namespace {

namespace asio = boost::asio;

constexpr int64_t kSpareConnections = 256;  // above max_connections: they are told so
constexpr int64_t kRoomShare = 16;          // of the connections that go when descriptors are out
constexpr auto kTrimInterval = std::chrono::seconds(1);

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
  at_least("memory", static_cast<double>(options.max_memory), 1 << 20);
  for (const double timeout :
       {options.header_timeout_s, options.body_timeout_s, options.write_timeout_s,
        options.idle_timeout_s, options.stream_grace_s}) {
    CARAVAN_CHECK(timeout > 0 && timeout < 1e6, "time limit: got {} s, expected more than 0",
                  timeout);
  }
  CARAVAN_CHECK(options.min_rate >= 0 && options.min_rate < 1e12,
                "least rate: got {} bytes/s, expected 0 or more", options.min_rate);
  CARAVAN_CHECK(options.min_rate_grace_s >= 0 && options.min_rate_grace_s < 1e6,
                "grace: got {} s, expected 0 or more", options.min_rate_grace_s);
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(HttpServerOptions options, std::vector<HttpRoute> routes);
  ~Impl() { stop(); }

  void start();
  int port() const { return listener_.port(); }
  std::string url() const { return listener_.url(); }
  bool drain(int64_t timeout_ms);
  void stop();
  HttpServerStats stats() const;

 private:
  void add(HttpListener::Socket socket);
  bool evict_one();
  bool make_room();
  void wake_all();
  void close_listener();
  void trim_later();
  void run_handler(const HttpRoute& route, HttpRequest request, MemoryShare body_share,
                   const std::shared_ptr<HttpReply>& reply);

  HttpShared shared_;
  asio::io_context io_;
  HttpListener listener_;
  asio::steady_timer trim_timer_{asio::make_strand(io_)};
  MemoryTrimmer trimmer_;

  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work_;
  std::optional<asio::thread_pool> workers_;
  std::optional<asio::thread_pool> quick_worker_;
  std::vector<std::thread> threads_;
  std::mutex stop_mutex_;  // one stop() at a time
};

HttpServer::Impl::Impl(HttpServerOptions options, std::vector<HttpRoute> routes)
    : shared_((check_options(options), std::move(options)), std::move(routes)),
      listener_(io_, shared_.options.host, shared_.options.port, shared_.options.reuse_port) {
  shared_.run_handler = [this](const HttpRoute& route, HttpRequest request, MemoryShare body_share,
                               const std::shared_ptr<HttpReply>& reply) {
    run_handler(route, std::move(request), std::move(body_share), reply);
  };
}

void HttpServer::Impl::start() {
  CARAVAN_CHECK(threads_.empty(), "the server has been started already");
  workers_.emplace(static_cast<size_t>(shared_.options.num_workers));
  quick_worker_.emplace(1);
  work_.emplace(io_.get_executor());
  listener_.start({.on_connection = [this](HttpListener::Socket socket) { add(std::move(socket)); },
                   .make_room = [this] { return make_room(); }});
  trim_later();
  for (int i = 0; i < shared_.options.num_io_threads; ++i) {
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

/// The idlest connection makes room. False when all are busy.
bool HttpServer::Impl::evict_one() {
  const std::shared_ptr<HttpConnection> idlest = shared_.table.take_idlest();
  if (!idlest) return false;
  ++shared_.num_evicted;
  idlest->evict();
  return true;
}

bool HttpServer::Impl::make_room() {
  bool has_room = false;
  for (int64_t count = 1 + shared_.table.size() / kRoomShare; count > 0; --count) {
    if (!evict_one()) break;
    has_room = true;
  }
  return has_room;
}

void HttpServer::Impl::add(HttpListener::Socket socket) {
  if (shared_.is_draining) return;
  const int64_t most = shared_.options.max_connections;
  if (shared_.table.size() >= most) evict_one();
  const bool is_full = shared_.table.size() >= most;
  if (is_full && shared_.table.size() >= most + kSpareConnections) {
    ++shared_.num_refused;
    return;
  }
  const auto connection = std::make_shared<HttpConnection>(shared_, std::move(socket), is_full);
  shared_.table.add(connection);
  connection->start();
}

void HttpServer::Impl::run_handler(const HttpRoute& route, HttpRequest request,
                                   MemoryShare body_share,
                                   const std::shared_ptr<HttpReply>& reply) {
  auto exchange = std::make_shared<ReplyExchange>(std::move(request), std::move(body_share), reply);
  asio::thread_pool& pool = route.is_quick ? *quick_worker_ : *workers_;
  asio::post(pool, [&route, reply, exchange = std::move(exchange)]() mutable {
    if (reply->is_detached()) return;  // the client left while this waited for a thread
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

void HttpServer::Impl::trim_later() {
  if (shared_.is_stopping) return;
  trim_timer_.expires_after(kTrimInterval);
  trim_timer_.async_wait([this](boost::system::error_code error) {
    if (error) return;
    asio::post(*quick_worker_, [this] {
      trimmer_.tick();
      asio::post(trim_timer_.get_executor(), [this] { trim_later(); });
    });
  });
}

void HttpServer::Impl::close_listener() {
  shared_.is_draining = true;
  listener_.close();
}

void HttpServer::Impl::wake_all() {
  shared_.table.for_each(
      [](const std::shared_ptr<HttpConnection>& connection) { connection->wake(); });
}

bool HttpServer::Impl::drain(int64_t timeout_ms) {
  close_listener();
  wake_all();
  return shared_.table.wait_until_empty(timeout_ms);
}

void HttpServer::Impl::stop() {
  const std::lock_guard lock(stop_mutex_);
  if (threads_.empty()) return;
  shared_.is_stopping = true;
  close_listener();
  asio::post(trim_timer_.get_executor(), [this] { trim_timer_.cancel(); });
  // Connections that were accepted a moment ago are woken by the next round.
  do wake_all();
  while (!shared_.table.wait_until_empty(50));
  workers_->join();
  quick_worker_->join();
  work_.reset();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

HttpServerStats HttpServer::Impl::stats() const {
  return {.num_connections = shared_.table.size(),
          .num_requests = shared_.num_requests,
          .num_refused = shared_.num_refused,
          .num_evicted = shared_.num_evicted,
          .num_disconnects = shared_.num_disconnects,
          .memory_bytes = shared_.budget->used(),
          .memory_limit = shared_.budget->limit(),
          .num_memory_refused = shared_.budget->num_refused()};
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
