#include "server/http_head.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/http_body.h"

namespace caravan {
namespace {

using namespace std::string_literals;

/// Status of the scanner or the parser; 0 when the head is accepted, -1 when it is incomplete.
int judge(const std::string& bytes, HttpHead* out = nullptr) {
  HttpHeadScanner scanner;
  if (const auto problem = scanner.scan(bytes)) return problem->status;
  if (!scanner.is_complete()) return -1;
  HttpHead head;
  const auto problem = parse_http_head(
      std::string_view(bytes).substr(scanner.begin(), scanner.end() - scanner.begin()), head);
  if (out != nullptr) *out = head;
  return problem ? problem->status : 0;
}

std::string with(const std::string& headers) {
  return "POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + headers + "\r\n";
}

TEST(HttpHead, ReadsARequest) {
  HttpHead head;
  ASSERT_EQ(
      judge("\r\n\r\nPOST /v1/models/a%2Fb%20%C3%A9?x=%zz&y HTTP/1.1\r\nHOST: LocalHost:8000\r\n"
            "Content-Length: 12\r\nX-Empty:\r\nX-Spaces: \t a b \t\r\n"
            "Expect: 100-Continue\r\n\r\nrest",
            &head),
      0);
  EXPECT_EQ(head.request.method, "POST");
  EXPECT_EQ(head.request.path, "/v1/models/a/b \u00e9");
  EXPECT_EQ(head.request.query, "x=%zz&y");
  EXPECT_EQ(head.host, "localhost");
  EXPECT_EQ(head.port, "8000");
  EXPECT_EQ(head.content_length, 12);
  EXPECT_TRUE(head.has_body());
  EXPECT_TRUE(head.expects_continue);
  EXPECT_TRUE(head.keep_alive);
  EXPECT_EQ(head.request.header("x-empty"), "");
  EXPECT_EQ(head.request.header("x-spaces"), "a b");
}

TEST(HttpHead, KnowsWhenTheConnectionStays) {
  const auto keeps = [](const std::string& version, const std::string& connection) {
    HttpHead head;
    EXPECT_EQ(judge("GET / HTTP/" + version + "\r\nHost: a\r\n" + connection + "\r\n", &head), 0);
    return head.keep_alive;
  };
  EXPECT_TRUE(keeps("1.1", ""));
  EXPECT_FALSE(keeps("1.1", "Connection: foo, CLOSE\r\n"));
  EXPECT_FALSE(keeps("1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
  EXPECT_FALSE(keeps("1.0", ""));
  EXPECT_TRUE(keeps("1.0", "Connection: Keep-Alive\r\n"));
}

TEST(HttpHead, RefusesWhatTwoProgramsCouldReadDifferently) {
  const std::vector<std::pair<std::string, int>> cases = {
      {with("Content-Length: 5\r\nContent-Length: 5\r\n"), 400},
      {with("Content-Length: 5\r\nContent-Length: 6\r\n"), 400},
      {with("Content-Length: 5, 5\r\n"), 400},
      {with("Content-Length: +5\r\n"), 400},
      {with("Content-Length: -1\r\n"), 400},
      {with("Content-Length: 0x5\r\n"), 400},
      {with("Content-Length: \r\n"), 400},
      {with("Content-Length: 5 5\r\n"), 400},
      {with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400},
      {with("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 400},
      {with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400},
      {with("Transfer-Encoding: gzip, chunked\r\n"), 400},
      {with("Transfer-Encoding: chunked, identity\r\n"), 400},
      {with("Transfer-Encoding: identity\r\n"), 400},
      {with("Transfer-Encoding: xchunked\r\n"), 400},
      {with("Transfer-Encoding: \"chunked\"\r\n"), 400},
      {with("Transfer-Encoding: chunked;q=1\r\n"), 400},
      {with("Transfer-Encoding:\r\n"), 400},
      {with("Transfer-Encoding : chunked\r\n"), 400},
      {with("Transfer_Encoding: chunked\r\n"), 0},  // another header: no body is announced
      {"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
      {with("X: a\r\n b\r\n"), 400},
      {with("X: a\r\n\tb\r\n"), 400},
      {" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
      {with("X: a\nY: b\r\n"), 400},
      {with("X: a\rY: b\r\n"), 400},
      {with("X: a\0b\r\n"s), 400},
      {with("X: a\x01 b\r\n"), 400},
      {with("X: a\x7f b\r\n"), 400},
      {with("X: caf\xc3\xa9\r\n"), 0},
      {with("X y: b\r\n"), 400},
      {with(": b\r\n"), 400},
      {with("X\r\n"), 400},
      {with("X\xc3\xa9: b\r\n"), 400},
      {with("Host: a\r\n"), 400},
      {with("Host: b\r\n"), 400},
      {with("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), 400},
      {with("Content-Type: a/b\r\nContent-Type: c/d\r\n"), 400},
      {with("Expect: 200-ok\r\n"), 417},
      {"GET / HTTP/1.1\r\n\r\n", 400},
      {"GET / HTTP/1.0\r\n\r\n", 0},
      {"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a:8o\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a:123456\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 0},
      {"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: []\r\n\r\n", 400},
  };
  for (const auto& [bytes, status] : cases) EXPECT_EQ(judge(bytes), status) << bytes;
}

TEST(HttpHead, RefusesBadRequestLines) {
  const auto line = [](const std::string& text) { return text + "\r\nHost: a\r\n\r\n"; };
  const std::vector<std::pair<std::string, int>> cases = {
      {line("GET / HTTP/1.1"), 0},
      {line("GET  / HTTP/1.1"), 400},
      {line("GET / HTTP/1.1 "), 400},
      {line("GET /"), 400},
      {line("GET"), 400},
      {line("GET / HTTP/0.9"), 400},
      {line("GET / HTTP/2.0"), 400},
      {line("GET / HTTP/1.2"), 400},
      {line("GET / http/1.1"), 400},
      {line("GET / HTTP/11"), 400},
      {line("G@T / HTTP/1.1"), 400},
      {line(std::string(33, 'A') + " / HTTP/1.1"), 400},
      {line("GET health HTTP/1.1"), 400},
      {line("GET * HTTP/1.1"), 400},
      {line("OPTIONS * HTTP/1.1"), 0},
      {line("CONNECT a:80 HTTP/1.1"), 400},
      {line("GET http://a/x HTTP/1.1"), 0},
      {line("GET HTTP://A HTTP/1.1"), 0},
      {line("GET http://b/x HTTP/1.1"), 400},
      {line("GET http:///x HTTP/1.1"), 400},
      {line("GET https://a/x HTTP/1.1"), 400},
      {line("GET file:///etc/passwd HTTP/1.1"), 400},
      {line("GET /a#b HTTP/1.1"), 400},
      {line("GET /caf\xc3\xa9 HTTP/1.1"), 400},
      {line("GET /% HTTP/1.1"), 400},
      {line("GET /%2 HTTP/1.1"), 400},
      {line("GET /%zz HTTP/1.1"), 400},
      {line("GET /%00 HTTP/1.1"), 400},
      {line("GET /%0a HTTP/1.1"), 400},
      {line("GET /%7f HTTP/1.1"), 400},
      {line("GET /%ff HTTP/1.1"), 400},
      {line("GET /%c0%ae HTTP/1.1"), 400},
      {line("GET /%ed%a0%80 HTTP/1.1"), 400},
      {line("GET /a\\b HTTP/1.1"), 400},
      {line("GET /%5c HTTP/1.1"), 400},
      {line("GET /.. HTTP/1.1"), 400},
      {line("GET /a/../b HTTP/1.1"), 400},
      {line("GET /%2e%2E/b HTTP/1.1"), 400},
      {line("GET /a%2f.. HTTP/1.1"), 400},
      {line("GET /a..b/...x HTTP/1.1"), 0},
      {"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"\x16\x03\x01\x02", 400},
      {"PRI * HTTP/2.0\r\n\r\n", 400},
      {"{\"prompt\": 1}", 400},
  };
  for (const auto& [bytes, status] : cases) EXPECT_EQ(judge(bytes), status) << bytes;
}

TEST(HttpHead, HasLimits) {
  const auto request = [](size_t target_bytes) {
    return "GET /" + std::string(target_bytes - 1, 'a') + " HTTP/1.1\r\nHost: a\r\n\r\n";
  };
  const size_t most = HttpHeadLimits::kLineBytes - std::string("GET  HTTP/1.1").size();
  EXPECT_EQ(judge(request(most)), 0);
  EXPECT_EQ(judge(request(most + 1)), 414);
  EXPECT_EQ(judge("GET /" + std::string(10000, 'a')), 414) << "without waiting for the line's end";

  const auto header = [](size_t bytes) {
    return with("X: " + std::string(bytes - 3, 'a') + "\r\n");
  };
  EXPECT_EQ(judge(header(HttpHeadLimits::kLineBytes)), 0);
  EXPECT_EQ(judge(header(HttpHeadLimits::kLineBytes + 1)), 431);

  const auto headers = [](int count) {
    std::string text;
    for (int i = 1; i < count; ++i) text += "X: a\r\n";
    return with(text);
  };
  EXPECT_EQ(judge(headers(HttpHeadLimits::kHeaders)), 0);
  EXPECT_EQ(judge(headers(HttpHeadLimits::kHeaders + 1)), 431);

  const auto sized = [](size_t bytes) {
    std::string head = "GET / HTTP/1.1\r\nHost: a\r\n";
    while (bytes - head.size() > 2) {
      const size_t left = bytes - head.size() - 2;
      const size_t line = left < 4000 ? left : left < 4010 ? 3990 : 4000;  // at least 4 at the end
      head += "X:" + std::string(line - 4, 'a') + "\r\n";
    }
    return head + "\r\n";
  };
  ASSERT_EQ(sized(32768).size(), 32768u);
  EXPECT_EQ(judge(sized(32768)), 0);
  EXPECT_EQ(judge(sized(32769)), 431);
}

TEST(HttpHead, EveryCutIsIncompleteAndTheWholeIsNot) {
  const std::string request =
      "\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX: y\r\n\r\nabc";
  const size_t head_end = request.size() - 3;
  HttpHeadScanner scanner;
  for (size_t size = 0; size <= request.size(); ++size) {
    ASSERT_FALSE(scanner.scan(std::string_view(request).substr(0, size)));
    ASSERT_EQ(scanner.is_complete(), size >= head_end) << size;
    EXPECT_EQ(judge(request.substr(0, size)), size >= head_end ? 0 : -1) << size;
  }
  EXPECT_EQ(scanner.begin(), 2u);
  EXPECT_EQ(scanner.end(), head_end);
}

struct ReadBody {
  int status = 0;
  bool is_done = false;
  std::string body;
  size_t num_left = 0;
};

/// Feeds `input` in pieces of `step` bytes, as a connection does.
ReadBody read_body(const std::string& head, const std::string& input, size_t step,
                   int64_t max_bytes = 100, int64_t max_chunks = 4) {
  HttpHead parsed;
  EXPECT_FALSE(parse_http_head(head, parsed)) << head;
  HttpBodyReader reader(parsed, max_bytes, max_chunks);
  std::string waiting;
  ReadBody result;
  for (size_t i = 0; i < input.size() || i == 0; i += step) {
    waiting += input.substr(std::min(i, input.size()), step);
    waiting.erase(0, reader.put(waiting));
  }
  result.num_left = waiting.size();
  result.is_done = reader.is_done();
  if (reader.problem()) result.status = reader.problem()->status;
  if (result.is_done) result.body = reader.take_body();
  return result;
}

TEST(HttpBody, ReadsBothForms) {
  const std::string length = with("Content-Length: 5\r\n");
  const std::string chunked = with("Transfer-Encoding: chunked\r\n");
  for (const size_t step : {1, 2, 3, 7, 1000}) {
    ReadBody read = read_body(length, "helloGET", step);
    EXPECT_TRUE(read.is_done) << step;
    EXPECT_EQ(read.body, "hello");
    EXPECT_EQ(read.num_left, 3u) << "what follows belongs to the next request";
    read = read_body(chunked, "2\r\nhe\r\n3;a=\"b\"\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\nGET", step);
    EXPECT_TRUE(read.is_done) << step;
    EXPECT_EQ(read.body, "hello");
    EXPECT_EQ(read.num_left, 3u);
    EXPECT_FALSE(read_body(length, "hell", step).is_done);
    EXPECT_FALSE(read_body(chunked, "5\r\nhello\r\n0\r\n", step).is_done);
  }
}

TEST(HttpBody, RefusesBadChunksAndWhatIsTooLong) {
  const std::string chunked = with("Transfer-Encoding: chunked\r\n");
  const auto status = [&](const std::string& input, int64_t max_bytes = 100) {
    const int whole = read_body(chunked, input, 100000, max_bytes).status;
    EXPECT_EQ(whole, read_body(chunked, input, 1, max_bytes).status) << input.substr(0, 40);
    return whole;
  };
  EXPECT_EQ(status("x\r\nab\r\n"), 400);
  EXPECT_EQ(status("-1\r\nab\r\n"), 400);
  EXPECT_EQ(status("5\nhello\r\n"), 400);
  EXPECT_EQ(status("5\r\nhelloX\r\n0\r\n\r\n"), 400);
  EXPECT_EQ(status("ffffffffffffffff1\r\n"), 400);
  EXPECT_EQ(status("0\r\nbad trailer\r\n\r\n"), 400);
  EXPECT_EQ(status("65\r\n" + std::string(101, 'a') + "\r\n"), 413);
  EXPECT_EQ(status("64\r\n" + std::string(100, 'a') + "\r\n0\r\n\r\n"), 0);
  EXPECT_EQ(status("ffffffffffffffff\r\n"), 413);
  EXPECT_EQ(status("1\r\na\r\n1\r\na\r\n1\r\na\r\n1\r\na\r\n0\r\n\r\n"), 0) << "4 chunks";
  EXPECT_EQ(status("1\r\na\r\n1\r\na\r\n1\r\na\r\n1\r\na\r\n1\r\na\r\n"), 413) << "5 chunks";
  EXPECT_EQ(status("1;" + std::string(20000, 'x')), 400);
  EXPECT_EQ(status("0\r\nX: " + std::string(20000, 'x')), 400);
  EXPECT_EQ(read_body(with("Content-Length: 101\r\n"), "", 1).status, 413);
}

TEST(HttpBody, ReadsTrailersAsStrictlyAsHeads) {
  const std::string chunked = with("Transfer-Encoding: chunked\r\n");
  const auto status = [&](const std::string& trailer) {
    const std::string input = "1\r\na\r\n0\r\n" + trailer + "\r\n";
    const int whole = read_body(chunked, input, 100000).status;
    EXPECT_EQ(whole, read_body(chunked, input, 1).status) << trailer;
    return whole;
  };
  EXPECT_EQ(status(""), 0);
  EXPECT_EQ(status("X-Checksum: a b\r\nServer-Timing: x\r\n"), 0);
  EXPECT_EQ(status("X-Folded: a\r\n b\r\n"), 400);
  EXPECT_EQ(status("X-Folded: a\r\n\tb\r\n"), 400);
  EXPECT_EQ(status(" X: a\r\n"), 400);
  EXPECT_EQ(status("X : a\r\n"), 400);
  EXPECT_EQ(status("X: a\nY: b\r\n"), 400);
  EXPECT_EQ(status(std::string("X: a\0b\r\n", 9)), 400);
  for (const char* name : {"Host", "content-length", "Transfer-Encoding", "Authorization", "Cookie",
                           "Content-Type", "Content-Encoding", "Expect", "Connection", "TE"}) {
    EXPECT_EQ(status(std::string(name) + ": 1\r\n"), 400) << name;
  }
  for (const char* extension : {"", ";a", ";a=b", " ;\ta = \"b;\\\" c\" ; d"}) {
    const std::string input = std::string("1") + extension + "\r\na\r\n0\r\n\r\n";
    EXPECT_EQ(read_body(chunked, input, 1).body, "a") << extension;
  }
  for (const char* extension :
       {";", " ", ";a=", ";a b", ";=b", ";a=\"b", ";a=\"b\\\"", " a", ";a\xff"}) {
    const std::string input = std::string("1") + extension + "\r\na\r\n0\r\n\r\n";
    EXPECT_EQ(read_body(chunked, input, 1).status, 400) << extension;
  }
  EXPECT_EQ(read_body(chunked, "01\r\na\r\n00\r\n\r\n", 1).body, "a") << "digits alone";
}

TEST(HttpBody, HoldsWhatHasComeAndNoMore) {
  const auto held = [](const std::string& header, const std::string& input, int64_t step) {
    HttpHead head;
    EXPECT_FALSE(parse_http_head(with(header), head));
    HttpBodyReader reader(head, 4 << 20, 1 << 20);
    int64_t most = 0;
    for (size_t i = 0; i < input.size(); i += static_cast<size_t>(step)) {
      reader.put(std::string_view(input).substr(i, static_cast<size_t>(step)));
      most = std::max(most, reader.num_bytes_held());
    }
    return most;
  };
  const std::string length = "Content-Length: 4194304\r\n";
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  EXPECT_LE(held(length, "a", 1), 4096) << "a length that was announced takes nothing";
  EXPECT_LE(held(chunked, "400000\r\na", 1), 4096);
  EXPECT_LE(held(length, std::string(1000000, 'a'), 997), 1000000 + (128 << 10));
  EXPECT_LE(held(chunked, "400000\r\n" + std::string(1000000, 'a'), 16384), 1000000 + (128 << 10));
  std::string tiny;
  for (int i = 0; i < 100000; ++i) tiny += "1\r\na\r\n";
  EXPECT_LE(held(chunked, tiny, 4096), 100000 + (128 << 10));
}

}  // namespace
}  // namespace caravan
