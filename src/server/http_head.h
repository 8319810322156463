#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "server/http.h"

namespace caravan {

/// Most of everything in the head of a request.
struct HttpHeadLimits {
  static constexpr size_t kLineBytes = 8192;  // request line, or a header line
  static constexpr size_t kHeadBytes = 32768;
  static constexpr int kHeaders = 100;
};

/// Why a request is refused before a handler sees it.
struct HttpProblem {
  int status = 400;
  std::string message;
};

/// Finds the end of a head in bytes that come piecemeal and refuses early what no later byte could
/// make right: a line or head too long, bare CR or LF, NUL, a first byte that begins no method.
class HttpHeadScanner {
 public:
  /// `input` is all bytes since the last request, those of earlier calls included.
  std::optional<HttpProblem> scan(std::string_view input);
  /// Whether the empty line has been seen: the head is input[begin(), end()).
  bool is_complete() const { return end_ != 0; }
  size_t begin() const { return begin_; }  // after empty lines before the request, at most 2
  size_t end() const { return end_; }

 private:
  std::optional<HttpProblem> end_line();

  size_t position_ = 0;
  size_t begin_ = 0;
  size_t end_ = 0;
  size_t line_begin_ = 0;
  int num_lines_ = 0;
  bool after_cr_ = false;
};

/// The head of a request, checked.
struct HttpHead {
  HttpRequest request;  // without its body
  std::string host;     // lower case, without the port; empty in HTTP/1.0 when absent
  std::string port;     // of the Host header, or ""
  int minor_version = 1;
  int64_t content_length = -1;  // -1: none was given
  bool is_chunked = false;
  bool keep_alive = true;
  bool expects_continue = false;

  bool has_body() const { return is_chunked || content_length > 0; }
};

/// Reads a whole head, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n". Stricter than RFC 9112 wherever
/// two programs could read a request differently: one Host, one Content-Length of digits alone and
/// without leading zeros, no Content-Length beside Transfer-Encoding, no coding but chunked, no
/// folded lines, no space before the colon, no second Authorization or Content-Type. The path is
/// percent-decoded UTF-8 without control characters, backslashes and ".." segments.
std::optional<HttpProblem> parse_http_head(std::string_view block, HttpHead& head);

/// Nothing when a '%' is not followed by two hexadecimal digits.
std::optional<std::string> percent_decode(std::string_view text);

/// Splits "name:80" or "[::1]:80" in lower-case name (brackets kept) and port; false when it is
/// neither a name nor an address.
bool split_authority(std::string_view authority, std::string& host, std::string& port);

/// RFC 9110, section 5.6.2: a method, or the name of a header.
bool is_token(std::string_view text);
/// Visible characters, spaces, tabs, and bytes above 127.
bool is_field_value(std::string_view text);

/// Lower case of ASCII letters.
std::string ascii_lower(std::string_view text);

}  // namespace caravan
