#include "format/thrift_compact.h"

#include <limits>

#include "core/error.h"

namespace caravan {

namespace {

// Parquet's own structures are 6 deep; what is deeper is skipped fields of a newer version.
constexpr int kMaxDepth = 24;

int64_t zigzag(uint64_t value) {
  return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
}

}  // namespace

ThriftReader::ThriftReader(std::span<const std::byte> bytes, std::string where,
                           uint64_t base_offset)
    : bytes_(bytes), where_(std::move(where)), base_offset_(base_offset) {}

void ThriftReader::fail(const std::string& reason) const {
  CARAVAN_FAIL(kCorrupt, "{}: offset {}: {}", where_, base_offset_ + position_, reason);
}

void ThriftReader::expect(ThriftType got, ThriftType wanted) const {
  if (got != wanted) {
    fail(fmt::format("a Thrift field of type {}, expected {}", static_cast<int>(got),
                     static_cast<int>(wanted)));
  }
}

uint8_t ThriftReader::read_byte() {
  if (position_ >= bytes_.size()) fail("the metadata ends in the middle of a value");
  return static_cast<uint8_t>(bytes_[position_++]);
}

uint64_t ThriftReader::read_varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const uint8_t byte = read_byte();
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return value;
  }
  fail("a number of more than 64 bits");
}

bool ThriftReader::read_bool(ThriftType type) const {
  if (type != ThriftType::kTrue) expect(type, ThriftType::kFalse);
  return type == ThriftType::kTrue;
}

int32_t ThriftReader::read_i32(ThriftType type) {
  expect(type, ThriftType::kI32);
  const int64_t value = zigzag(read_varint());
  if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
    fail(fmt::format("{} does not fit in 32 bits", value));
  }
  return static_cast<int32_t>(value);
}

int64_t ThriftReader::read_i64(ThriftType type) {
  expect(type, ThriftType::kI64);
  return zigzag(read_varint());
}

std::string_view ThriftReader::read_binary(ThriftType type) {
  expect(type, ThriftType::kBinary);
  const uint64_t size = read_varint();
  if (size > bytes_.size() - position_) {
    fail(fmt::format("a string of {} bytes where {} are left", size, bytes_.size() - position_));
  }
  const auto* data = reinterpret_cast<const char*>(bytes_.data() + position_);
  position_ += static_cast<size_t>(size);
  return {data, static_cast<size_t>(size)};
}

void ThriftReader::read_struct(const OnField& on_field) {
  if (++depth_ > kMaxDepth) fail("structures nested too deeply");
  int64_t id = 0;
  while (true) {
    const uint8_t header = read_byte();
    const auto type = static_cast<ThriftType>(header & 0x0f);
    if (type == ThriftType::kStop) break;
    const int delta = header >> 4;
    id = delta != 0 ? id + delta : zigzag(read_varint());
    if (id < std::numeric_limits<int16_t>::min() || id > std::numeric_limits<int16_t>::max()) {
      fail(fmt::format("field id {}, expected 16 bits", id));
    }
    if (!on_field(static_cast<int16_t>(id), type)) skip(type, depth_);
  }
  --depth_;
}

void ThriftReader::read_struct_field(ThriftType type, const OnField& on_field) {
  expect(type, ThriftType::kStruct);
  read_struct(on_field);
}

std::pair<ThriftType, uint64_t> ThriftReader::read_list_header() {
  const uint8_t header = read_byte();
  const auto type = static_cast<ThriftType>(header & 0x0f);
  uint64_t count = header >> 4;
  if (count == 15) count = read_varint();
  // An element takes a byte at least.
  if (count > bytes_.size() - position_) {
    fail(fmt::format("a list of {} elements where {} bytes are left", count,
                     bytes_.size() - position_));
  }
  return {type, count};
}

void ThriftReader::read_list(ThriftType type, const OnElement& on_element) {
  expect(type, ThriftType::kList);
  const auto [element, count] = read_list_header();
  for (uint64_t i = 0; i < count; ++i) on_element(element);
}

void ThriftReader::skip_list(int depth) {
  const auto [element, count] = read_list_header();
  const bool is_bool = element == ThriftType::kTrue || element == ThriftType::kFalse;
  for (uint64_t i = 0; i < count; ++i) {
    if (is_bool) {
      read_byte();  // in a list a boolean is a byte of its own
    } else {
      skip(element, depth + 1);
    }
  }
}

void ThriftReader::skip_map(int depth) {
  const uint64_t count = read_varint();
  if (count == 0) return;
  const uint8_t types = read_byte();
  if (count > bytes_.size() - position_) {
    fail(fmt::format("a map of {} entries where {} bytes are left", count,
                     bytes_.size() - position_));
  }
  for (uint64_t i = 0; i < count; ++i) {
    for (const int type : {types >> 4, types & 0x0f}) {
      if (type == 1 || type == 2) {
        read_byte();
      } else {
        skip(static_cast<ThriftType>(type), depth + 1);
      }
    }
  }
}

void ThriftReader::skip(ThriftType type, int depth) {
  if (depth > kMaxDepth) fail("structures nested too deeply");
  switch (type) {
    case ThriftType::kTrue:
    case ThriftType::kFalse:
      return;
    case ThriftType::kByte:
      read_byte();
      return;
    case ThriftType::kI16:
    case ThriftType::kI32:
    case ThriftType::kI64:
      read_varint();
      return;
    case ThriftType::kDouble:
      for (int i = 0; i < 8; ++i) read_byte();
      return;
    case ThriftType::kBinary:
      read_binary(type);
      return;
    case ThriftType::kList:
    case ThriftType::kSet:
      skip_list(depth);
      return;
    case ThriftType::kMap:
      skip_map(depth);
      return;
    case ThriftType::kStruct:
      read_struct([](int16_t, ThriftType) { return false; });
      return;
    case ThriftType::kStop:
      break;
  }
  fail(fmt::format("unknown Thrift type {}", static_cast<int>(type)));
}

}  // namespace caravan
