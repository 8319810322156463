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
  int num_workers = 4;                      // threads that run handlers; quick ones have one more
  int64_t max_connections = 4096;           // of the server; above, the idlest makes room
  int64_t max_memory = int64_t{256} << 20;  // of the server: bodies, answers, what is not sent yet
  int64_t max_body_bytes = int64_t{4} << 20;
  int64_t max_chunks = 65536;  // of a chunked request body
  /// Bytes of a stream that may wait for its client. More may for stream_grace_s, in which the
  /// client must take as many.
  int64_t max_stream_backlog = int64_t{256} << 10;
  double stream_grace_s = 5;
  double header_timeout_s = 10;  // from the connection's start, later from a request's first byte
  double body_timeout_s = 30;
  double min_rate = 240;        // bytes a second of a body, and of an answer that is read; 0: any
  double min_rate_grace_s = 5;  // of a body
  double write_timeout_s = 30;  // in which a client must take that many, or one byte
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
  int64_t num_evicted = 0;      // idle ones that made room for others
  int64_t num_disconnects = 0;  // clients that left, or were cut, before their reply was complete
  int64_t memory_bytes = 0;     // of max_memory, in use now
  int64_t memory_limit = 0;
  int64_t num_memory_refused = 0;  // bodies, answers and streams for which there was no memory
};

/// HTTP/1.1 over Boost.Asio: one coroutine a connection, handlers on worker threads. Every response
/// has a request id, and errors OpenAI's form. All functions are thread safe.
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
