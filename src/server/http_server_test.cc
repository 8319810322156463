#include "server/http_server.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/un.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "core/error.h"
#include "server/test_http_client.h"
#include "server/test_http_server.h"
#include "tests/test_scale.h"

namespace caravan {
namespace {

using testing::Clock;
using testing::event_stream;
using testing::eventually;
using testing::Exchange;
using testing::HttpServerTest;
using testing::ms_since;
using testing::RawClient;
using testing::RawResponse;
using testing::text;

TEST_F(HttpServerTest, AnswersOneRequestAfterTheOther) {
  serve();
  RawClient client(port());
  for (int i = 0; i < 3; ++i) {
    client.get("/hello");
    const RawResponse response = client.read();
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "hello");
    EXPECT_EQ(response.headers.at("content-type"), "text/plain");
    EXPECT_EQ(response.headers.at("x-content-type-options"), "nosniff");
    EXPECT_EQ(response.headers.count("access-control-allow-origin"), 0u);
    EXPECT_EQ(response.headers.at("date").size(), 29u);
    client.post("/echo", "body " + std::to_string(i));
    EXPECT_EQ(client.read().body, "body " + std::to_string(i));
  }
  client.get("/hello", "Connection: close\r\n");
  EXPECT_EQ(client.read().headers.at("connection"), "close");
  EXPECT_TRUE(client.is_closed());
  EXPECT_EQ(server_->stats().num_requests, 7);
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  serve();
  RawClient client(port());
  std::string all;
  for (int i = 0; i < 200; ++i) {
    const std::string body = "body " + std::to_string(i);
    all += "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
           std::string("Content-Length: ") + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  client.send(all);
  for (int i = 0; i < 200; ++i) ASSERT_EQ(client.read().body, "body " + std::to_string(i));

  // One that comes while the first is being answered waits for its turn.
  client.post("/hold", "{}");
  const Exchange exchange = held_.take();
  client.get("/hello");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  exchange->respond(text("first"));
  EXPECT_EQ(client.read().body, "first");
  EXPECT_EQ(client.read().body, "hello");
}

TEST_F(HttpServerTest, ReadsRequestsByteByByte) {
  serve();
  RawClient client(port());
  for (const char c : std::string("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                                  "application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                                  "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")) {
    client.send(std::string_view(&c, 1));
  }
  EXPECT_EQ(client.read().body, "abcde");
}

TEST_F(HttpServerTest, TakesBigBodiesAndRefusesBigger) {
  HttpServerOptions small = options();
  small.max_body_bytes = 3 << 20;
  serve(small);
  RawClient client(port());
  std::string body(3 << 20, 'a');
  for (size_t i = 0; i < body.size(); i += 4097) body[i] = static_cast<char>('b' + i % 23);
  client.post("/echo", body);
  EXPECT_EQ(client.read().body, body);
  client.post("/echo", body + "a");
  EXPECT_EQ(client.read().status, 413);
  EXPECT_TRUE(client.is_closed());
}

TEST_F(HttpServerTest, CountsChunks) {
  serve();
  const auto status = [&](int num_chunks) {
    RawClient client(port());
    std::string request =
        "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n";
    for (int i = 0; i < num_chunks; ++i) request += "1\r\na\r\n";
    client.send(request + "0\r\n\r\n");
    const RawResponse response = client.read();
    EXPECT_EQ(response.body.size() == static_cast<size_t>(num_chunks), response.status == 200);
    return response.status;
  };
  EXPECT_EQ(status(65536), 200);
  EXPECT_EQ(status(65537), 413);
}

TEST_F(HttpServerTest, KnowsMethodsAndPaths) {
  serve();
  RawClient client(port());
  client.send("HEAD /hello HTTP/1.1\r\nHost: localhost\r\n\r\n");
  RawResponse response = client.read(false);
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.headers.at("content-length"), "5");
  client.send("OPTIONS /hold HTTP/1.1\r\nHost: localhost\r\n\r\n");
  response = client.read();
  EXPECT_EQ(response.status, 204);
  EXPECT_EQ(response.headers.at("allow"), "POST, GET, HEAD, OPTIONS");
  EXPECT_EQ(response.headers.count("content-length"), 0u);
  client.post("/hello", "{}");  // its body is not read: the connection ends
  response = client.read();
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.headers.at("allow"), "GET, HEAD, OPTIONS");
  EXPECT_TRUE(client.is_closed());
  RawClient other(port());
  other.get("/nope");
  EXPECT_EQ(other.read().status, 404);
  other.get("/path/a%2Fb%20c?q=1");
  EXPECT_EQ(other.read().body, "/path/a/b c");
  for (const char* path : {"/hello/", "//hello", "/hello//", "//hello///?a=/"}) {
    other.get(path);
    EXPECT_EQ(other.read().body, "hello") << path;
  }
  other.get("/path//a///b/");
  EXPECT_EQ(other.read().body, "/path/a/b");
  other.get("/path/");
  EXPECT_EQ(other.read().status, 404);
}

