#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "format/thrift_compact.h"

namespace caravan {

enum class ParquetPageType : int32_t { kData = 0, kIndex = 1, kDictionary = 2, kDataV2 = 3 };

/// parquet.thrift's Encoding, the ones this project reads.
inline constexpr int32_t kParquetPlain = 0;
inline constexpr int32_t kParquetPlainDictionary = 2;
inline constexpr int32_t kParquetRle = 3;
inline constexpr int32_t kParquetRleDictionary = 8;
/// "DELTA_BYTE_ARRAY", or "encoding 42" for one the format does not know.
std::string parquet_encoding_name(int32_t encoding);

/// A page's header; sizes and counts are as claimed, only checked not to be negative.
struct ParquetPageHeader {
  int32_t type = -1;
  int64_t num_bytes = -1;          // in the file, levels of v2 included
  int64_t num_decoded_bytes = -1;  // the same decompressed
  std::optional<uint32_t> crc;
  int64_t num_values = -1;  // nulls included
  int32_t encoding = -1;
  int32_t level_encoding = -1;       // v1
  int64_t num_definition_bytes = 0;  // v2
  int64_t num_repetition_bytes = 0;  // v2
  bool is_compressed = true;         // v2
};
/// Errors: kCorrupt, for a negative or missing size too.
ParquetPageHeader read_parquet_page_header(ThriftReader& reader, const std::string& where);

/// Parquet's hybrid of run lengths and bit packing: small numbers in order, decoded as they are
/// asked for. Errors: kCorrupt.
class ParquetHybridDecoder {
 public:
  /// bit_width: 0..32.
  ParquetHybridDecoder(std::span<const std::byte> bytes, int bit_width, std::string where);
  uint32_t next();

 private:
  void begin_run();

  std::span<const std::byte> bytes_;
  int bit_width_;
  std::string where_;
  size_t position_ = 0;
  uint64_t left_ = 0;  // of the run
  bool is_packed_ = false;
  uint32_t value_ = 0;         // of a run of equal values
  uint64_t bit_position_ = 0;  // of a packed run: of the next value, from the start of bytes_
};

/// Strings as PLAIN stores them: a length of 4 bytes, little-endian, then the bytes.
class ParquetPlainStrings {
 public:
  ParquetPlainStrings(std::span<const std::byte> bytes, std::string where)
      : bytes_(bytes), where_(std::move(where)) {}
  /// Points into the bytes. Errors: kCorrupt.
  std::string_view next();

 private:
  std::span<const std::byte> bytes_;
  std::string where_;
  size_t position_ = 0;
};

}  // namespace caravan
