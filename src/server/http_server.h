#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "server/http.h"
#include "server/http_access.h"

namespace caravan {

/// Limits are per connection unless they say otherwise.
struct HttpServerOptions {
  std::string host = "127.0.0.1";  // address or name; a path that ends in ".sock": a Unix socket
  int port = 8000;                 // 0: any that is free
  bool reuse_port = false;         // several servers on one port, the kernel deals connections out
  int num_io_threads = 1;
  int num_workers = 4;  // threads that run handlers
  int64_t max_connections = 4096;
  int64_t max_body_bytes = int64_t{4} << 20;
  int64_t max_chunks = 65536;                       // of a chunked request body
  int64_t max_stream_backlog = int64_t{256} << 10;  // bytes of a stream its client has not read
  double header_timeout_s = 10;                     // from a request's first byte
  double body_timeout_s = 30;
  double write_timeout_s = 30;  // without one byte taken by the client
  double idle_timeout_s = 75;   // between requests
  double ping_interval_s = 30;  // a comment in event streams that are silent so long; 0: none
  std::vector<std::string> api_keys;
  std::vector<std::string> allowed_hosts;
  std::vector<std::string> cors_origins;
  bool log_requests = true;
};

struct HttpServerStats {
  int64_t num_connections = 0;  // open now
  int64_t num_requests = 0;     // answered since the start, refusals included
  int64_t num_refused = 0;      // connections above max_connections
  int64_t num_disconnects = 0;  // clients that left, or were cut, before their reply was complete
};

/// HTTP/1.1 over Boost.Asio: one coroutine a connection, bodies read by Boost.Beast, handlers on
/// worker threads. Every response has a request id, and errors OpenAI's form. All functions are
/// thread safe.
class HttpServer {
 public:
  /// Listens; connections wait until start(). `routes` are searched in order.
  /// Errors: kInvalidArgument for a bad option; kIo when the address cannot be bound.
  HttpServer(HttpServerOptions options, std::vector<HttpRoute> routes);
  /// stop().
  ~HttpServer();

  /// Starts the threads. Once.
  void start();
  /// The port that is bound; 0 for a Unix socket.
  int port() const;
  /// "http://127.0.0.1:8000"
  std::string url() const;

  /// Accepts nothing from here on, closes connections without a request, lets the others finish
  /// theirs; waits until none is left, at most `timeout_ms`. True when none is left.
  bool drain(int64_t timeout_ms);
  /// Ends every connection and the threads. Handlers that run are waited for; exchanges that are
  /// still held may be used, to no effect.
  void stop();

  HttpServerStats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace caravan
