#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace caravan {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;   // "GET"
  std::string path;     // decoded, without the query: "/v1/models/camel"
  std::string query;    // after '?', as sent
  HttpHeaders headers;  // names in lower case
  std::string body;

  /// The first header of this lower-case name, or "".
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  HttpHeaders headers;
};

/// One request and the way back to its client. Replies come from any thread and never block. Either
/// respond(), or start_stream() and then write()... and finish(). A handler that drops its exchange
/// without a reply makes the server answer 500.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  const HttpRequest& request() const { return request_; }
  virtual void respond(HttpResponse response) = 0;
  /// Head of a stream: its body goes in chunks, each flushed at once. `head.body` is not used.
  virtual void start_stream(HttpResponse head) = 0;
  /// False when the client is gone, or reads so slowly that more than the cap waits for it; the
  /// connection is then closed.
  virtual bool write(std::string chunk) = 0;
  virtual void finish() = 0;
  /// Called once when the client leaves before the reply is complete, at once when it has already
  /// left; on any thread.
  virtual void on_disconnect(std::function<void()> callback) = 0;
  /// The body, moved out of the request; from here on the caller has it to free.
  std::string take_body() { return std::exchange(request_.body, std::string()); }
  /// Whether the client has left: the rest of the work is for nobody.
  virtual bool is_gone() const { return false; }
  /// Takes so many bytes more of the server's memory budget for an answer in the making, until it
  /// is sent. False when they are not there: 503 with Retry-After is the answer.
  virtual bool reserve(int64_t num_bytes) { return num_bytes >= 0; }

 protected:
  HttpRequest request_;
};

/// Runs on a worker thread, never on the one that does the input and output. May throw
/// caravan::Error: kInvalidArgument is answered with 400, all else with 500, in OpenAI's form.
using HttpHandler = std::function<void(std::shared_ptr<HttpExchange>)>;

struct HttpRoute {
  std::string method;
  std::string path;        // exact, or a prefix when it ends with "/*": "/v1/models/*"
  bool is_public = false;  // needs no API key
  HttpHandler handler;
};

/// OpenAI's error body: {"error":{"message","type","param","code"}}; param null when empty.
HttpResponse error_response(int status, std::string_view message, std::string_view type,
                            std::string_view param = "", std::string_view code = "");

}  // namespace caravan