TEST_F(HttpServerTest, SpeaksHttp10) {
  serve();
  RawClient client(port());
  client.send("GET /hello HTTP/1.0\r\n\r\n");
  EXPECT_EQ(client.read().body, "hello");
  EXPECT_TRUE(client.is_closed());
  RawClient kept(port());
  for (int i = 0; i < 2; ++i) {
    kept.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    EXPECT_EQ(kept.read().headers.at("connection"), "keep-alive") << "a client of 1.0 must be told";
  }
  RawClient stream(port());
  stream.send("GET /hold HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n");
  const Exchange exchange = held_.take();
  exchange->start_stream(event_stream());
  exchange->write("data: 1\n\n");
  exchange->finish();
  const RawResponse response = stream.read();
  EXPECT_EQ(response.body, "data: 1\n\n");
  EXPECT_EQ(response.headers.at("connection"), "close");
  EXPECT_EQ(response.headers.count("transfer-encoding"), 0u);
}

TEST_F(HttpServerTest, AsksForTheBody) {
  serve();
  RawClient client(port());
  client.send(
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read().status, 100);
  client.send("hello");
  EXPECT_EQ(client.read().body, "hello");
  client.send(
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
      "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read().status, 415) << "refused before the body is sent";
}

TEST_F(HttpServerTest, NamesRequests) {
  serve();
  RawClient client(port());
  client.get("/id", "X-Request-Id: a.b:c_D-1\r\n");
  RawResponse response = client.read();
  EXPECT_EQ(response.body, "a.b:c_D-1");
  EXPECT_EQ(response.headers.at("x-request-id"), "a.b:c_D-1");
  client.get("/id", "X-Request-Id: a b\r\n");
  response = client.read();
  EXPECT_EQ(response.body.rfind("req-", 0), 0u);
  EXPECT_EQ(response.headers.at("x-request-id"), response.body);
  client.get("/id");
  EXPECT_NE(client.read().body, response.body);
}

TEST_F(HttpServerTest, AnswersForHandlersThatFail) {
  serve();
  RawClient client(port());
  client.get("/bad");
  RawResponse response = client.read();
  EXPECT_EQ(response.status, 400);
  EXPECT_NE(response.body.find("x: wrong"), std::string::npos);
  client.get("/broken");
  response = client.read();
  EXPECT_EQ(response.status, 500);
  EXPECT_EQ(response.body.find("secret"), std::string::npos);
  client.get("/drop");
  EXPECT_EQ(client.read().status, 500);
  client.get("/split");
  response = client.read();
  EXPECT_EQ(response.headers.count("x-injected"), 0u);
  EXPECT_EQ(response.headers.at("x-a"), "b  x-injected: 1");
  client.get("/cut");
  response = client.read();
  EXPECT_EQ(response.status, 200);
  EXPECT_FALSE(response.is_complete) << "a stream that was cut must not look whole";
}

TEST_F(HttpServerTest, StreamsAtOnce) {
  serve();
  RawClient client(port());
  client.get("/hold");
  const Exchange exchange = held_.take();
  exchange->start_stream(event_stream());
  const std::string head = client.take_through("\r\n\r\n");
  EXPECT_NE(head.find("x-accel-buffering: no"), std::string::npos);
  for (int i = 0; i < 10; ++i) {
    const std::string event = "data: " + std::to_string(i) + "\n\n";
    ASSERT_TRUE(exchange->write(event));
    EXPECT_EQ(client.take_through("\n\n\r\n"), "9\r\n" + event + "\r\n");
  }
  exchange->finish();
  EXPECT_EQ(client.take_through("0\r\n\r\n"), "0\r\n\r\n");
  client.get("/hello");
  EXPECT_EQ(client.read().body, "hello") << "the connection goes on";
  EXPECT_FALSE(exchange->write("late"));
}

TEST_F(HttpServerTest, JoinsWhatWaits) {
  serve();
  RawClient client(port());
  client.get("/hold");
  const Exchange exchange = held_.take();
  exchange->start_stream(event_stream());
  std::string expected;
  for (int i = 0; i < 20000; ++i) {
    const std::string event = "data: " + std::to_string(i) + "\n\n";
    ASSERT_TRUE(exchange->write(event)) << i;
    expected += event;
    if (i % 1000 == 999) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  exchange->finish();
  const RawResponse response = client.read();
  EXPECT_EQ(response.body, expected);
  EXPECT_TRUE(response.is_complete);
}

TEST_F(HttpServerTest, PingsSilentStreams) {
  HttpServerOptions quick = options();
  quick.ping_interval_s = 0.05;
  serve(quick);
  RawClient client(port());
  client.get("/hold");
  const Exchange exchange = held_.take();
  exchange->start_stream(event_stream());
  EXPECT_NE(client.take_through(": ping\n\n").find(": ping\n\n"), std::string::npos);
  EXPECT_NE(client.take_through(": ping\n\n").find(": ping\n\n"), std::string::npos);
  exchange->finish();
}

TEST_F(HttpServerTest, CutsSlowReaders) {
  HttpServerOptions quick = options();
  quick.stream_grace_s = 0.3;
  serve(quick);
  RawClient client(port(), 4096);
  client.get("/hold");
  const Exchange exchange = held_.take();
  std::atomic<int> num_told{0};
  exchange->on_disconnect([&] { ++num_told; });
  exchange->start_stream(event_stream());
  const std::string event(1000, 'x');
  int64_t num_bytes = 0;
  while (num_bytes < (64 << 20) && exchange->write(event)) {
    num_bytes += 1000;
    if (num_bytes % 10000 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_GE(num_bytes, 256 << 10);
  EXPECT_LT(num_bytes, 64 << 20);
  EXPECT_TRUE(eventually([&] { return num_told == 1; }));
  EXPECT_FALSE(exchange->write("x"));
  EXPECT_TRUE(eventually([&] { return server_->stats().num_connections == 0; }));
  EXPECT_EQ(server_->stats().memory_bytes, 0);
}

TEST_F(HttpServerTest, SendsLargeEventsToClientsThatRead) {
  serve();
  const auto cap = static_cast<size_t>(options().max_stream_backlog);
  for (const size_t size : {cap - 1, cap, cap + 1, cap + 50000, 8 * cap}) {
    for (const bool waits : {false, true}) {
      RawClient client(port());
      client.get("/hold");
      const Exchange exchange = held_.take();
      exchange->start_stream(event_stream());
      std::string expected;
      std::string got;
      std::thread reader([&] { got = client.read().body; });
      for (int i = 0; i < 6; ++i) {
        const std::string event = std::string(size, static_cast<char>('a' + i)) + "\n\n";
        ASSERT_TRUE(exchange->write(event)) << size << " event " << i;
        ASSERT_TRUE(exchange->write("data: small\n\n")) << size << " after event " << i;
        expected += event + "data: small\n\n";
        if (waits) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
      exchange->finish();
      reader.join();
      EXPECT_TRUE(got == expected) << size << ": " << got.size() << " of " << expected.size();
    }
  }
  EXPECT_TRUE(eventually([&] { return server_->stats().memory_bytes == 0; }));
}

TEST_F(HttpServerTest, CutsReadersThatTakeNothing) {
  HttpServerOptions quick = options();
  quick.write_timeout_s = 0.2;
  serve(quick);
  RawClient client(port(), 4096);
  client.get("/hold");
  const Exchange exchange = held_.take();
  exchange->respond(text(std::string(8 << 20, 'x')));
  EXPECT_TRUE(eventually([&] { return server_->stats().num_connections == 0; }));
}

TEST_F(HttpServerTest, TellsWhenTheClientLeaves) {
  serve();
  enum class Way { kClose, kReset, kEndSending };
  for (const Way way : {Way::kClose, Way::kReset, Way::kEndSending}) {
    for (const bool is_stream : {false, true}) {
      RawClient client(port());
      client.post("/hold", "{}");
      Exchange exchange = held_.take();
      std::atomic<int> num_told{0};
      exchange->on_disconnect([&] { ++num_told; });
      if (is_stream) {
        exchange->start_stream(event_stream());
        exchange->write("data: 1\n\n");
        EXPECT_NE(client.take_through("data: 1\n\n"), "");
      }
      EXPECT_EQ(num_told, 0);
      const auto begin = Clock::now();
      if (way == Way::kClose) client.close();
      if (way == Way::kReset) client.reset();
      if (way == Way::kEndSending) client.end_sending();
      EXPECT_TRUE(eventually([&] { return num_told == 1; }));
      EXPECT_LT(ms_since(begin), 2000);
      EXPECT_FALSE(exchange->write("data: 2\n\n"));
      int num_late = 0;
      exchange->on_disconnect([&] { ++num_late; });
      EXPECT_EQ(num_late, 1) << "told at once when it has left already";
      exchange.reset();
      EXPECT_TRUE(eventually([&] { return server_->stats().num_connections == 0; }));
      EXPECT_EQ(num_told, 1);
    }
  }
  EXPECT_EQ(server_->stats().num_disconnects, 6);
}

TEST_F(HttpServerTest, AnswersAClientThatOnlyEndedItsSide) {
  serve();
  RawClient client(port());
  client.get("/hello");
  client.end_sending();
  EXPECT_EQ(client.read().body, "hello");
}

TEST_F(HttpServerTest, SurvivesManyDisconnects) {
  serve();
  std::atomic<int> num_told{0};
  const int count = scaled(2000);
  for (int i = 0; i < count; ++i) {
    RawClient client(port());
    client.post("/hold", "{}");
    // As a handler does whose work is cancelled: the exchange lives until then.
    const auto exchange = std::make_shared<Exchange>(held_.take());
    (*exchange)->on_disconnect([&num_told, exchange] {
      ++num_told;
      exchange->reset();
    });
    if (i % 2 == 0) (*exchange)->start_stream(event_stream());
    if (i % 2 == 0 && i % 3 == 0) (*exchange)->write("data: 1\n\n");
    if (i % 5 == 0) {
      client.reset();
    } else {
      client.close();
    }
  }
  EXPECT_TRUE(eventually([&] { return num_told == count; })) << num_told;
  EXPECT_TRUE(eventually([&] { return server_->stats().num_connections == 0; }));
}

TEST_F(HttpServerTest, HasTimeLimits) {
  HttpServerOptions quick = options();
  quick.header_timeout_s = 0.3;
  quick.body_timeout_s = 0.3;
  quick.idle_timeout_s = 0.6;
  serve(quick);
  const auto begin = Clock::now();
  RawClient head(port());
  head.send("GET /hello HTTP/1.1\r\nHost: lo");
  RawClient body(port());
  body.send(
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: 5\r\n\r\nab");
  RawClient idle(port());
  RawClient kept(port());
  kept.get("/hello");
  EXPECT_EQ(kept.read().status, 200);
  EXPECT_EQ(head.read().status, 408);
  EXPECT_EQ(body.read().status, 408);
  EXPECT_LT(ms_since(begin), 10000);
  EXPECT_TRUE(idle.is_closed());
  EXPECT_TRUE(kept.is_closed());
  EXPECT_GE(ms_since(begin), 590);
}

TEST_F(HttpServerTest, RefusesConnectionsAboveTheLimit) {
  HttpServerOptions few = options();
  few.max_connections = 3;
  routes_.push_back({.method = "GET",
                     .path = "/health",
                     .is_public = true,
                     .is_quick = true,
                     .handler = [](Exchange e) { e->respond(text("well")); }});
  serve(few);
  std::vector<std::unique_ptr<RawClient>> clients;
  std::vector<Exchange> exchanges;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<RawClient>(port()));
    clients.back()->get("/hold");
    exchanges.push_back(held_.take());
  }
  for (int i = 0; i < 20; ++i) {
    RawClient surplus(port());
    surplus.get("/hello");
    const RawResponse response = surplus.read();
    ASSERT_EQ(response.status, 503) << "refused, not reset";
    EXPECT_EQ(response.headers.at("retry-after"), "1");
    RawClient probe(port());
    probe.get("/health");
    EXPECT_EQ(probe.read().body, "well") << "health has places of its own";
    EXPECT_TRUE(probe.is_closed());
  }
  EXPECT_EQ(server_->stats().num_refused, 20);
  exchanges.pop_back();
  clients.pop_back();
  EXPECT_TRUE(eventually([&] {
    RawClient next(port());
    next.get("/hello");
    return next.read().status == 200;
  }));
}

TEST_F(HttpServerTest, TheIdlestMakesRoom) {
  HttpServerOptions few = options();
  few.max_connections = 16;
  serve(few);
  RawClient busy(port());
  busy.get("/hold");
  const Exchange exchange = held_.take();
  RawClient kept(port());
  kept.get("/hello");
  EXPECT_EQ(kept.read().status, 200);
  std::vector<std::unique_ptr<RawClient>> silent;
  for (int i = 0; i < 50; ++i) {
    silent.push_back(std::make_unique<RawClient>(port()));
    if (i % 2 == 1) silent.back()->send("GET /hello HTTP/1.1\r\nHost: lo");
  }
  for (int i = 0; i < 20; ++i) {
    RawClient other(port());
    other.get("/hello");
    EXPECT_EQ(other.read().status, 200) << "silent clients lock nobody out";
  }
  EXPECT_TRUE(silent.front()->is_closed());
  EXPECT_GE(server_->stats().num_evicted, 30);
  EXPECT_EQ(server_->stats().num_refused, 0);
  kept.get("/hello");
  EXPECT_EQ(kept.read().status, 200) << "a flood of the new ends none that was of use";
  exchange->respond(text("done"));
  EXPECT_EQ(busy.read().body, "done");
}

TEST_F(HttpServerTest, WaitsForDescriptors) {
  serve();
  RawClient busy(port());
  busy.get("/hold");
  const Exchange exchange = held_.take();
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 3; ++i) {
    idle.push_back(std::make_unique<RawClient>(port()));
    idle.back()->get("/hello");
    EXPECT_EQ(idle.back()->read().status, 200);
  }
  // Clients have their descriptors already; the server finds none for accept().
  std::vector<int> taken;
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlimit lowered = {.rlim_cur = 64, .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &lowered), 0);
  for (int fd = dup(0); fd >= 0; fd = dup(0)) taken.push_back(fd);
  const auto connect_with_the_last = [&] {
    ::close(taken.back());
    taken.pop_back();
    return std::make_unique<RawClient>(port());
  };
  std::unique_ptr<RawClient> late = connect_with_the_last();
  late->get("/hello");
  EXPECT_EQ(late->read().status, 200) << "an idle one made room";
  late->get("/hold");
  const Exchange late_exchange = held_.take();
  idle.clear();
  for (int fd = dup(0); fd >= 0; fd = dup(0)) taken.push_back(fd);
  std::unique_ptr<RawClient> later = connect_with_the_last();
  later->get("/hello");
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  exchange->respond(text("done"));
  EXPECT_EQ(busy.read().body, "done") << "what runs goes on";
  for (const int fd : taken) ::close(fd);
  setrlimit(RLIMIT_NOFILE, &limit);
  EXPECT_EQ(later->read().status, 200) << "the one that waited is served";
}

TEST_F(HttpServerTest, DrainsWhatRuns) {
  serve();
  RawClient idle(port());
  idle.get("/hello");
  EXPECT_EQ(idle.read().status, 200);
  RawClient busy(port());
  busy.get("/hold");
  const Exchange exchange = held_.take();
  EXPECT_FALSE(server_->drain(100));
  EXPECT_TRUE(idle.is_closed());
  EXPECT_FALSE(RawClient(port()).is_connected());
  exchange->respond(text("done"));
  const RawResponse response = busy.read();
  EXPECT_EQ(response.body, "done");
  EXPECT_EQ(response.headers.at("connection"), "close");
  busy.close();
  EXPECT_TRUE(server_->drain(5000));
}

TEST_F(HttpServerTest, StopsWhileMuchIsGoingOn) {
  for (int round = 0; round < 20; ++round) {
    routes_.clear();
    serve();
    std::atomic<bool> is_done{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        while (!is_done) {
          RawClient client(port());
          if (!client.is_connected()) return;
          client.get(i % 2 == 0 ? "/hello" : "/hold");
          if (i % 2 == 0) client.read();
        }
      });
    }
    threads.emplace_back([&] {
      const Exchange exchange = held_.take_until(is_done);
      if (!exchange) return;
      exchange->on_disconnect([] {});
      exchange->start_stream(event_stream());
      while (exchange->write("data: x\n\n")) std::this_thread::yield();
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const auto begin = Clock::now();
    server_->stop();
    EXPECT_LT(ms_since(begin), 5000);
    is_done = true;
    for (std::thread& thread : threads) thread.join();
    server_.reset();
    held_.clear();
  }
}

TEST_F(HttpServerTest, ExchangesOutliveTheServer) {
  serve();
  RawClient client(port());
  client.get("/hold");
  const Exchange exchange = held_.take();
  bool was_told = false;
  exchange->on_disconnect([&] { was_told = true; });
  server_.reset();
  EXPECT_TRUE(was_told);
  exchange->start_stream(event_stream());
  EXPECT_FALSE(exchange->write("data: 1\n\n"));
  exchange->finish();
}

TEST_F(HttpServerTest, GuardsAndSharesByOrigin) {
  HttpServerOptions guarded = options();
  guarded.api_keys = {"key"};
  guarded.cors_origins = {"https://app.example"};
  serve(guarded);
  RawClient client(port());
  client.get("/hello");
  RawResponse response = client.read();
  EXPECT_EQ(response.status, 401);
  EXPECT_EQ(response.headers.at("www-authenticate"), "Bearer");
  client.get("/hello", "Authorization: Bearer key\r\nOrigin: https://app.example\r\n");
  response = client.read();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.headers.at("access-control-allow-origin"), "https://app.example");
  EXPECT_EQ(response.headers.count("access-control-allow-credentials"), 0u);
  client.send(
      "OPTIONS /echo HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example\r\n"
      "Access-Control-Request-Method: POST\r\n\r\n");
  response = client.read();
  EXPECT_EQ(response.status, 204);
  EXPECT_NE(response.headers.at("access-control-allow-headers").find("authorization"),
            std::string::npos);
  // As OpenAI's client for JavaScript asks.
  client.send(
      "OPTIONS /echo HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example\r\n"
      "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,"
      "content-type,x-stainless-arch, X-Stainless-Retry-Count,bad name\r\n\r\n");
  response = client.read();
  const std::string allowed = response.headers.at("access-control-allow-headers");
  EXPECT_NE(allowed.find("x-stainless-arch, x-stainless-retry-count"), std::string::npos)
      << allowed;
  EXPECT_EQ(allowed.find("bad"), std::string::npos);
  EXPECT_EQ(response.headers.at("access-control-max-age"), "600");
  EXPECT_NE(response.headers.at("access-control-expose-headers").find("x-request-id"),
            std::string::npos);
  client.send("GET /hello HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer key\r\n\r\n");
  EXPECT_EQ(client.read().status, 403);
}

TEST_F(HttpServerTest, ListensOnAUnixSocket) {
  HttpServerOptions unix_options = options();
  unix_options.host =
      (std::filesystem::temp_directory_path() / ("caravan" + std::to_string(getpid()) + ".sock"))
          .string();
  for (int round = 0; round < 2; ++round) {  // the second time the first one's file is gone
    routes_.clear();
    serve(unix_options);
    EXPECT_EQ(port(), 0);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    unix_options.host.copy(address.sun_path, sizeof(address.sun_path) - 1);
    ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const std::string request = "GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    ASSERT_EQ(::send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
    std::string answer;
    char buffer[4096];
    for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, n);
    EXPECT_EQ(answer.rfind("HTTP/1.1 200", 0), 0u) << answer;
    ::close(fd);
    server_.reset();
    EXPECT_FALSE(std::filesystem::exists(unix_options.host));
  }
}

