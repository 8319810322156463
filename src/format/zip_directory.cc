#include "format/zip_directory.h"

#include <cstring>
#include <string_view>

#include "core/error.h"

namespace caravan {

namespace {

constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint32_t kCentralSignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocator64Signature = 0x07064b50;
constexpr uint64_t kLocalBytes = 30;
constexpr uint64_t kCentralBytes = 46;
constexpr uint64_t kEndBytes = 22;
constexpr uint64_t kEnd64Bytes = 56;
constexpr uint64_t kLocator64Bytes = 20;
constexpr uint64_t kMaxComment = 0xffff;
constexpr uint16_t kZip64Extra = 1;
constexpr uint32_t kIn64 = 0xffffffff;  // "the value is in the zip64 record"
constexpr uint16_t kCountIn64 = 0xffff;

class ZipReader {
 public:
  ZipReader(std::span<const std::byte> bytes, const std::string& where)
      : bytes_(bytes), where_(where) {}

  std::map<std::string, ZipEntry> entries();

 private:
  struct Directory {
    uint64_t count = 0;
    uint64_t num_bytes = 0;
    uint64_t offset = 0;
    uint64_t end = 0;  // where the end records begin
  };

  template <typename T>
  T load(uint64_t offset) const {
    T value;
    std::memcpy(&value, bytes_.data() + offset, sizeof(T));
    return value;
  }
  std::string_view text(uint64_t offset, uint64_t length) const {
    return {reinterpret_cast<const char*>(bytes_.data()) + offset, length};
  }
  uint64_t find_end_record() const;
  Directory directory() const;
  void read_zip64_extra(uint64_t begin, uint64_t length, const std::string& name, uint64_t& size,
                        uint64_t& stored_size, uint64_t& local_offset) const;
  ZipEntry locate(const std::string& name, uint64_t local_offset, uint64_t size,
                  uint64_t limit) const;

