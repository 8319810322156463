#include "format/decompress.h"

#include <snappy.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/error.h"

namespace caravan {

namespace {

void copy_stored(std::span<const std::byte> in, std::span<std::byte> out,
                 const std::string& where) {
  CARAVAN_CHECK_CODE(in.size() == out.size(), kCorrupt,
                     "{}: {} bytes stored as they are, {} announced", where, in.size(), out.size());
  if (!in.empty()) std::memcpy(out.data(), in.data(), in.size());
}

void inflate_snappy(std::span<const std::byte> in, std::span<std::byte> out,
                    const std::string& where) {
  const auto* data = reinterpret_cast<const char*>(in.data());
  size_t num_bytes = 0;
  CARAVAN_CHECK_CODE(snappy::GetUncompressedLength(data, in.size(), &num_bytes), kCorrupt,
                     "{}: not a Snappy block", where);
  CARAVAN_CHECK_CODE(num_bytes == out.size(), kCorrupt,
                     "{}: the Snappy block holds {} bytes, {} announced", where, num_bytes,
                     out.size());
  CARAVAN_CHECK_CODE(snappy::RawUncompress(data, in.size(), reinterpret_cast<char*>(out.data())),
                     kCorrupt, "{}: the Snappy block is broken", where);
}

/// One z_stream, ended whatever happens.
class Inflater {
 public:
  Inflater() {
    constexpr int kGzipOrZlib = MAX_WBITS + 32;
    CARAVAN_CHECK_CODE(inflateInit2(&stream_, kGzipOrZlib) == Z_OK, kOutOfMemory,
                       "zlib: out of memory");
  }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  ~Inflater() { inflateEnd(&stream_); }
  z_stream& stream() { return stream_; }

 private:
  z_stream stream_ = {};
};

void inflate_gzip(std::span<const std::byte> in, std::span<std::byte> out,
                  const std::string& where) {
  CARAVAN_CHECK_CODE(in.size() <= std::numeric_limits<uInt>::max() &&
                         out.size() <= std::numeric_limits<uInt>::max(),
                     kUnsupported, "{}: a gzip stream of more than 4 GiB", where);
  Inflater inflater;
  z_stream& stream = inflater.stream();
  stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(in.data()));
  stream.avail_in = static_cast<uInt>(in.size());
  std::byte none{};  // zlib refuses a null pointer even for no bytes
  stream.next_out = reinterpret_cast<Bytef*>(out.empty() ? &none : out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  while (true) {
    const int status = inflate(&stream, Z_FINISH);
    CARAVAN_CHECK_CODE(status == Z_STREAM_END, kCorrupt,
                       "{}: the gzip stream is broken or not of the {} bytes announced", where,
                       out.size());
    if (stream.avail_in == 0) break;
    inflateReset(&stream);
  }
  CARAVAN_CHECK_CODE(stream.avail_out == 0, kCorrupt,
                     "{}: the gzip stream holds {} bytes, {} announced", where,
                     out.size() - stream.avail_out, out.size());
}

void inflate_zstd(std::span<const std::byte> in, std::span<std::byte> out,
                  const std::string& where) {
  const size_t num_bytes = ZSTD_decompress(out.data(), out.size(), in.data(), in.size());
  CARAVAN_CHECK_CODE(ZSTD_isError(num_bytes) == 0, kCorrupt, "{}: Zstandard: {}", where,
                     ZSTD_getErrorName(num_bytes));
  CARAVAN_CHECK_CODE(num_bytes == out.size(), kCorrupt,
                     "{}: the Zstandard frame holds {} bytes, {} announced", where, num_bytes,
                     out.size());
}

}  // namespace

void decompress(Compression compression, std::span<const std::byte> in, std::span<std::byte> out,
                const std::string& where) {
  switch (compression) {
    case Compression::kNone:
      return copy_stored(in, out, where);
    case Compression::kSnappy:
      return inflate_snappy(in, out, where);
    case Compression::kGzip:
      return inflate_gzip(in, out, where);
    case Compression::kZstd:
      return inflate_zstd(in, out, where);
  }
}

uint64_t max_decompressed_bytes(Compression compression, uint64_t num_bytes) {
  // Snappy: a copy of 64 bytes takes 3. Deflate: 258 bytes take 2 bits. A block of Zstandard of 4
  // bytes stands for up to 128 KiB.
  const uint64_t ratio = compression == Compression::kNone     ? 1
                         : compression == Compression::kSnappy ? 22
                         : compression == Compression::kGzip   ? 1032
                                                               : 32768;
  return num_bytes > std::numeric_limits<uint64_t>::max() / ratio
             ? std::numeric_limits<uint64_t>::max()
             : num_bytes * ratio;
}

}  // namespace caravan
