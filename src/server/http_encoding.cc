#include "server/http_encoding.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <ctime>
#include <random>

namespace caravan {

namespace {

bool has_header(const HttpHeaders& headers, std::string_view name) {
  return std::any_of(headers.begin(), headers.end(),
                     [&](const auto& header) { return header.first == name; });
}

void append_header(std::string& head, std::string_view name, std::string_view value) {
  head.append(name).append(": ");
  for (const char c : value) head.push_back(c == '\r' || c == '\n' || c == '\0' ? ' ' : c);
  head.append("\r\n");
}

/// "Sun, 06 Nov 1994 08:49:37 GMT", whatever the locale.
std::string http_date(std::time_t now) {
  constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  std::tm t{};
  gmtime_r(&now, &t);
  return fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[t.tm_wday], t.tm_mday,
                     kMonths[t.tm_mon], t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec);
}

}  // namespace

std::string_view reason_phrase(int status) {
  switch (status) {
    case 100:
      return "Continue";
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 301:
      return "Moved Permanently";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Status";
  }
}

std::string encode_response_head(const HttpResponse& response, HttpBodyForm form, bool keep_alive,
                                 bool is_http10) {
  std::string head =
      fmt::format("HTTP/1.1 {} {}\r\n", response.status, reason_phrase(response.status));
  const bool has_body = response.status != 204 && response.status != 304;
  if (has_body) append_header(head, "content-type", response.content_type);
  if (has_body && form == HttpBodyForm::kLength) {
    append_header(head, "content-length", std::to_string(response.body.size()));
  }
  if (form == HttpBodyForm::kChunked) append_header(head, "transfer-encoding", "chunked");
  if (!keep_alive) append_header(head, "connection", "close");
  if (keep_alive && is_http10) append_header(head, "connection", "keep-alive");
  for (const auto& [name, value] : response.headers) append_header(head, name, value);
  const auto add = [&](std::string_view name, std::string_view value) {
    if (!has_header(response.headers, name)) append_header(head, name, value);
  };
  add("date", http_date(std::time(nullptr)));
  add("x-content-type-options", "nosniff");
  if (!has_header(response.headers, "access-control-allow-origin")) {
    add("cross-origin-resource-policy", "same-origin");
  }
  add("cache-control", "no-store");
  if (form != HttpBodyForm::kLength) add("x-accel-buffering", "no");
  head.append("\r\n");
  return head;
}

std::string encode_chunk(std::string_view data) {
  std::string chunk = fmt::format("{:x}\r\n", data.size());
  chunk.append(data).append("\r\n");
  return chunk;
}

std::string choose_request_id(std::string_view sent) {
  const bool is_sane =
      !sent.empty() && sent.size() <= 128 && std::all_of(sent.begin(), sent.end(), [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
               c == '.' || c == '_' || c == ':' || c == '-';
      });
  if (is_sane) return std::string(sent);
  static const uint64_t start = [] {
    std::random_device device;
    return uint64_t{device()} << 32 | device();
  }();
  static std::atomic<uint64_t> count{0};
  return fmt::format("req-{:016x}-{:x}", start, ++count);
}

}  // namespace caravan
