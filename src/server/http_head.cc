#include "server/http_head.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

#include "core/error.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace {

constexpr int kMaxEmptyLines = 2;  // before a request: RFC 9112, section 2.2

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/// RFC 9110, section 5.6.2.
bool is_token_char(char c) {
  return is_digit(c) || is_alpha(c) ||
         (c != 0 && std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos);
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

HttpProblem bad(std::string message) { return {400, std::move(message)}; }

bool has_parent_segment(std::string_view path) {
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (path.substr(begin, end - begin) == "..") return true;
    begin = end + 1;
  }
  return false;
}

bool is_clean_text(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = decode_utf8(text, i);
    if (c.state != Utf8Char::State::kValid || c.code_point < 0x20 || c.code_point == 0x7f ||
        c.code_point == '\\') {
      return false;
    }
    i += c.num_bytes;
  }
  return true;
}

/// "/path?query", "*", or "http://host/path?query", whose authority goes to `authority`.
std::optional<HttpProblem> parse_target(std::string_view target, HttpHead& head,
                                        std::string& authority) {
  const bool is_visible =
      std::all_of(target.begin(), target.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (target.empty() || !is_visible) return bad("request target: expected visible ASCII");
  if (target == "*" && head.request.method == "OPTIONS") {
    head.request.path = "*";
    return std::nullopt;
  }
  if (target.front() != '/') {
    constexpr std::string_view kScheme = "http://";
    if (ascii_lower(target.substr(0, kScheme.size())) != kScheme) {
      return bad(fmt::format("request target: got \"{}\", expected a path", printable(target)));
    }
    target.remove_prefix(kScheme.size());
    const size_t slash = std::min(target.find_first_of("/?"), target.size());
    authority = target.substr(0, slash);
    if (authority.empty()) return bad("request target: no host after http://");
    target.remove_prefix(slash);
  }
  if (target.find('#') != std::string_view::npos) return bad("request target: contains '#'");
  const size_t question = std::min(target.find('?'), target.size());
  std::optional<std::string> path = percent_decode(target.substr(0, question));
  if (!path) return bad("path: '%' without two hexadecimal digits");
  if (!is_clean_text(*path)) {
    return bad("path: expected UTF-8 without control characters and backslashes");
  }
  if (has_parent_segment(*path)) return bad("path: \"..\" is not allowed");
  head.request.path = path->empty() ? "/" : std::move(*path);
  head.request.query = target.substr(std::min(question + 1, target.size()));
  return std::nullopt;
}

std::optional<HttpProblem> parse_request_line(std::string_view line, HttpHead& head,
                                              std::string& authority) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) {
    return bad("request line: expected METHOD TARGET HTTP/1.1");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view version = line.substr(last + 1);
  if (!is_token(method) || method.size() > 32) return bad("request line: bad method");
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    return bad(fmt::format("version: got \"{}\", expected HTTP/1.1", printable(version)));
  }
  head.request.method = method;
  head.minor_version = version.back() - '0';
  return parse_target(line.substr(first + 1, last - first - 1), head, authority);
}

/// The value of a header that may occur once. False when it occurs again.
bool single(const HttpRequest& request, std::string_view name,
            std::optional<std::string_view>& value) {
  for (const auto& [key, text] : request.headers) {
    if (key != name) continue;
    if (value) return false;
    value = text;
  }
  return true;
}

/// Whether a comma-separated list has this lower-case element.
bool list_has(std::string_view list, std::string_view element) {
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    if (ascii_lower(trim(list.substr(begin, end - begin))) == element) return true;
    begin = end + 1;
  }
  return false;
}

std::optional<HttpProblem> read_framing(HttpHead& head) {
  std::optional<std::string_view> length;
  std::optional<std::string_view> coding;
  if (!single(head.request, "content-length", length)) return bad("Content-Length: given twice");
  if (!single(head.request, "transfer-encoding", coding)) {
    return bad("Transfer-Encoding: given twice");
  }
  if (length && coding) return bad("Content-Length beside Transfer-Encoding");
  if (coding) {
    if (ascii_lower(*coding) != "chunked" || head.minor_version == 0) {
      return bad("Transfer-Encoding: only chunked is known, and only in HTTP/1.1");
    }
    head.is_chunked = true;
  }
  if (length) {
    const char* end = length->data() + length->size();
    uint64_t value = 0;
    const auto [last, error] = std::from_chars(length->data(), end, value);
    if (error == std::errc::result_out_of_range && last == end) {
      value = INT64_MAX;
    } else if (length->empty() || error != std::errc() || last != end) {
      return bad(fmt::format("Content-Length: got \"{}\", expected digits", printable(*length)));
    }
    // RFC 9110 allows them; a program that reads them as octal sees another end of the body.
    if (length->size() > 1 && length->front() == '0') return bad("Content-Length: leading zero");
    head.content_length = static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX));
  }
  return std::nullopt;
}

std::optional<HttpProblem> read_host(HttpHead& head, std::string_view target_authority) {
  std::optional<std::string_view> host;
  if (!single(head.request, "host", host)) return bad("Host: given twice");
  if (!host && head.minor_version == 1) return bad("Host: missing");
  if (host && !split_authority(*host, head.host, head.port)) {
    return bad("Host: expected a name or an address, and a port");
  }
  if (!target_authority.empty()) {
    std::string name;
    std::string port;
    if (!split_authority(target_authority, name, port)) return bad("request target: bad host");
    if (name != head.host || port != head.port) return bad("request target and Host disagree");
  }
  return std::nullopt;
}

}  // namespace

bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char);
}

bool is_field_value(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte == '\t' || (byte >= 0x20 && byte != 0x7f);
  });
}

std::string ascii_lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

std::optional<std::string> percent_decode(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded.push_back(text[i]);
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = hex_value(text[i + 1]);
    const int low = hex_value(text[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    decoded.push_back(static_cast<char>(high * 16 + low));
    i += 2;
  }
  return decoded;
}

bool split_authority(std::string_view authority, std::string& host, std::string& port) {
  size_t end = 0;
  if (!authority.empty() && authority.front() == '[') {
    end = authority.find(']');
    if (end == std::string_view::npos || end == 1) return false;
    for (const char c : authority.substr(1, end - 1)) {
      if (hex_value(c) < 0 && c != ':' && c != '.') return false;
    }
    ++end;
  } else {
    end = std::min(authority.find(':'), authority.size());
    for (const char c : authority.substr(0, end)) {
      if (!is_alpha(c) && !is_digit(c) && c != '.' && c != '-' && c != '_') return false;
    }
  }
  if (end == 0 || end > 255) return false;
  host = ascii_lower(authority.substr(0, end));
  port.clear();
  if (end == authority.size()) return true;
  if (authority[end] != ':') return false;
  port = authority.substr(end + 1);
  return port.size() <= 5 && std::all_of(port.begin(), port.end(), is_digit);
}

std::optional<HttpProblem> HttpHeadScanner::end_line() {
  const size_t line_bytes = position_ - 2 - line_begin_;  // position_ is after CR LF
  if (line_bytes == 0 && num_lines_ == 0) {
    if (position_ > 2 * kMaxEmptyLines) return bad("empty lines before the request");
    begin_ = position_;
  } else if (line_bytes == 0) {
    end_ = position_;
  } else if (++num_lines_ > HttpHeadLimits::kHeaders + 1) {
    return HttpProblem{431, fmt::format("more than {} headers", HttpHeadLimits::kHeaders)};
  }
  line_begin_ = position_;
  return std::nullopt;
}

std::optional<HttpProblem> HttpHeadScanner::scan(std::string_view input) {
  while (end_ == 0 && position_ < input.size()) {
    const char c = input[position_++];
    const bool is_line_end = after_cr_ && c == '\n';
    if (c == '\0') return bad("NUL in the head");
    if (after_cr_ != (c == '\n')) return bad("lines must end with CR LF");
    after_cr_ = c == '\r';
    if (position_ - begin_ > HttpHeadLimits::kHeadBytes) {
      return HttpProblem{431, fmt::format("head above {} bytes", HttpHeadLimits::kHeadBytes)};
    }
    if (is_line_end) {
      if (std::optional<HttpProblem> problem = end_line()) return problem;
      continue;
    }
    if (num_lines_ == 0 && position_ == begin_ + 1 && !after_cr_ && !is_token_char(c)) {
      return bad("this is not HTTP/1.1");
    }
    // One more byte than the limit is the CR.
    if (position_ - line_begin_ > HttpHeadLimits::kLineBytes + 1) {
      return num_lines_ == 0 ? HttpProblem{414, fmt::format("request line above {} bytes",
                                                            HttpHeadLimits::kLineBytes)}
                             : HttpProblem{431, fmt::format("header line above {} bytes",
                                                            HttpHeadLimits::kLineBytes)};
    }
  }
  return std::nullopt;
}

std::optional<HttpProblem> parse_http_head(std::string_view block, HttpHead& head) {
  head = HttpHead();
  std::string authority;
  bool is_first = true;
  for (;;) {
    const size_t end = block.find("\r\n");
    if (end == std::string_view::npos) return bad("the head does not end with an empty line");
    const std::string_view line = block.substr(0, end);
    block.remove_prefix(end + 2);
    if (is_first) {
      if (auto problem = parse_request_line(line, head, authority)) return problem;
      is_first = false;
      continue;
    }
    if (line.empty()) break;
    if (line.front() == ' ' || line.front() == '\t') return bad("folded header lines are refused");
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) {
      return bad(fmt::format("header line \"{}\": expected Name: value", printable(line)));
    }
    const std::string_view value = trim(line.substr(colon + 1));
    std::string name = ascii_lower(line.substr(0, colon));
    if (!is_field_value(value)) return bad(fmt::format("{}: control character in its value", name));
    head.request.headers.emplace_back(std::move(name), value);
  }
  if (!block.empty()) return bad("bytes after the head");

  if (auto problem = read_framing(head)) return problem;
  if (auto problem = read_host(head, authority)) return problem;
  std::optional<std::string_view> authorization;
  std::optional<std::string_view> content_type;
  if (!single(head.request, "authorization", authorization)) {
    return bad("Authorization: given twice");
  }
  if (!single(head.request, "content-type", content_type)) return bad("Content-Type: given twice");

  head.keep_alive = head.minor_version == 1;
  for (const auto& [name, value] : head.request.headers) {
    if (name == "connection") {
      if (list_has(value, "close")) head.keep_alive = false;
      if (head.minor_version == 0 && list_has(value, "keep-alive")) head.keep_alive = true;
    } else if (name == "expect") {
      if (ascii_lower(value) != "100-continue") {
        return HttpProblem{417, "Expect: only 100-continue is known"};
      }
      head.expects_continue = head.minor_version == 1;
    }
  }
  return std::nullopt;
}

}  // namespace caravan
