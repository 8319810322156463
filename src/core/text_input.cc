#include "core/text_input.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>

#include "core/error.h"
#include "core/json.h"

namespace caravan {

namespace {

constexpr size_t kBlockBytes = size_t{64} << 10;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr std::string_view kGzipMagic = "\x1f\x8b";

/// Fills `block` unless the file ends before.
void read_block(int fd, const std::string& path, std::string& block) {
  block.resize(kBlockBytes);
  size_t size = 0;
  while (size < block.size()) {
    const ssize_t n = ::read(fd, block.data() + size, block.size() - size);
    if (n < 0 && errno == EINTR) continue;
    CARAVAN_CHECK_OS(n >= 0, "{}: read failed", path);
    if (n == 0) break;
    size += static_cast<size_t>(n);
    // A terminal or a pipe gives what it has: the first line must not wait for the last. What may
    // be the beginning of a mark waits for the rest of it.
    const std::string_view text(block.data(), size);
    if (!kByteOrderMark.starts_with(text) && !kGzipMagic.starts_with(text)) break;
    if (size >= kByteOrderMark.size()) break;
  }
  block.resize(size);
}

}  // namespace

void check_not_lfs_pointer(std::string_view text, const std::string& path) {
  CARAVAN_CHECK_CODE(!text.starts_with("version https://git-lfs.github.com/"), kCorrupt,
                     "{}: a Git LFS pointer, not the file; run git lfs pull", path);
}

/// The stream, and what was read of the file but not inflated yet.
class TextInput::Gzip {
 public:
  Gzip() {
    constexpr int kGzip = MAX_WBITS + 16;
    CARAVAN_CHECK_CODE(inflateInit2(&stream, kGzip) == Z_OK, kOutOfMemory, "zlib: out of memory");
  }
  ~Gzip() { inflateEnd(&stream); }
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;

  z_stream stream = {};
  std::string input;
  bool is_between_members = false;
};

TextInput::TextInput(const std::string& path) : path_(path) {
  fd_ = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  CARAVAN_CHECK_OS(fd_ >= 0, "{}: cannot open", path);
}

TextInput::~TextInput() {
  if (fd_ > STDERR_FILENO) ::close(fd_);
}

bool TextInput::fill() {
  const bool is_first = num_read_ == 0;
  begin_ = 0;
  if (gzip_) {
    fill_inflated();
    return !buffer_.empty();
  }
  fill_plain();
  if (!is_first || buffer_.empty()) return !buffer_.empty();
  if (buffer_.starts_with(kGzipMagic)) {
    gzip_ = std::make_unique<Gzip>();
    gzip_->input = std::move(buffer_);
    gzip_->stream.next_in = reinterpret_cast<Bytef*>(gzip_->input.data());
    gzip_->stream.avail_in = static_cast<uInt>(gzip_->input.size());
    buffer_.clear();
    fill_inflated();
  }
  check_not_lfs_pointer(buffer_, path_);
  begin_ = buffer_.size() - skip_byte_order_mark(buffer_).size();
  return begin_ < buffer_.size() || fill();
}

void TextInput::fill_plain() {
  read_block(fd_, path_, buffer_);
  num_read_ += buffer_.size();
}

void TextInput::fill_inflated() {
  z_stream& stream = gzip_->stream;
  buffer_.resize(kBlockBytes);
  stream.next_out = reinterpret_cast<Bytef*>(buffer_.data());
  stream.avail_out = static_cast<uInt>(buffer_.size());
  while (stream.avail_out == buffer_.size()) {
    if (stream.avail_in == 0) {
      read_block(fd_, path_, gzip_->input);
      num_read_ += gzip_->input.size();
      stream.next_in = reinterpret_cast<Bytef*>(gzip_->input.data());
      stream.avail_in = static_cast<uInt>(gzip_->input.size());
    }
    if (stream.avail_in == 0) {
      CARAVAN_CHECK_CODE(gzip_->is_between_members, kCorrupt,
                         "{}: the gzip file is cut off after "
                         "{} bytes",
                         path_, num_read_);
      break;
    }
    if (gzip_->is_between_members) inflateReset(&stream);
    const int status = inflate(&stream, Z_NO_FLUSH);
    gzip_->is_between_members = status == Z_STREAM_END;
    CARAVAN_CHECK_CODE(status == Z_OK || status == Z_STREAM_END, kCorrupt,
                       "{}: broken gzip: {} in the {} bytes up to here", path_,
                       stream.msg == nullptr ? "an error" : stream.msg, num_read_);
  }
  buffer_.resize(buffer_.size() - stream.avail_out);
  num_inflated_ += buffer_.size();
  CARAVAN_CHECK_CODE(num_inflated_ <= kFreeBytes + kMaxRatio * num_read_, kCorrupt,
                     "{}: {} bytes of gzip inflate to more than {}, which no text does", path_,
                     num_read_, kFreeBytes + kMaxRatio * num_read_);
}

bool TextInput::read_line(std::string& line, size_t max_bytes) {
  line.clear();
  if (peek() < 0) return false;
  while (peek() >= 0 && line.size() <= max_bytes) {
    const std::string_view rest = std::string_view(buffer_).substr(begin_);
    const size_t end = std::min(rest.find('\n'), rest.size());
    const size_t taken = std::min(end, max_bytes + 1 - line.size());
    line.append(rest, 0, taken);
    begin_ += taken;
    if (taken == end && end < rest.size()) {
      ++begin_;
      break;
    }
  }
  return true;
}

}  // namespace caravan
