#include "server/http_access.h"

#include <arpa/inet.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "core/error.h"

namespace caravan {

namespace {

bool contains(const std::vector<std::string>& list, std::string_view item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

/// "10.0.0.1" or "[::1]". A name never looks like this, so no site can own it.
bool is_address(std::string_view host) {
  if (!host.empty() && host.front() == '[') return true;
  return std::count(host.begin(), host.end(), '.') == 3 &&
         host.find_first_not_of("0123456789.") == std::string_view::npos;
}

/// "localhost", or an address, which may be in brackets.
bool is_loopback(std::string_view host) {
  if (host == "localhost") return true;
  std::string address(host);
  if (address.starts_with('[') && address.ends_with(']')) {
    address = address.substr(1, address.size() - 2);
  }
  in_addr v4{};
  in6_addr v6{};
  if (inet_pton(AF_INET, address.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  if (inet_pton(AF_INET6, address.c_str(), &v6) != 1) return false;
  return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
}

std::string machine_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "";
  return ascii_lower(name.data());
}

bool changes_something(std::string_view method) {
  return method != "GET" && method != "HEAD" && method != "OPTIONS";
}

/// The media type alone: "application/json; charset=utf-8" -> "application/json".
std::string media_type(std::string_view content_type) {
  std::string_view type = content_type.substr(0, content_type.find(';'));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.remove_suffix(1);
  return ascii_lower(type);
}

HttpResponse forbidden(std::string_view message) {
  return error_response(403, message, "permission_error");
}

/// A form of another site cannot send JSON unasked, so nothing else is read.
std::optional<HttpResponse> refuse_media_type(const HttpRequest& request) {
  if (media_type(request.header("content-type")) != "application/json") {
    return error_response(415, "Content-Type: expected application/json", "invalid_request_error");
  }
  const std::string_view encoding = request.header("content-encoding");
  if (!encoding.empty() && ascii_lower(encoding) != "identity") {
    return error_response(
        415, fmt::format("Content-Encoding: got \"{}\", expected none", printable(encoding)),
        "invalid_request_error");
  }
  return std::nullopt;
}

}  // namespace

bool is_unix_socket_path(std::string_view host) {
  return host.size() > 5 && host.ends_with(".sock");
}

bool is_local_host(std::string_view host) {
  return is_unix_socket_path(host) || is_loopback(ascii_lower(host));
}

std::string api_key_problem(std::string_view key) {
  if (key.empty()) return "empty; leave it out to serve without a key";
  const bool is_visible =
      std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (!is_visible) return "a key holds visible ASCII without blanks";
  if (key.front() == '-') return "a key must not begin with '-': is a flag in its place?";
  if (key.front() == '#') return "a key must not begin with '#', as comments do";
  return "";
}

HttpAccess::HttpAccess(const HttpAccessOptions& options) : options_(options) {
  for (const std::string& key : options_.api_keys) {
    const std::string problem = api_key_problem(key);
    CARAVAN_CHECK(problem.empty(), "API key: {}", problem);
    keys_.push_back(sha256(key));
  }
  options_.api_keys.clear();
  for (std::string& host : options_.allowed_hosts) host = ascii_lower(host);
  for (std::string& origin : options_.cors_origins) {
    origin = ascii_lower(origin);
    CARAVAN_CHECK(origin == "*" || origin.find("://") != std::string::npos,
                  "CORS origin \"{}\": expected https://NAME or *", printable(origin));
  }
  options_.bind_host = ascii_lower(options_.bind_host);
  const std::string& bound = options_.bind_host;
  is_bound_to_all_ = bound == "0.0.0.0" || bound == "::";
  // No browser opens a socket in the file system.
  if (is_unix_socket_path(bound)) options_.allowed_hosts.push_back("*");
  is_bound_to_loopback_ = is_loopback(bound);
  if (!is_bound_to_loopback_) options_.allowed_hosts.push_back(machine_name());
}

bool HttpAccess::is_own_host(const std::string& host) const {
  if (host.empty()) return true;  // HTTP/1.0 without Host; no browser sends that
  if (host == "localhost") return true;
  const std::string& bound = options_.bind_host;
  if (host == bound || host == "[" + bound + "]") return true;
  if (contains(options_.allowed_hosts, "*") || contains(options_.allowed_hosts, host)) return true;
  if (is_bound_to_all_ && (is_address(host) || is_loopback(host))) return true;
  return is_bound_to_loopback_ && is_loopback(host);
}

bool HttpAccess::is_allowed_origin(std::string_view origin) const {
  return contains(options_.cors_origins, "*") ||
         contains(options_.cors_origins, ascii_lower(origin));
}

bool HttpAccess::has_key(std::string_view authorization) const {
  constexpr std::string_view kScheme = "bearer ";
  if (ascii_lower(authorization.substr(0, kScheme.size())) != kScheme) return false;
  const Sha256Digest digest = sha256(authorization.substr(kScheme.size()));
  unsigned is_found = 0;
  for (const Sha256Digest& key : keys_) {
    unsigned difference = 0;
    for (size_t i = 0; i < key.size(); ++i) difference |= unsigned{key[i]} ^ unsigned { digest[i] };
    is_found |= (difference - 1) >> 31;  // 1 when there is no difference
  }
  return is_found != 0;
}

std::optional<HttpResponse> HttpAccess::refusal(const HttpHead& head, bool is_public) const {
  const HttpRequest& request = head.request;
  if (!is_own_host(head.host)) {
    return forbidden(fmt::format("Host \"{}\" is not this server's; --allowed-host adds a name",
                                 printable(head.host)));
  }
  const std::string_view origin = request.header("origin");
  if (!origin.empty() && changes_something(request.method) && !is_allowed_origin(origin)) {
    const std::string own = head.host + (head.port.empty() ? "" : ":" + head.port);
    const std::string lower = ascii_lower(origin);
    if (lower != "http://" + own && lower != "https://" + own) {
      return forbidden(fmt::format(
          "a page of \"{}\" may not use this server; --cors-origin allows it", printable(origin)));
    }
  }
  if (!keys_.empty() && !is_public && !has_key(request.header("authorization"))) {
    HttpResponse response =
        error_response(401, "no valid API key; send the header \"Authorization: Bearer KEY\"",
                       "authentication_error", "", "invalid_api_key");
    response.headers.emplace_back("www-authenticate", "Bearer");
    return response;
  }
  return std::nullopt;
}

HttpHeaders HttpAccess::cors_headers(const HttpRequest& request) const {
  if (options_.cors_origins.empty()) return {};
  const bool is_preflight = request.method == "OPTIONS";
  HttpHeaders headers = {
      {"vary", is_preflight ? "Origin, Access-Control-Request-Headers" : "Origin"}};
  const std::string_view origin = request.header("origin");
  if (origin.empty() || !is_allowed_origin(origin)) return headers;
  // No credentials header: keys are sent by the page itself, never by the browser on its own.
  headers.emplace_back("access-control-allow-origin",
                       contains(options_.cors_origins, "*") ? "*" : origin);
  headers.emplace_back("access-control-expose-headers",
                       "x-request-id, retry-after, x-caravan-dropped-tokens");
  if (is_preflight) {
    headers.emplace_back("access-control-allow-methods", "GET, POST, OPTIONS");
    // Client libraries add headers of their own (x-stainless-os, ...), which mean nothing here.
    std::string allowed = "authorization, content-type, x-request-id";
    const std::string_view asked = request.header("access-control-request-headers");
    for (size_t begin = 0; begin < asked.size();) {
      const size_t end = std::min(asked.find(',', begin), asked.size());
      std::string_view name = asked.substr(begin, end - begin);
      while (name.starts_with(' ')) name.remove_prefix(1);
      while (name.ends_with(' ')) name.remove_suffix(1);
      if (is_token(name)) allowed += ", " + ascii_lower(name);
      begin = end + 1;
    }
    headers.emplace_back("access-control-allow-headers", allowed);
    headers.emplace_back("access-control-max-age", "600");
  }
  return headers;
}

std::optional<HttpResponse> refuse_request(const HttpAccess& access, const HttpRouteMatch& match,
                                           const HttpHead& head, int64_t max_body_bytes) {
  const HttpRequest& request = head.request;
  const bool is_options = request.method == "OPTIONS";
  const bool is_public = is_options || (match.route != nullptr && match.route->is_public);
  if (std::optional<HttpResponse> refused = access.refusal(head, is_public)) {
    return refused;
  }
  if (match.allowed_methods.empty() && !(is_options && request.path == "*")) {
    return error_response(404, fmt::format("no such path: \"{}\"", printable(request.path)),
                          "not_found_error");
  }
  if (match.route == nullptr && !is_options) {
    HttpResponse response =
        error_response(405,
                       fmt::format("{} is not allowed here, only {}", printable(request.method),
                                   match.allowed_methods),
                       "invalid_request_error");
    response.headers.emplace_back("allow", match.allowed_methods);
    return response;
  }
  if (!changes_something(request.method) && head.has_body()) {
    return error_response(413, fmt::format("{} takes no body here", request.method),
                          "invalid_request_error");
  }
  if (request.method == "POST" && head.content_length < 0 && !head.is_chunked) {
    return error_response(411, "Content-Length: missing", "invalid_request_error");
  }
  if (head.content_length > max_body_bytes) {
    return error_response(413,
                          fmt::format("body of {} bytes, at most {} are allowed",
                                      head.content_length, max_body_bytes),
                          "invalid_request_error");
  }
  if (!changes_something(request.method)) return std::nullopt;
  return refuse_media_type(request);
}

}  // namespace caravan
