#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Builders of small model files as byte strings: valid ones by default, and malformed ones by
// replacing a part. Nothing here uses the parsers under test.

namespace caravan::test {

/// Little-endian integers.
std::string le16(uint64_t value);
std::string le32(uint64_t value);
std::string le64(uint64_t value);

/// `text` with its only occurrence of `from` replaced. Throws std::logic_error unless there is
/// exactly one, so that a case cannot silently test the valid file.
std::string replaced(std::string text, std::string_view from, std::string_view to);
/// `bytes` with `value` written over offset `at`.
std::string patched(std::string bytes, size_t at, std::string_view value);

/// 8-byte length, `header`, `num_data_bytes` zeros.
std::string safetensors_file(std::string_view header, size_t num_data_bytes);

// Pieces of a pickle, each the bytes that push one object (protocol 2).
namespace pickle {
std::string text(std::string_view value);
std::string integer(int64_t value);
std::string global(std::string_view module, std::string_view name);
std::string tuple(const std::vector<std::string>& items);
std::string integers(const std::vector<int64_t>& values);
std::string ordered_dict();
/// type: "FloatStorage", ...
std::string storage(std::string_view type, std::string_view key, int64_t num_elements);
std::string tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& sizes,
                   const std::vector<int64_t>& strides);
/// OrderedDict of (name, value) pairs.
std::string state_dict(const std::vector<std::pair<std::string, std::string>>& entries);
/// PROTO 2, the object, STOP.
std::string whole(const std::string& object);
}  // namespace pickle

struct ZipMember {
  std::string name;
  std::string data;
  bool is_zip64 = false;  // sizes and offset in the extra field
};

/// An archive of stored members and where its records begin.
struct ZipFile {
  std::string bytes;
  std::vector<size_t> local;    // local headers, by member
  std::vector<size_t> central;  // central headers, by member
  size_t end = 0;               // end record
  size_t locator64 = 0;         // zip64 locator; 0 without one
  size_t end64 = 0;
};
ZipFile zip_file(const std::vector<ZipMember>& members, bool has_zip64_end = false);

/// The base of the torch cases: {"a": float32 [2], "b": float16 [2,3]}.
std::string torch_pickle();
/// Members of a torch zip file around `pickle`: data.pkl, byteorder, data/0 of 8 bytes, data/1
/// of 12.
std::vector<ZipMember> torch_members(const std::string& pickle);
std::string torch_zip(const std::string& pickle);
/// Parts of a legacy torch file; bytes() joins them.
struct LegacyFile {
  std::string magic, protocol, system_info, state, keys, storages;
  std::string bytes() const { return magic + protocol + system_info + state + keys + storages; }
};
LegacyFile torch_legacy();

}  // namespace caravan::test