  std::span<const std::byte> bytes_;
  const std::string& where_;
};

uint64_t ZipReader::find_end_record() const {
  const uint64_t size = bytes_.size();
  for (uint64_t comment = 0; comment <= kMaxComment && comment + kEndBytes <= size; ++comment) {
    const uint64_t at = size - kEndBytes - comment;
    if (load<uint32_t>(at) == kEndSignature && load<uint16_t>(at + 20) == comment) return at;
  }
  CARAVAN_FAIL(kCorrupt, "{}: no end-of-central-directory record: the zip file is cut short",
               where_);
}

ZipReader::Directory ZipReader::directory() const {
  const uint64_t end = find_end_record();
  Directory directory{load<uint16_t>(end + 10), load<uint32_t>(end + 12), load<uint32_t>(end + 16),
                      end};
  uint64_t disk = load<uint16_t>(end + 4);
  const bool has_zip64 =
      end >= kLocator64Bytes && load<uint32_t>(end - kLocator64Bytes) == kLocator64Signature;
  if (has_zip64) {
    const uint64_t at = load<uint64_t>(end - kLocator64Bytes + 8);
    const uint64_t limit = end - kLocator64Bytes;
    CARAVAN_CHECK_CODE(
        at <= limit && limit - at >= kEnd64Bytes && load<uint32_t>(at) == kEnd64Signature, kCorrupt,
        "{}: no zip64 end record at offset {}, where its locator points", where_, at);
    disk = load<uint32_t>(at + 16);
    directory = {load<uint64_t>(at + 32), load<uint64_t>(at + 40), load<uint64_t>(at + 48), at};
  } else {
    CARAVAN_CHECK_CODE(
        directory.count != kCountIn64 && directory.num_bytes != kIn64 && directory.offset != kIn64,
        kCorrupt, "{}: the end record refers to a zip64 record that is not there", where_);
  }
  CARAVAN_CHECK_CODE(disk == 0, kUnsupported, "{}: part {} of an archive on several disks", where_,
                     disk);
  CARAVAN_CHECK_CODE(
      directory.offset <= directory.end && directory.num_bytes == directory.end - directory.offset,
      kCorrupt,
      "{}: central directory: got offset {} and {} bytes, expected them to end at "
      "offset {}",
      where_, directory.offset, directory.num_bytes, directory.end);
  CARAVAN_CHECK_CODE(directory.count <= directory.num_bytes / kCentralBytes, kCorrupt,
                     "{}: central directory: {} entries do not fit in {} bytes", where_,
                     directory.count, directory.num_bytes);
  return directory;
}

// The extra field holds 8-byte values for those of the three that are 0xffffffff, in this order.
void ZipReader::read_zip64_extra(uint64_t begin, uint64_t length, const std::string& name,
                                 uint64_t& size, uint64_t& stored_size,
                                 uint64_t& local_offset) const {
  const uint64_t end = begin + length;
  for (uint64_t at = begin; end - at >= 4;) {
    const uint16_t id = load<uint16_t>(at);
    uint64_t rest = load<uint16_t>(at + 2);
    at += 4;
    CARAVAN_CHECK_CODE(rest <= end - at, kCorrupt, "{}: {}: an extra field exceeds its entry",
                       where_, printable(name));
    if (id != kZip64Extra) {
      at += rest;
      continue;
    }
    for (uint64_t* value : {&size, &stored_size, &local_offset}) {
      if (*value != kIn64) continue;
      CARAVAN_CHECK_CODE(rest >= 8, kCorrupt, "{}: {}: the zip64 field is too short", where_,
                         printable(name));
      *value = load<uint64_t>(at);
      at += 8;
      rest -= 8;
    }
    return;
  }
  CARAVAN_CHECK_CODE(size != kIn64 && stored_size != kIn64 && local_offset != kIn64, kCorrupt,
                     "{}: {}: the zip64 field is missing", where_, printable(name));
}

ZipEntry ZipReader::locate(const std::string& name, uint64_t local_offset, uint64_t size,
                           uint64_t limit) const {
  CARAVAN_CHECK_CODE(local_offset <= limit && limit - local_offset >= kLocalBytes &&
                         load<uint32_t>(local_offset) == kLocalSignature,
                     kCorrupt, "{}: {}: no local header at offset {}", where_, printable(name),
                     local_offset);
  const uint64_t name_length = load<uint16_t>(local_offset + 26);
  const uint64_t extra_length = load<uint16_t>(local_offset + 28);
  const uint64_t begin = local_offset + kLocalBytes + name_length + extra_length;
  CARAVAN_CHECK_CODE(begin <= limit && size <= limit - begin, kCorrupt,
                     "{}: {}: {} bytes at offset {} exceed the archive's data, which end at {}",
                     where_, printable(name), size, begin, limit);
  CARAVAN_CHECK_CODE(text(local_offset + kLocalBytes, name_length) == name, kCorrupt,
                     "{}: {}: its local header has another name", where_, printable(name));
  return {begin, size};
}

std::map<std::string, ZipEntry> ZipReader::entries() {
  const Directory directory = this->directory();
  std::map<std::string, ZipEntry> entries;
  uint64_t at = directory.offset;
  for (uint64_t i = 0; i < directory.count; ++i) {
    CARAVAN_CHECK_CODE(
        directory.end - at >= kCentralBytes && load<uint32_t>(at) == kCentralSignature, kCorrupt,
        "{}: central directory: entry {} at offset {} has no signature", where_, i, at);
    const uint16_t flags = load<uint16_t>(at + 8);
    const uint16_t method = load<uint16_t>(at + 10);
    uint64_t stored_size = load<uint32_t>(at + 20);
    uint64_t size = load<uint32_t>(at + 24);
    const uint64_t name_length = load<uint16_t>(at + 28);
    const uint64_t extra_length = load<uint16_t>(at + 30);
    const uint64_t comment_length = load<uint16_t>(at + 32);
    uint64_t local_offset = load<uint32_t>(at + 42);
    const uint64_t rest = directory.end - at - kCentralBytes;
    CARAVAN_CHECK_CODE(name_length + extra_length + comment_length <= rest, kCorrupt,
                       "{}: central directory: entry {} exceeds the directory", where_, i);
    const std::string name(text(at + kCentralBytes, name_length));
    CARAVAN_CHECK_CODE((flags & 1) == 0, kUnsupported, "{}: {}: the entry is encrypted", where_,
                       printable(name));
    CARAVAN_CHECK_CODE(method == 0, kUnsupported,
                       "{}: {}: compression method {}, expected 0: torch stores its entries",
                       where_, printable(name), method);
    read_zip64_extra(at + kCentralBytes + name_length, extra_length, name, size, stored_size,
                     local_offset);
    CARAVAN_CHECK_CODE(size == stored_size, kCorrupt,
                       "{}: {}: stored size {}, expected {}, its size", where_, printable(name),
                       stored_size, size);
    const ZipEntry entry = locate(name, local_offset, size, directory.offset);
    CARAVAN_CHECK_CODE(entries.emplace(name, entry).second, kCorrupt,
                       "{}: {}: the entry appears twice", where_, printable(name));
    at += kCentralBytes + name_length + extra_length + comment_length;
  }
  CARAVAN_CHECK_CODE(at == directory.end, kCorrupt,
                     "{}: central directory: {} bytes are left after {} entries", where_,
                     directory.end - at, directory.count);
  return entries;
}

}  // namespace

std::map<std::string, ZipEntry> parse_zip_directory(std::span<const std::byte> bytes,
                                                    const std::string& where) {
  return ZipReader(bytes, where).entries();
}

}  // namespace caravan
