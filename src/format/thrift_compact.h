#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace caravan {

/// Types of Apache Thrift's compact protocol, as they stand in a field's header. A boolean field
/// has its value in the type.
enum class ThriftType : uint8_t {
  kStop = 0,
  kTrue = 1,
  kFalse = 2,
  kByte = 3,
  kI16 = 4,
  kI32 = 5,
  kI64 = 6,
  kDouble = 7,
  kBinary = 8,
  kList = 9,
  kSet = 10,
  kMap = 11,
  kStruct = 12,
};

/// Reads values of Thrift's compact protocol from untrusted bytes, in order. Nothing is read past
/// the end, nothing is allocated, recursion is bounded. Errors: kCorrupt "<where>: offset N: ...",
/// with N counted from the start of `bytes` plus `base_offset`.
/// Source: github.com/apache/thrift, doc/specs/thrift-compact-protocol.md.
class ThriftReader {
 public:
  ThriftReader(std::span<const std::byte> bytes, std::string where, uint64_t base_offset = 0);

  /// Bytes read so far.
  size_t position() const { return position_; }

  /// Called with each field of a struct. Reads the value and returns true, or returns false without
  /// reading to have it skipped.
  using OnField = std::function<bool(int16_t id, ThriftType type)>;
  void read_struct(const OnField& on_field);

  /// Called before each element of a list, which it must read.
  using OnElement = std::function<void(ThriftType type)>;
  void read_list(ThriftType type, const OnElement& on_element);

  // Values of a field of type `type`; another type is an error.
  bool read_bool(ThriftType type) const;
  int32_t read_i32(ThriftType type);
  int64_t read_i64(ThriftType type);
  /// Points into the bytes.
  std::string_view read_binary(ThriftType type);
  /// read_struct for a field that must be one.
  void read_struct_field(ThriftType type, const OnField& on_field);

 private:
  void skip(ThriftType type, int depth);
  void skip_list(int depth);
  void skip_map(int depth);
  uint8_t read_byte();
  uint64_t read_varint();
  /// One list header: element type and count, which the bytes that are left can hold.
  std::pair<ThriftType, uint64_t> read_list_header();
  void expect(ThriftType got, ThriftType wanted) const;
  [[noreturn]] void fail(const std::string& reason) const;

  std::span<const std::byte> bytes_;
  std::string where_;
  uint64_t base_offset_;
  size_t position_ = 0;
  int depth_ = 0;
};

}  // namespace caravan
