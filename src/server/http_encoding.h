#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "server/http.h"

namespace caravan {

/// How the body of a response is delimited.
enum class HttpBodyForm {
  kLength,    // Content-Length
  kChunked,   // Transfer-Encoding: chunked
  kToTheEnd,  // until the connection closes: streams to HTTP/1.0 clients
};

/// Status line and headers up to the empty line. Headers that `response` does not set itself are
/// added: Date, X-Content-Type-Options, Cross-Origin-Resource-Policy, Cache-Control, and for
/// streams X-Accel-Buffering: no. Line breaks in header values become spaces. Clients of HTTP/1.0
/// must be told when a connection stays open.
std::string encode_response_head(const HttpResponse& response, HttpBodyForm form, bool keep_alive,
                                 bool is_http10);

/// One chunk of a chunked body; `data` is not empty.
std::string encode_chunk(std::string_view data);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

/// "Not Found"
std::string_view reason_phrase(int status);

/// A request's X-Request-Id when it is 1 to 128 of A-Z a-z 0-9 . _ : -, else a new one.
std::string choose_request_id(std::string_view sent);

}  // namespace caravan
