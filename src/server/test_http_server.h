#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "server/http_server.h"
#include "server/test_http_client.h"

namespace caravan::testing {

using Exchange = std::shared_ptr<HttpExchange>;
using Clock = std::chrono::steady_clock;

inline double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

inline bool eventually(const std::function<bool()>& is_true) {
  for (int i = 0; i < 1000; ++i) {
    if (is_true()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

inline HttpResponse text(std::string body) {
  return {.status = 200, .content_type = "text/plain", .body = std::move(body), .headers = {}};
}
inline HttpResponse event_stream() {
  return {.status = 200, .content_type = "text/event-stream", .body = "", .headers = {}};
}

/// Exchanges that handlers leave with the test.
class Held {
 public:
  void add(Exchange exchange) {
    const std::lock_guard lock(mutex_);
    exchanges_.push_back(std::move(exchange));
    changed_.notify_all();
  }
  Exchange take() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(20),
                           [this] { return !exchanges_.empty(); })) {
      ADD_FAILURE() << "no request arrived";
      return nullptr;
    }
    Exchange exchange = std::move(exchanges_.front());
    exchanges_.erase(exchanges_.begin());
    return exchange;
  }

  /// The next one, if it comes before `is_done`.
  Exchange take_until(const std::atomic<bool>& is_done) {
    while (!is_done) {
      {
        const std::lock_guard lock(mutex_);
        if (!exchanges_.empty()) {
          Exchange exchange = std::move(exchanges_.back());
          exchanges_.pop_back();
          return exchange;
        }
      }
      std::this_thread::yield();
    }
    return nullptr;
  }
  void clear() {
    std::vector<Exchange> dropped;
    const std::lock_guard lock(mutex_);
    std::swap(dropped, exchanges_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Exchange> exchanges_;
};

class HttpServerTest : public ::testing::Test {
 protected:
  void SetUp() override { set_log_level(LogLevel::kOff); }
  void TearDown() override {
    server_.reset();
    set_log_level(LogLevel::kInfo);
  }

  HttpServerOptions options() const {
    HttpServerOptions options;
    options.port = 0;
    return options;
  }
  void serve(const HttpServerOptions& server_options) {
    const auto add = [this](const char* method, const char* path, HttpHandler handler) {
      routes_.push_back({.method = method, .path = path, .is_public = false, .handler = handler});
    };
    add("GET", "/hello", [](Exchange e) { e->respond(text("hello")); });
    add("POST", "/echo", [](Exchange e) {
      std::string body = e->request().body;
      e->respond(text(std::move(body)));
    });
    add("GET", "/path/*", [](Exchange e) { e->respond(text(e->request().path)); });
    add("GET", "/id",
        [](Exchange e) { e->respond(text(std::string(e->request().header("x-request-id")))); });
    add("POST", "/hold", [this](Exchange e) { held_.add(std::move(e)); });
    add("GET", "/hold", [this](Exchange e) { held_.add(std::move(e)); });
    add("GET", "/drop", [](Exchange) {});
    add("GET", "/cut", [](Exchange e) {
      e->start_stream(event_stream());
      e->write("data: 1\n\n");
    });
    add("GET", "/bad", [](Exchange) { throw Error(ErrorCode::kInvalidArgument, "x: wrong"); });
    add("GET", "/broken", [](Exchange) { throw std::runtime_error("secret detail"); });
    add("GET", "/split", [](Exchange e) {
      HttpResponse response = text("x");
      response.headers.emplace_back("x-a", "b\r\nx-injected: 1");
      e->respond(std::move(response));
    });
    server_ = std::make_unique<HttpServer>(server_options, routes_);
    server_->start();
  }
  void serve() { serve(options()); }
  int port() const { return server_->port(); }

  std::vector<HttpRoute> routes_;
  Held held_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace caravan::testing
