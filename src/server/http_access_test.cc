#include "server/http_access.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "core/error.h"
#include "server/sha256.h"

namespace caravan {
namespace {

std::string hex(const Sha256Digest& digest) {
  std::string text;
  for (const uint8_t byte : digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

TEST(Sha256, GivesThePublishedDigests) {  // NIST, SHA256ShortMsg.rsp and FIPS 180-2, appendix B
  EXPECT_EQ(hex(sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex(sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hex(sha256(std::string(1000000, 'a'))),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

HttpHead request(const std::string& method, const std::string& headers,
                 const std::string& path = "/v1/completions") {
  HttpHead head;
  const auto problem =
      parse_http_head(method + " " + path + " HTTP/1.1\r\n" + headers + "\r\n", head);
  EXPECT_FALSE(problem) << problem->message;
  return head;
}

int status(const HttpAccess& access, const HttpHead& head, bool is_public = false) {
  const auto refused = access.refusal(head, is_public);
  return refused ? refused->status : 200;
}

HttpRoute route(const char* method, const char* path, bool is_public = false) {
  return {.method = method, .path = path, .is_public = is_public, .handler = {}};
}

TEST(HttpAccess, EveryRouteButThePublicWantsAKey) {
  const HttpAccess access({.bind_host = "127.0.0.1",
                           .api_keys = {"sk-first-key", "second"},
                           .allowed_hosts = {},
                           .cors_origins = {}});
  const std::vector<HttpRoute> routes = {
      route("GET", "/health", true), route("GET", "/v1/models"), route("GET", "/v1/models/*"),
      route("POST", "/v1/completions"), route("GET", "/metrics")};
  const std::vector<std::pair<std::string, bool>> keys = {
      {"", false},
      {"Authorization: Bearer sk-first-key\r\n", true},
      {"Authorization: bearer second\r\n", true},
      {"Authorization: Bearer sk-first-ke\r\n", false},
      {"Authorization: Bearer sk-first-keyy\r\n", false},
      {"Authorization: Bearer sk-first-kex\r\n", false},
      {"Authorization: Bearer  second\r\n", false},
      {"Authorization: Bearer SECOND\r\n", false},
      {"Authorization: Bearer\r\n", false},
      {"Authorization: Bearer sk-first-keysecond\r\n", false},
      {"Authorization: Bearer sk-first-key second\r\n", false},
      {"Authorization: Basic second\r\n", false},
      {"Authorization: second\r\n", false},
      {"X-Api-Key: second\r\n", false},
      {"Cookie: key=second\r\n", false},
  };
  for (const char* path : {"/health", "/v1/models", "/v1/models/a/b", "/v1/completions", "/metrics",
                           "/nothing", "/health/", "//health", "/Health"}) {
    for (const char* method : {"GET", "HEAD", "POST", "DELETE", "PUT"}) {
      for (const auto& [header, is_right] : keys) {
        const HttpHead head = request(
            method,
            "Host: localhost\r\nContent-Length: 2\r\nContent-Type: application/json\r\n" + header,
            path);
        const HttpRouteMatch match = match_route(routes, method, path);
        const auto refused = refuse_request(access, match, head, 100);
        const bool is_public = match.route != nullptr && match.route->is_public;
        EXPECT_EQ(refused && refused->status == 401, !is_right && !is_public)
            << method << " " << path << " " << header;
        if (refused && refused->status == 401) {
          EXPECT_NE(refused->body.find("invalid_api_key"), std::string::npos);
        }
      }
    }
  }
  const HttpAccess open({});
  EXPECT_EQ(status(open, request("GET", "Host: localhost\r\n")), 200);
  EXPECT_THROW(
      HttpAccess({.bind_host = "", .api_keys = {""}, .allowed_hosts = {}, .cors_origins = {}}),
      Error);
}

TEST(HttpAccess, KnowsItsOwnNames) {
  const auto allows = [](const std::string& bound, const std::vector<std::string>& extra,
                         const std::string& host) {
    const HttpAccess access(
        {.bind_host = bound, .api_keys = {}, .allowed_hosts = extra, .cors_origins = {}});
    return status(access, request("GET", "Host: " + host + "\r\n")) == 200;
  };
  for (const char* host :
       {"localhost", "LOCALHOST:8000", "127.0.0.1", "127.1.2.3:1", "[::1]:8000"}) {
    EXPECT_TRUE(allows("127.0.0.1", {}, host)) << host;
    EXPECT_TRUE(allows("localhost", {}, host)) << host;
    EXPECT_TRUE(allows("0.0.0.0", {}, host)) << host;
  }
  for (const char* host : {"evil.example", "localhost.evil.example", "127.0.0.1.evil.example",
                           "127.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "a", "localhost."}) {
    EXPECT_FALSE(allows("127.0.0.1", {}, host)) << host;
  }
  EXPECT_TRUE(allows("0.0.0.0", {}, "10.0.0.1:8000"));
  EXPECT_TRUE(allows("::", {}, "[fe80::1]"));
  EXPECT_FALSE(allows("0.0.0.0", {}, "evil.example"));
  EXPECT_FALSE(allows("0.0.0.0", {}, "1.2.3.evil"));
  EXPECT_TRUE(allows("10.0.0.1", {}, "10.0.0.1"));
  EXPECT_TRUE(allows("10.0.0.1", {}, "localhost")) << "nobody else owns it";
  EXPECT_FALSE(allows("10.0.0.1", {}, "127.0.0.1"));
  EXPECT_FALSE(allows("10.0.0.1", {}, "10.0.0.2"));
  EXPECT_TRUE(allows("127.0.0.1", {"LLM.example"}, "llm.EXAMPLE:443"));
  EXPECT_FALSE(allows("127.0.0.1", {"llm.example"}, "x.llm.example"));
  EXPECT_TRUE(allows("127.0.0.1", {"*"}, "evil.example"));
  EXPECT_TRUE(allows("/run/caravan.sock", {}, "anything"));
  EXPECT_TRUE(allows("caravan.sock", {}, "anything"));
}

TEST(HttpAccess, RefusesPagesOfOtherOrigins) {
  const HttpAccess closed({});
  const HttpAccess open({.bind_host = "127.0.0.1",
                         .api_keys = {},
                         .allowed_hosts = {},
                         .cors_origins = {"https://App.example"}});
  const auto post = [](const HttpAccess& access, const std::string& origin) {
    return status(
        access,
        request("POST", "Host: localhost:8000\r\nContent-Length: 0\r\nOrigin: " + origin + "\r\n"));
  };
  for (const char* origin :
       {"https://evil.example", "null", "http://localhost", "http://localhost:80",
        "http://localhost:8000.evil.example", "http://127.0.0.1:8000", "https://app.example",
        "http://localhost:80001", "file://"}) {
    EXPECT_EQ(post(closed, origin), 403) << origin;
  }
  EXPECT_EQ(post(closed, "http://localhost:8000"), 200);
  EXPECT_EQ(post(closed, "https://localhost:8000"), 200) << "behind a proxy that speaks TLS";
  EXPECT_EQ(post(open, "https://app.example"), 200);
  EXPECT_EQ(post(open, "http://app.example"), 403);
  EXPECT_EQ(post(open, "https://app.example.evil"), 403);
  EXPECT_EQ(status(closed, request("GET", "Host: localhost\r\nOrigin: https://evil.example\r\n")),
            200);

  EXPECT_TRUE(
      closed.cors_headers(request("GET", "Host: a\r\nOrigin: https://a\r\n").request).empty());
  const auto allowed = [&](const std::string& origin) {
    for (const auto& [name, value] :
         open.cors_headers(request("OPTIONS", "Host: a\r\nOrigin: " + origin + "\r\n").request)) {
      EXPECT_NE(name, "access-control-allow-credentials");
      if (name == "access-control-allow-origin") return value;
    }
    return std::string();
  };
  EXPECT_EQ(allowed("https://app.example"), "https://app.example");
  EXPECT_EQ(allowed("https://evil.example"), "");
  EXPECT_THROW(
      HttpAccess({.bind_host = "", .api_keys = {}, .allowed_hosts = {}, .cors_origins = {"a"}}),
      Error);
}

TEST(HttpAccess, JudgesARequestBeforeItsBody) {
  const HttpAccess access({});
  const std::vector<HttpRoute> routes = {route("GET", "/health", true), route("POST", "/run"),
                                         route("GET", "/models/*"), route("GET", "/run")};
  const auto judge = [&](const std::string& method, const std::string& path,
                         const std::string& headers) {
    const HttpHead head = request(method, "Host: localhost\r\n" + headers, path);
    const auto refused = refuse_request(access, match_route(routes, method, path), head, 100);
    return refused ? refused->status : 200;
  };
  const std::string json = "Content-Type: application/json\r\nContent-Length: 9\r\n";
  EXPECT_EQ(judge("GET", "/health", ""), 200);
  EXPECT_EQ(judge("HEAD", "/health", ""), 200);
  EXPECT_EQ(judge("OPTIONS", "/health", ""), 200);
  EXPECT_EQ(judge("OPTIONS", "*", ""), 200);
  EXPECT_EQ(judge("OPTIONS", "/nope", ""), 404);
  EXPECT_EQ(judge("GET", "/nope", ""), 404);
  EXPECT_EQ(judge("GET", "/models", ""), 404);
  EXPECT_EQ(judge("GET", "/models/", ""), 404);
  EXPECT_EQ(judge("GET", "/models/a/b", ""), 200);
  EXPECT_EQ(judge("POST", "/health", json), 405);
  EXPECT_EQ(judge("TRACE", "/run", ""), 405);
  EXPECT_EQ(judge("POST", "/run", json), 200);
  EXPECT_EQ(judge("POST", "/run",
                  "Content-Type: Application/JSON ; charset=utf-8\r\nContent-Length: 0\r\n"),
            200);
  EXPECT_EQ(judge("POST", "/run", "Content-Type: application/json\r\n"), 411);
  EXPECT_EQ(
      judge("POST", "/run", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"),
      200);
  EXPECT_EQ(judge("POST", "/run", "Content-Type: application/json\r\nContent-Length: 101\r\n"),
            413);
  EXPECT_EQ(judge("POST", "/run",
                  "Content-Type: application/json\r\nContent-Length: 99999999999999999999999\r\n"),
            413);
  for (const char* type : {"text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
                           "application/jsonx", "", "application/json, text/plain"}) {
    EXPECT_EQ(
        judge("POST", "/run", std::string("Content-Length: 9\r\nContent-Type: ") + type + "\r\n"),
        415)
        << type;
  }
  EXPECT_EQ(judge("POST", "/run", "Content-Length: 9\r\n"), 415);
  EXPECT_EQ(judge("POST", "/run", json + "Content-Encoding: gzip\r\n"), 415);
  EXPECT_EQ(judge("POST", "/run", json + "Content-Encoding: identity\r\n"), 200);
  EXPECT_EQ(match_route(routes, "PUT", "/run").allowed_methods, "POST, GET, HEAD, OPTIONS");
}

}  // namespace
}  // namespace caravan
