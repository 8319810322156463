// Nobody stops or starves the others: clients that hold memory, connections or threads, beside one
// that only wants its answer.

#include <gtest/gtest.h>
#include <sys/un.h>

#include <atomic>
#include <filesystem>
#include <latch>
#include <thread>

#include "server/memory_trimmer.h"
#include "server/test_http_client.h"
#include "server/test_http_server.h"

namespace caravan {
namespace {

using testing::Clock;
using testing::event_stream;
using testing::eventually;
using testing::Exchange;
using testing::ms_since;
using testing::RawClient;
using testing::RawResponse;
using testing::text;

constexpr int64_t kMiB = 1 << 20;
const std::string kPost =
    "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";

class HttpLimitsTest : public testing::HttpServerTest {
 protected:
  HttpServerOptions small_memory(int64_t num_bytes) const {
    HttpServerOptions small = options();
    small.max_memory = num_bytes;
    return small;
  }
  void serve_with_health(const HttpServerOptions& server_options) {
    routes_.push_back({.method = "GET",
                       .path = "/health",
                       .is_public = true,
                       .is_quick = true,
                       .handler = [](Exchange e) { e->respond(text("well")); }});
    serve(server_options);
  }
  std::unique_ptr<RawClient> client_with(const std::string& bytes) const {
    auto client = std::make_unique<RawClient>(port());
    client->send(bytes);
    return client;
  }
  void expect_service(const char* what) const {
    RawClient canary(port());
    canary.post("/echo", "canary");
    EXPECT_EQ(canary.read().body, "canary") << what;
  }
  bool is_memory(int64_t least, int64_t most) const {
    return eventually([&] {
      const int64_t num_bytes = server_->stats().memory_bytes;
      return num_bytes >= least && num_bytes <= most;
    });
  }
};

TEST_F(HttpLimitsTest, QuickRoutesDoNotWaitForHandlers) {
  std::latch gate(1);
  routes_.push_back({.method = "POST", .path = "/stuck", .handler = [&](Exchange e) {
                       gate.wait();
                       e->respond(text("late"));
                     }});
  HttpServerOptions guarded = options();
  guarded.api_keys = {"key"};
  serve_with_health(guarded);
  std::vector<std::unique_ptr<RawClient>> stuck;
  for (int i = 0; i < 12; ++i) {
    stuck.push_back(std::make_unique<RawClient>(port()));
    stuck.back()->post("/stuck", "{}", "Authorization: Bearer key\r\n");
  }
  for (int i = 0; i < 10; ++i) {
    RawClient client(port());
    client.get("/health");
    EXPECT_EQ(client.read().body, "well");
    client.send("OPTIONS /stuck HTTP/1.1\r\nHost: localhost\r\n\r\n");
    EXPECT_EQ(client.read().status, 204);
    client.get("/hello");
    EXPECT_EQ(client.read().status, 401);
  }
  gate.count_down();
  for (const auto& client : stuck) EXPECT_EQ(client->read().body, "late");
}

TEST_F(HttpLimitsTest, RefusesBodiesWhereNoneBelong) {
  HttpServerOptions guarded = options();
  guarded.api_keys = {"key"};
  serve_with_health(guarded);
  for (const char* line : {"GET /health", "HEAD /health", "OPTIONS /health", "OPTIONS *"}) {
    for (const char* framing : {"Content-Length: 4194304\r\n", "Transfer-Encoding: chunked\r\n"}) {
      const auto client = client_with(std::string(line) + " HTTP/1.1\r\nHost: localhost\r\n" +
                                      framing + "\r\n" + std::string(10000, '1'));
      EXPECT_EQ(client->read(line[0] != 'H').status, 413) << line << " " << framing;
      EXPECT_TRUE(client->is_closed());
    }
  }
  // Keys and hosts come first.
  EXPECT_EQ(client_with(kPost + "Content-Length: 4000000\r\n\r\n")->read().status, 401);
  EXPECT_EQ(client_with("POST /echo HTTP/1.1\r\nHost: evil\r\nContent-Length: 4000000\r\n\r\n")
                ->read()
                .status,
            403);
  EXPECT_EQ(client_with("GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
                ->read()
                .status,
            200);
  EXPECT_TRUE(eventually([&] { return server_->stats().memory_bytes == 0; }));
}

TEST_F(HttpLimitsTest, HalfSentBodiesShareOneBudget) {
  serve(small_memory(8 * kMiB));
  std::vector<std::unique_ptr<RawClient>> clients;
  const std::string body(kMiB, 'x');
  for (int i = 0; i < 20; ++i) {
    const bool is_chunked = i % 2 == 1;
    clients.push_back(client_with(kPost +
                                  (is_chunked ? "Transfer-Encoding: chunked\r\n\r\n100000\r\n"
                                              : "Content-Length: 1048576\r\n\r\n") +
                                  body.substr(1)));
  }
  ASSERT_TRUE(is_memory(4 * kMiB, 6 * kMiB)) << server_->stats().memory_bytes;
  expect_service("a quarter is kept for small bodies");
  int num_refused = 0;
  for (size_t i = 0; i < clients.size(); ++i) {
    clients[i]->send(i % 2 == 1 ? "x\r\n0\r\n\r\n" : "x");
    const RawResponse response = clients[i]->read();
    if (response.status == 200) {
      EXPECT_EQ(response.body, body) << "nothing is lost for those that have their place";
    } else {
      EXPECT_EQ(response.status, 503);
      EXPECT_EQ(response.headers.at("retry-after"), "1");
      ++num_refused;
    }
  }
  EXPECT_GE(num_refused, 10);
  EXPECT_LE(num_refused, 17);
  EXPECT_TRUE(is_memory(0, 0)) << server_->stats().memory_bytes;
  EXPECT_GE(server_->stats().num_memory_refused, num_refused);
}

TEST_F(HttpLimitsTest, QueuedBodiesCountUntilTheyAreTaken) {
  serve(small_memory(8 * kMiB));
  RawClient client(port());
  client.post("/hold", std::string(2 * kMiB, 'x'));
  Exchange exchange = held_.take();
  EXPECT_GE(server_->stats().memory_bytes, 2 * kMiB);
  EXPECT_EQ(exchange->take_body().size(), 2u * kMiB);
  EXPECT_TRUE(is_memory(0, 0));
  EXPECT_TRUE(exchange->request().body.empty());
  exchange->respond(text("done"));
  EXPECT_EQ(client.read().body, "done");
  client.post("/hold", std::string(2 * kMiB, 'x'));
  exchange = held_.take();
  client.close();
  exchange.reset();
  EXPECT_TRUE(is_memory(0, 0)) << "nor is one forgotten whose client left";
}

TEST_F(HttpLimitsTest, AnswersShareTheBudget) {
  serve(small_memory(8 * kMiB));
  std::vector<std::unique_ptr<RawClient>> clients;
  std::vector<Exchange> exchanges;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(std::make_unique<RawClient>(port(), 4096));
    clients.back()->get("/hold");
    exchanges.push_back(held_.take());
  }
  EXPECT_TRUE(exchanges[0]->reserve(4 * kMiB)) << "an answer in the making";
  EXPECT_FALSE(exchanges[1]->reserve(4 * kMiB));
  EXPECT_TRUE(exchanges[1]->reserve(kMiB));
  exchanges[1]->respond(text(std::string(3 * kMiB, 'x')));
  EXPECT_EQ(clients[1]->read().status, 503) << "an answer that does not fit";
  exchanges[0]->respond(text(std::string(4 * kMiB, 'x')));
  exchanges[2]->respond(text(std::string(3 * kMiB, 'x')));
  EXPECT_EQ(clients[2]->read().status, 503);
  exchanges[3]->respond(text("small"));
  EXPECT_EQ(clients[3]->read().body, "small");
  EXPECT_EQ(clients[0]->read().body.size(), 4u * kMiB);
  EXPECT_TRUE(is_memory(0, 0)) << server_->stats().memory_bytes;
}

TEST_F(HttpLimitsTest, GivesUnsentBytesBackWhenAClientIsCut) {
  HttpServerOptions quick = small_memory(32 * kMiB);
  quick.write_timeout_s = 0.3;
  serve(quick);
  RawClient client(port(), 4096);
  client.get("/hold");
  held_.take()->respond(text(std::string(8 * kMiB, 'x')));
  EXPECT_TRUE(is_memory(8 * kMiB, 9 * kMiB));
  EXPECT_TRUE(is_memory(0, 0));
  EXPECT_EQ(server_->stats().num_disconnects, 1);
}

TEST_F(HttpLimitsTest, CutsSlowSendersAndNotFastOnes) {
  HttpServerOptions quick = options();
  quick.min_rate = 1000;
  quick.min_rate_grace_s = 0.2;
  quick.body_timeout_s = 60;
  serve(quick);
  RawClient slow(port());
  slow.send(kPost + "Content-Length: 100000\r\n\r\n");
  std::atomic<bool> is_over{false};
  std::thread sender([&] {
    while (!is_over) {
      slow.send("x");
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  EXPECT_EQ(slow.read().status, 408) << "50 bytes a second";
  is_over = true;
  sender.join();
  RawClient steady(port());
  steady.send(kPost + "Content-Length: 20000\r\n\r\n");
  for (int i = 0; i < 20; ++i) {
    steady.send(std::string(1000, 'x'));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(steady.read().status, 200);
}

TEST_F(HttpLimitsTest, CutsSlowReadersOfAnswersAndNoSilentStreams) {
  HttpServerOptions quick = options();
  quick.min_rate = 1e6;
  quick.write_timeout_s = 0.5;
  serve(quick);
  RawClient silent(port());
  silent.get("/hold");
  const Exchange stream = held_.take();
  stream->start_stream(event_stream());
  RawClient slow(port(), 4096);
  slow.get("/hold");
  held_.take()->respond(text(std::string(16 * kMiB, 'x')));
  std::atomic<bool> is_over{false};
  std::thread reader([&] {
    char buffer[1000];
    while (!is_over && recv(slow.fd(), buffer, sizeof(buffer), 0) > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  });
  EXPECT_TRUE(eventually([&] { return server_->stats().num_disconnects == 1; })) << "100 kB/s";
  is_over = true;
  reader.join();
  stream->write("data: late\n\n");
  EXPECT_NE(silent.take_through("late").find("late"), std::string::npos);
  stream->finish();
}

TEST_F(HttpLimitsTest, HeadsMustComeInTimeFromTheStart) {
  HttpServerOptions quick = options();
  quick.header_timeout_s = 0.4;
  serve(quick);
  RawClient silent(port());
  RawClient trickle(port());
  std::atomic<bool> is_over{false};
  std::thread sender([&] {
    trickle.send("GET /hello HTTP/1.1\r\nHost: localhost\r\n");
    for (int i = 0; !is_over; ++i) {
      trickle.send("X-" + std::to_string(i) + ": 1\r\n");
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  });
  EXPECT_TRUE(silent.is_closed()) << "long before the 75 s of a connection that was of use";
  EXPECT_EQ(trickle.read().status, 408);
  is_over = true;
  sender.join();
  RawClient many(port());
  std::string head = "GET /hello HTTP/1.1\r\nHost: localhost\r\n";
  for (int i = 0; i < 200; ++i) head += "X-" + std::to_string(i) + ": 1\r\n";
  many.send(head + "\r\n");
  EXPECT_EQ(many.read().status, 431);
}

TEST_F(HttpLimitsTest, PipelinedRequestsTakeTurns) {
  serve();
  RawClient flood(port());
  std::string requests;
  constexpr int kRequests = 3000;
  for (int i = 0; i < kRequests; ++i) requests += "GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n";
  std::thread sender([&] { flood.send(requests); });
  for (int i = 0; i < 20; ++i) expect_service("beside a flood of pipelined requests");
  for (int i = 0; i < kRequests; ++i) ASSERT_EQ(flood.read().status, 404) << i;
  sender.join();
  EXPECT_EQ(server_->stats().memory_bytes, 0);
}

TEST_F(HttpLimitsTest, APromisedBodyTakesNothing) {
  HttpServerOptions quick = small_memory(4 * kMiB);
  quick.min_rate_grace_s = 0.5;
  serve(quick);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 40; ++i) {
    clients.push_back(
        client_with(kPost + "Content-Length: 4000000\r\nExpect: 100-continue\r\n\r\n"));
    EXPECT_EQ(clients.back()->read().status, 100);
  }
  EXPECT_EQ(server_->stats().memory_bytes, 0);
  expect_service("beside promises");
  for (const auto& client : clients) EXPECT_EQ(client->read().status, 408);
}

TEST_F(HttpLimitsTest, BodiesThatEndHalfwayAreGivenBack) {
  serve();
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 10; ++i) {
    clients.push_back(
        client_with(kPost + "Content-Length: 2000000\r\n\r\n" + std::string(1000000, 'x')));
  }
  ASSERT_TRUE(is_memory(10 * 1000000, 12 * 1000000));
  for (size_t i = 0; i < clients.size(); ++i) {
    if (i % 2 == 0) {
      clients[i]->end_sending();
      EXPECT_EQ(clients[i]->read().status, 400);
    } else {
      clients[i]->reset();
    }
  }
  EXPECT_TRUE(is_memory(0, 0)) << server_->stats().memory_bytes;
}

TEST_F(HttpLimitsTest, HeadOfALargeAnswerHoldsNothing) {
  routes_.push_back({.method = "GET", .path = "/large", .handler = [](Exchange e) {
                       e->respond(text(std::string(5 * kMiB, 'x')));
                     }});
  serve(small_memory(8 * kMiB));
  RawClient client(port());
  for (int i = 0; i < 20; ++i) {
    client.send("HEAD /large HTTP/1.1\r\nHost: localhost\r\n\r\n");
    EXPECT_EQ(client.read(false).headers.at("content-length"), std::to_string(5 * kMiB));
  }
  EXPECT_TRUE(is_memory(0, 0));
}

TEST_F(HttpLimitsTest, ClientsThatNeverReadARefusalMakeRoom) {
  HttpServerOptions few = options();
  few.max_connections = 8;
  serve(few);
  std::vector<std::unique_ptr<RawClient>> rude;
  for (int i = 0; i < 40; ++i) {
    rude.push_back(std::make_unique<RawClient>(port(), 2048));
    rude.back()->send("\x16\x03\x01 no HTTP\r\n\r\n" + std::string(100, 'x'));
    if (i % 3 == 0) rude.back()->send("GET /nope HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  }
  for (int i = 0; i < 20; ++i) expect_service("beside refusals that nobody reads");
}

TEST_F(HttpLimitsTest, SlowBodiesMakeRoomToo) {
  HttpServerOptions few = options();
  few.max_connections = 8;
  serve(few);
  std::vector<std::unique_ptr<RawClient>> slow;
  for (int i = 0; i < 20; ++i) {
    slow.push_back(client_with(kPost + "Content-Length: 1000\r\n\r\nab"));
  }
  for (int i = 0; i < 20; ++i) expect_service("beside bodies that do not end");
  EXPECT_TRUE(slow.front()->is_closed());
  EXPECT_EQ(server_->stats().num_refused, 0);
}

TEST_F(HttpLimitsTest, DrainsWhileTheBudgetIsFull) {
  serve(small_memory(4 * kMiB));
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(
        client_with(kPost + "Content-Length: 2000000\r\n\r\n" + std::string(1500000, 'x')));
  }
  ASSERT_TRUE(is_memory(1500000, 3 * kMiB));
  RawClient running(port());
  running.get("/hold");
  const Exchange exchange = held_.take();
  EXPECT_FALSE(server_->drain(100));
  exchange->respond(text("done"));
  EXPECT_EQ(running.read().body, "done");
  server_->stop();
  EXPECT_EQ(server_->stats().memory_bytes, 0);
}

TEST_F(HttpLimitsTest, UnixSocketsHaveTheSameLimits) {
  HttpServerOptions few = options();
  few.host = (std::filesystem::temp_directory_path() / ("l" + std::to_string(getpid()) + ".sock"))
                 .string();
  few.max_connections = 4;
  serve_with_health(few);
  const auto connect_unix = [&] {
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    few.host.copy(address.sun_path, sizeof(address.sun_path) - 1);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  };
  std::vector<int> silent;
  for (int i = 0; i < 20; ++i) silent.push_back(connect_unix());
  const int fd = connect_unix();
  const std::string request = "GET /health HTTP/1.1\r\nHost: any\r\nContent-Length: 9\r\n\r\n";
  EXPECT_EQ(::send(fd, request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  char buffer[12] = {};
  EXPECT_EQ(recv(fd, buffer, sizeof(buffer), MSG_WAITALL), 12);
  EXPECT_EQ(std::string(buffer, 12), "HTTP/1.1 413");
  ::close(fd);
  for (const int each : silent) ::close(each);
}

TEST(MemoryBudget, KeepsAQuarterForSmallShares) {
  const auto budget = std::make_shared<MemoryBudget>(1000000);
  MemoryShare large(budget);
  EXPECT_FALSE(large.resize(750001));
  EXPECT_EQ(budget->used(), 0);
  EXPECT_TRUE(large.resize(750000));
  MemoryShare other(budget);
  EXPECT_FALSE(other.resize(70000));
  EXPECT_TRUE(other.resize(60000));
  EXPECT_FALSE(other.resize(70000)) << "it grows above what is small";
  EXPECT_EQ(other.num_bytes(), 60000);
  MemoryShare moved = std::move(large);
  EXPECT_EQ(budget->used(), 810000);
  moved.release();
  EXPECT_TRUE(other.resize(70000));
  EXPECT_EQ(budget->used(), 70000);
  EXPECT_EQ(budget->num_refused(), 3);
}

TEST(MemoryTrimmer, TrimsAfterABurst) {
  constexpr int64_t kMB = 1000000;
  MemoryTrimmer trimmer;
  trimmer.note_trimmed({.num_free = 5 * kMB, .num_resident = 100 * kMB});
  EXPECT_FALSE(trimmer.wants_trim({.num_free = 10 * kMB, .num_resident = 105 * kMB}));
  EXPECT_FALSE(trimmer.wants_trim({.num_free = 5 * kMB, .num_resident = 700 * kMB})) << "in use";
  EXPECT_TRUE(trimmer.wants_trim({.num_free = 500 * kMB, .num_resident = 700 * kMB}));
  trimmer.note_trimmed({.num_free = 500 * kMB, .num_resident = 200 * kMB});
  EXPECT_FALSE(trimmer.wants_trim({.num_free = 505 * kMB, .num_resident = 205 * kMB}))
      << "what is free is not resident";
  EXPECT_TRUE(trimmer.wants_trim({.num_free = 505 * kMB, .num_resident = 600 * kMB}))
      << "it was used again between two looks";
  EXPECT_FALSE(trimmer.wants_trim({.num_free = 100 * kMB, .num_resident = 210 * kMB}));
  EXPECT_TRUE(trimmer.wants_trim({.num_free = 400 * kMB, .num_resident = 210 * kMB}));
}

}  // namespace
}  // namespace caravan
