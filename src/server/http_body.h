#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http_head.h"

namespace caravan {

/// Reads the body of one request, of known length or chunked, from bytes that come piecemeal, and
/// holds no more than what has come. Chunks are read as strictly as heads: a size is hexadecimal
/// digits alone, lines end with CR LF. Trailers are checked and dropped; one that would have
/// changed how the request is read (Host, Content-Length, Authorization, ...) is refused, and so
/// are folded lines.
class HttpBodyReader {
 public:
  /// `head`: as parse_http_head() accepted it.
  HttpBodyReader(const HttpHead& head, int64_t max_body_bytes, int64_t max_chunks);

  /// Returns how many bytes of `input` are done with: all, until the body is complete.
  size_t put(std::string_view input);
  bool is_done() const { return !problem_ && state_ == State::kDone; }
  /// Why the body is refused: 413 above a limit, 400 when it is malformed. Final.
  const std::optional<HttpProblem>& problem() const { return problem_; }
  int64_t num_bytes_held() const { return num_held_; }
  /// Once, when it is done.
  std::string take_body();

 private:
  enum class State { kData, kChunkSize, kChunkData, kChunkEnd, kTrailer, kDone };

  void put_data(std::string_view& rest);
  void put_chunk_end(std::string_view& rest);
  /// Whether line_ is a whole line now, without its CR LF.
  bool put_line(std::string_view& rest);
  void read_chunk_size();
  void read_trailer();
  void append(std::string_view data);
  void refuse(int status, std::string message);

  const int64_t max_body_bytes_;
  const int64_t max_chunks_;
  State state_;
  int64_t num_left_ = 0;  // bytes of the body, or of the chunk
  int64_t num_bytes_ = 0;
  int64_t num_chunks_ = 0;
  int64_t num_held_ = 0;
  size_t num_trailer_bytes_ = 0;
  std::string line_;
  std::vector<std::string> blocks_;  // the body; growing one string would copy, and leave holes
  std::optional<HttpProblem> problem_;
};

}  // namespace caravan
