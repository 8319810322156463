#include "server/http_body.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "core/error.h"

namespace caravan {

namespace {

constexpr size_t kBlockBytes = size_t{64} << 10;
constexpr size_t kFirstBlockBytes = 2048;
constexpr size_t kLineBytes = 16384;  // a chunk's size and extensions; all of the trailer
constexpr size_t kMaxSizeDigits = 16;

/// What a proxy and a server could take differently when it comes behind the body: RFC 9110, 6.5.1.
bool is_forbidden_in_trailer(std::string_view name) {
  constexpr std::array<std::string_view, 18> kNames = {
      "authorization",  "cache-control",
      "connection",     "content-encoding",
      "content-length", "content-range",
      "content-type",   "cookie",
      "expect",         "host",
      "max-forwards",   "proxy-authorization",
      "range",          "te",
      "trailer",        "upgrade",
      "origin",         "x-request-id",
  };
  return name == "transfer-encoding" ||
         std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

std::string_view skip_blanks(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin);
}

/// Takes a token, or where it is allowed a quoted string, from the front; false when there is none.
bool take_word(std::string_view& text, bool may_be_quoted) {
  size_t size = 0;
  if (may_be_quoted && text.starts_with('"')) {
    for (size = 1; size < text.size() && text[size] != '"'; ++size) {
      if (text[size] == '\\') ++size;
    }
    if (size >= text.size()) return false;
    ++size;
  } else {
    while (size < text.size() && is_token(text.substr(size, 1))) ++size;
  }
  text.remove_prefix(size);
  return size > 0;
}

/// What may follow a chunk's size: RFC 9112, section 7.1.1.
bool is_chunk_extension(std::string_view text) {
  while (!text.empty()) {
    text = skip_blanks(text);
    if (!text.starts_with(';')) return false;
    text = skip_blanks(text.substr(1));
    if (!take_word(text, false)) return false;
    const std::string_view rest = skip_blanks(text);
    if (!rest.starts_with('=')) continue;
    text = skip_blanks(rest.substr(1));
    if (!take_word(text, true)) return false;
  }
  return true;
}

}  // namespace

HttpBodyReader::HttpBodyReader(const HttpHead& head, int64_t max_body_bytes, int64_t max_chunks)
    : max_body_bytes_(max_body_bytes),
      max_chunks_(max_chunks),
      state_(head.is_chunked ? State::kChunkSize : State::kData) {
  if (head.is_chunked) return;
  num_left_ = std::max<int64_t>(head.content_length, 0);
  if (num_left_ > max_body_bytes) refuse(413, fmt::format("body above {} bytes", max_body_bytes));
  if (num_left_ == 0) state_ = State::kDone;
}

void HttpBodyReader::refuse(int status, std::string message) {
  if (!problem_) problem_ = HttpProblem{status, std::move(message)};
}

size_t HttpBodyReader::put(std::string_view input) {
  std::string_view rest = input;
  while (!problem_ && state_ != State::kDone && !rest.empty()) {
    if (state_ == State::kData || state_ == State::kChunkData) {
      put_data(rest);
    } else if (state_ == State::kChunkEnd) {
      put_chunk_end(rest);
    } else if (put_line(rest)) {
      state_ == State::kChunkSize ? read_chunk_size() : read_trailer();
      line_.clear();
    }
  }
  return input.size() - rest.size();
}

void HttpBodyReader::put_data(std::string_view& rest) {
  const auto count = std::min<size_t>(rest.size(), static_cast<size_t>(num_left_));
  append(rest.substr(0, count));
  rest.remove_prefix(count);
  num_left_ -= static_cast<int64_t>(count);
  if (num_left_ > 0) return;
  state_ = state_ == State::kData ? State::kDone : State::kChunkEnd;
}

void HttpBodyReader::put_chunk_end(std::string_view& rest) {
  line_ += rest.front();
  rest.remove_prefix(1);
  if (line_ == "\r") return;
  if (line_ != "\r\n") return refuse(400, "body: a chunk is longer than its size");
  line_.clear();
  state_ = State::kChunkSize;
}

bool HttpBodyReader::put_line(std::string_view& rest) {
  const size_t end = rest.find('\n');
  const size_t count = end == std::string_view::npos ? rest.size() : end + 1;
  if (line_.size() + num_trailer_bytes_ + count > kLineBytes) {
    refuse(400, "body: chunk extension or trailer too long");
    return false;
  }
  line_ += rest.substr(0, count);
  rest.remove_prefix(count);
  if (end == std::string_view::npos) return false;
  if (!line_.ends_with("\r\n")) {
    refuse(400, "body: lines must end with CR LF");
    return false;
  }
  line_.resize(line_.size() - 2);
  if (is_field_value(line_)) return true;
  refuse(400, "body: control character in a chunk's size or the trailer");
  return false;
}

void HttpBodyReader::read_chunk_size() {
  const size_t num_digits = std::min(line_.find_first_of("; \t"), line_.size());
  uint64_t size = 0;
  const char* end = line_.data() + num_digits;
  const auto [last, error] = std::from_chars(line_.data(), end, size, 16);
  const bool is_size = num_digits > 0 && num_digits <= kMaxSizeDigits && last == end &&
                       error == std::errc() &&
                       is_chunk_extension(std::string_view(line_).substr(num_digits));
  if (!is_size) {
    return refuse(400, fmt::format("body: got chunk size \"{}\", expected hexadecimal digits",
                                   printable(line_, 64)));
  }
  if (size > static_cast<uint64_t>(std::max<int64_t>(max_body_bytes_ - num_bytes_, 0))) {
    return refuse(413, fmt::format("body above {} bytes", max_body_bytes_));
  }
  if (size == 0) {
    state_ = State::kTrailer;
    return;
  }
  if (++num_chunks_ > max_chunks_) {
    return refuse(413, fmt::format("body of more than {} chunks", max_chunks_));
  }
  num_left_ = static_cast<int64_t>(size);
  state_ = State::kChunkData;
}

void HttpBodyReader::read_trailer() {
  num_trailer_bytes_ += line_.size() + 2;
  if (line_.empty()) {
    state_ = State::kDone;
    return;
  }
  const std::string_view line = line_;
  if (line.front() == ' ' || line.front() == '\t') {
    return refuse(400, "body: folded trailer lines are refused");
  }
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) {
    return refuse(
        400, fmt::format("body: trailer line \"{}\": expected Name: value", printable(line, 64)));
  }
  const std::string name = ascii_lower(line.substr(0, colon));
  if (is_forbidden_in_trailer(name)) {
    refuse(400, fmt::format("body: \"{}\" is not allowed in a trailer", name));
  }
}

void HttpBodyReader::append(std::string_view data) {
  num_bytes_ += static_cast<int64_t>(data.size());
  while (!data.empty()) {
    if (blocks_.empty() || blocks_.back().size() == blocks_.back().capacity()) {
      // Small bodies are many: the first block is only as large as it has to be.
      const size_t wanted = std::max(data.size(), kFirstBlockBytes);
      blocks_.emplace_back().reserve(blocks_.size() > 1 ? kBlockBytes
                                                        : std::min(wanted, kBlockBytes));
      num_held_ += static_cast<int64_t>(blocks_.back().capacity());
    }
    std::string& block = blocks_.back();
    const size_t count = std::min(data.size(), block.capacity() - block.size());
    block += data.substr(0, count);
    data.remove_prefix(count);
  }
}

std::string HttpBodyReader::take_body() {
  if (blocks_.size() == 1) return std::move(blocks_.front());
  std::string body;
  body.reserve(static_cast<size_t>(num_bytes_));
  for (std::string& block : blocks_) {
    body += block;
    block = std::string();
  }
  return body;
}

}  // namespace caravan
