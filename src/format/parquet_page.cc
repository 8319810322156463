#include "format/parquet_page.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace caravan {

std::string parquet_encoding_name(int32_t encoding) {
  constexpr const char* kNames[] = {
      "PLAIN",          "GROUP_VAR_INT",       "PLAIN_DICTIONARY",        "RLE",
      "BIT_PACKED",     "DELTA_BINARY_PACKED", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY",
      "RLE_DICTIONARY", "BYTE_STREAM_SPLIT"};
  if (encoding >= 0 && encoding < static_cast<int32_t>(std::size(kNames))) return kNames[encoding];
  return fmt::format("encoding {}", encoding);
}

ParquetPageHeader read_parquet_page_header(ThriftReader& reader, const std::string& where) {
  ParquetPageHeader page;
  const auto data_page = [&](int16_t id, ThriftType type) {
    if (id == 1) return page.num_values = reader.read_i32(type), true;
    if (id == 2) return page.encoding = reader.read_i32(type), true;
    if (id == 3) return page.level_encoding = reader.read_i32(type), true;
    return false;
  };
  const auto dictionary_page = [&](int16_t id, ThriftType type) {
    if (id == 1) return page.num_values = reader.read_i32(type), true;
    if (id == 2) return page.encoding = reader.read_i32(type), true;
    return false;
  };
  const auto data_page_v2 = [&](int16_t id, ThriftType type) {
    if (id == 1) return page.num_values = reader.read_i32(type), true;
    if (id == 4) return page.encoding = reader.read_i32(type), true;
    if (id == 5) return page.num_definition_bytes = reader.read_i32(type), true;
    if (id == 6) return page.num_repetition_bytes = reader.read_i32(type), true;
    if (id == 7) return page.is_compressed = reader.read_bool(type), true;
    return false;
  };
  reader.read_struct([&](int16_t id, ThriftType type) {
    switch (id) {
      case 1:
        page.type = reader.read_i32(type);
        return true;
      case 2:
        page.num_decoded_bytes = reader.read_i32(type);
        return true;
      case 3:
        page.num_bytes = reader.read_i32(type);
        return true;
      case 4:
        page.crc = std::bit_cast<uint32_t>(reader.read_i32(type));
        return true;
      case 5:
        reader.read_struct_field(type, data_page);
        return true;
      case 7:
        reader.read_struct_field(type, dictionary_page);
        return true;
      case 8:
        reader.read_struct_field(type, data_page_v2);
        return true;
      default:
        return false;
    }
  });
  CARAVAN_CHECK_CODE(page.num_bytes >= 0 && page.num_decoded_bytes >= 0, kCorrupt,
                     "{}: a page of {} bytes, {} decompressed", where, page.num_bytes,
                     page.num_decoded_bytes);
  CARAVAN_CHECK_CODE(page.num_definition_bytes >= 0 && page.num_repetition_bytes >= 0, kCorrupt,
                     "{}: a page with {} and {} bytes of levels", where, page.num_repetition_bytes,
                     page.num_definition_bytes);
  const bool has_values = page.type != static_cast<int32_t>(ParquetPageType::kIndex);
  CARAVAN_CHECK_CODE(!has_values || page.num_values >= 0, kCorrupt, "{}: a page of {} values",
                     where, page.num_values);
  return page;
}

ParquetHybridDecoder::ParquetHybridDecoder(std::span<const std::byte> bytes, int bit_width,
                                           std::string where)
    : bytes_(bytes), bit_width_(bit_width), where_(std::move(where)) {
  CARAVAN_CHECK_CODE(bit_width >= 0 && bit_width <= 32, kCorrupt,
                     "{}: numbers of {} bits, expected 0 to 32", where_, bit_width);
}

void ParquetHybridDecoder::begin_run() {
  uint64_t header = 0;
  for (int shift = 0;; shift += 7) {
    CARAVAN_CHECK_CODE(position_ < bytes_.size() && shift < 35, kCorrupt,
                       "{}: the run lengths end before the values do", where_);
    const auto byte = static_cast<uint8_t>(bytes_[position_++]);
    header |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) break;
  }
  const size_t num_left = bytes_.size() - position_;
  is_packed_ = (header & 1) != 0;
  if (is_packed_) {
    // Groups of 8 values. A writer may leave out what pads the last group.
    const uint64_t num_bytes =
        std::min<uint64_t>((header >> 1) * static_cast<uint64_t>(bit_width_), num_left);
    left_ = bit_width_ == 0
                ? (header >> 1) * 8
                : std::min((header >> 1) * 8, num_bytes * 8 / static_cast<uint64_t>(bit_width_));
    bit_position_ = static_cast<uint64_t>(position_) * 8;
    position_ += static_cast<size_t>(num_bytes);
    return;
  }
  left_ = header >> 1;
  const size_t num_bytes = (static_cast<size_t>(bit_width_) + 7) / 8;
  CARAVAN_CHECK_CODE(num_bytes <= num_left, kCorrupt, "{}: a run without its value", where_);
  value_ = 0;
  for (size_t i = 0; i < num_bytes; ++i) {
    value_ |= static_cast<uint32_t>(bytes_[position_++]) << (8 * i);
  }
}

uint32_t ParquetHybridDecoder::next() {
  while (left_ == 0) begin_run();
  --left_;
  if (!is_packed_) return value_;
  uint64_t window = 0;  // up to 5 bytes hold a value
  const auto first = static_cast<size_t>(bit_position_ / 8);
  const auto shift = static_cast<int>(bit_position_ % 8);
  const size_t num_bytes = (static_cast<size_t>(shift + bit_width_) + 7) / 8;
  for (size_t i = 0; i < num_bytes; ++i) {
    window |= static_cast<uint64_t>(bytes_[first + i]) << (8 * i);
  }
  bit_position_ += static_cast<uint64_t>(bit_width_);
  return static_cast<uint32_t>((window >> shift) & ((uint64_t{1} << bit_width_) - 1));
}

std::string_view ParquetPlainStrings::next() {
  const size_t num_left = bytes_.size() - position_;
  uint32_t size = 0;
  CARAVAN_CHECK_CODE(num_left >= sizeof(size), kCorrupt, "{}: the page ends before its values do",
                     where_);
  static_assert(std::endian::native == std::endian::little);
  std::memcpy(&size, bytes_.data() + position_, sizeof(size));
  CARAVAN_CHECK_CODE(size <= num_left - sizeof(size), kCorrupt,
                     "{}: a string of {} bytes where {} are left of the page", where_, size,
                     num_left - sizeof(size));
  const auto* data = reinterpret_cast<const char*>(bytes_.data() + position_ + sizeof(size));
  position_ += sizeof(size) + size;
  return {data, size};
}

}  // namespace caravan
