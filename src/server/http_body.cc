#include "server/http_body.h"

#include <fmt/core.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <functional>
#include <utility>

namespace caravan {

namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

/// What is left of a chunked body that is not complete is never shorter: "0\r\n\r\n". Boost 1.81
/// asserts that it is given so much.
constexpr size_t kMinChunkedBytes = 5;
constexpr size_t kChunkHeadBytes = 16384;  // a chunk's size and extensions; the trailer

}  // namespace

struct HttpBodyReader::Impl {
  Impl(int64_t body_bytes, int64_t chunks) : max_body_bytes(body_bytes), max_chunks(chunks) {}

  const int64_t max_body_bytes;
  const int64_t max_chunks;
  int64_t num_chunks = 0;
  // The parser keeps a reference to it.
  std::function<void(uint64_t, boost::beast::string_view, error_code&)> on_chunk;
  http::request_parser<http::string_body> parser;
  std::optional<HttpProblem> problem;

  void note(error_code error) {
    if (num_chunks > max_chunks) {
      problem = HttpProblem{413, fmt::format("body of more than {} chunks", max_chunks)};
    } else if (error == http::error::body_limit) {
      problem = HttpProblem{413, fmt::format("body above {} bytes", max_body_bytes)};
    } else if (error && error != http::error::need_more) {
      problem = HttpProblem{400, fmt::format("body: {}", error.message())};
    }
  }
};

HttpBodyReader::HttpBodyReader(std::string_view head, int64_t max_body_bytes, int64_t max_chunks)
    : impl_(std::make_unique<Impl>(max_body_bytes, max_chunks)) {
  impl_->on_chunk = [impl = impl_.get()](uint64_t size, boost::beast::string_view extension,
                                         error_code& error) {
    if (size > 0 && ++impl->num_chunks > impl->max_chunks) error = http::error::bad_chunk;
    if (extension.size() > kChunkHeadBytes) error = http::error::bad_chunk_extension;
  };
  impl_->parser.on_chunk_header(impl_->on_chunk);
  impl_->parser.eager(true);
  impl_->parser.header_limit(static_cast<uint32_t>(2 * HttpHeadLimits::kHeadBytes));
  impl_->parser.body_limit(static_cast<uint64_t>(max_body_bytes));
  error_code error;
  const size_t num_bytes = impl_->parser.put(asio::buffer(head.data(), head.size()), error);
  impl_->note(error);
  if (!impl_->problem && num_bytes != head.size()) impl_->problem = HttpProblem{400, "bad head"};
}

HttpBodyReader::~HttpBodyReader() = default;

size_t HttpBodyReader::put(std::string_view input) {
  size_t num_taken = 0;
  const size_t wanted = impl_->parser.chunked() ? kMinChunkedBytes : 1;
  while (!impl_->problem && !is_done() && input.size() - num_taken >= wanted) {
    error_code error;
    const size_t num_bytes =
        impl_->parser.put(asio::buffer(input.data() + num_taken, input.size() - num_taken), error);
    impl_->note(error);
    num_taken += num_bytes;
    if (num_bytes == 0) break;
  }
  if (!impl_->problem && !is_done() && input.size() - num_taken > kChunkHeadBytes) {
    impl_->problem = HttpProblem{400, "body: chunk extension or trailer too long"};
  }
  return num_taken;
}

bool HttpBodyReader::is_done() const { return !impl_->problem && impl_->parser.is_done(); }

const std::optional<HttpProblem>& HttpBodyReader::problem() const { return impl_->problem; }

std::string HttpBodyReader::take_body() { return std::move(impl_->parser.get().body()); }

}  // namespace caravan
