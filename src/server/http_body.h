#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/http_head.h"

namespace caravan {

/// Reads the body of one request, of known length or chunked, from bytes that come piecemeal. The
/// framing is Boost.Beast's; trailers are read and dropped.
class HttpBodyReader {
 public:
  /// `head` is the whole head, as parse_http_head() accepted it.
  HttpBodyReader(std::string_view head, int64_t max_body_bytes, int64_t max_chunks);
  ~HttpBodyReader();

  /// Returns how many bytes of `input` are done with; the rest is wanted again with more behind it.
  size_t put(std::string_view input);
  bool is_done() const;
  /// Why the body is refused: 413 above a limit, 400 when it is malformed. Final.
  const std::optional<HttpProblem>& problem() const;
  /// Once, when it is done.
  std::string take_body();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace caravan