TEST_F(HttpServerTest, RemovesNoFileButItsSocket) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("kept" + std::to_string(getpid()) + ".sock"))
          .string();
  HttpServerOptions unix_options = options();
  unix_options.host = path;
  std::ofstream(path) << "precious";
  try {
    HttpServer server(unix_options, {});
    FAIL() << "listens in a file's place";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos);
  }
  EXPECT_EQ(std::filesystem::file_size(path), 8u);
  std::filesystem::remove(path);
  std::filesystem::create_symlink("/nowhere", path);
  EXPECT_THROW(HttpServer(unix_options, {}), Error) << "a link is no socket";
  EXPECT_TRUE(std::filesystem::is_symlink(path));
  std::filesystem::remove(path);

  serve(unix_options);
  std::filesystem::remove(path);
  std::ofstream(path) << "another's";
  server_.reset();
  EXPECT_TRUE(std::filesystem::exists(path)) << "what took its place is kept";
  std::filesystem::remove(path);
}

TEST_F(HttpServerTest, SaysWhyItCannotListen) {
  serve();
  HttpServerOptions taken = options();
  taken.port = port();
  try {
    HttpServer second(taken, {});
    FAIL() << "two servers on one port";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find(std::to_string(taken.port)), std::string::npos);
  }
  taken.port = 65536;
  EXPECT_THROW(HttpServer(taken, {}), Error);
  taken.port = 0;
  taken.idle_timeout_s = 0;
  EXPECT_THROW(HttpServer(taken, {}), Error);
}

TEST_F(HttpServerTest, UsesSeveralThreads) {
  HttpServerOptions wide = options();
  wide.num_io_threads = 3;
  serve(wide);
  std::vector<std::thread> threads;
  std::atomic<int> num_right{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      RawClient client(port());
      for (int j = 0; j < 100; ++j) {
        const std::string body = std::to_string(i * 1000 + j);
        client.post("/echo", body);
        num_right += client.read().body == body;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_right, 800);
}

}  // namespace
}  // namespace caravan
