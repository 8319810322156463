#include "format/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "format/checksum.h"
#include "format/json_fields.h"

namespace caravan {

namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr std::string_view kFillerPrefix = "__pad.";

struct DTypeName {
  const char* name;
  DType dtype;
};
constexpr std::array<DTypeName, 10> kDTypes = {{{"F64", DType::kF64},
                                                {"F32", DType::kF32},
                                                {"F16", DType::kF16},
                                                {"BF16", DType::kBF16},
                                                {"I64", DType::kI64},
                                                {"I32", DType::kI32},
                                                {"I16", DType::kI16},
                                                {"I8", DType::kI8},
                                                {"U8", DType::kU8},
                                                {"BOOL", DType::kBool}}};
constexpr std::array kUnsupportedDTypes = {"U16",     "U32",     "U64",     "C64",     "F4",
                                           "F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2"};

const char* safetensors_dtype_name(DType dtype) {
  for (const DTypeName& entry : kDTypes) {
    if (entry.dtype == dtype) return entry.name;
  }
  return "?";
}

DType safetensors_dtype(const std::string& name, const std::string& where,
                        const std::string& tensor) {
  for (const DTypeName& entry : kDTypes) {
    if (name == entry.name) return entry.dtype;
  }
  const bool is_known = std::find(kUnsupportedDTypes.begin(), kUnsupportedDTypes.end(), name) !=
                        kUnsupportedDTypes.end();
  CARAVAN_CHECK_CODE(!is_known, kUnsupported,
                     "{}: {}.dtype: got \"{}\", expected F64, F32, F16, BF16, I64, I32, I16, I8, "
                     "U8 or BOOL",
                     where, tensor, name);
  CARAVAN_FAIL(kCorrupt, "{}: {}.dtype: got \"{}\", expected a safetensors dtype", where, tensor,
               printable(name));
}

// An array of integers from 0 to 2^63 - 1.
std::vector<int64_t> integers(const JsonFields& fields, const boost::json::object& object,
                              const char* field) {
  constexpr const char* kExpected = "an array of integers from 0 to 9223372036854775807";
  const boost::json::value* value = object.if_contains(field);
  if (value == nullptr || !value->is_array()) fields.fail(field, kExpected);
  std::vector<int64_t> result;
  for (const boost::json::value& item : value->get_array()) {
    const int64_t* n = item.if_int64();
    if (n == nullptr || *n < 0) fields.fail(field, kExpected);
    result.push_back(*n);
  }
  return result;
}

SafetensorsEntry parse_entry(std::string_view name, const boost::json::value& value,
                             const std::string& where, uint64_t data_start) {
  const std::string shown = printable(name);
  CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: {}: got {}, expected an object", where,
                     shown, json_text(value));
  const boost::json::object& object = value.get_object();
  const JsonFields fields(object, where, shown + ".");
  for (const auto& [key, unused] : object) {
    CARAVAN_CHECK_CODE(key == "dtype" || key == "shape" || key == "data_offsets", kCorrupt,
                       "{}: {}: unknown key \"{}\", expected dtype, shape and data_offsets", where,
                       shown, printable(key));
  }
  SafetensorsEntry entry;
  entry.name = std::string(name);
  entry.dtype = safetensors_dtype(fields.string("dtype"), where, shown);

  const std::vector<int64_t> sizes = integers(fields, object, "shape");
  CARAVAN_CHECK_CODE(sizes.size() <= Shape::kMaxRank, kUnsupported,
                     "{}: {}.shape: got {} dimensions, at most {} are supported", where, shown,
                     sizes.size(), int{Shape::kMaxRank});
  int64_t num_bytes = static_cast<int64_t>(dtype_size(entry.dtype));
  for (const int64_t size : sizes) {
    CARAVAN_CHECK_CODE(!__builtin_mul_overflow(num_bytes, size, &num_bytes), kCorrupt,
                       "{}: {}.shape: its product does not fit in 63 bits", where, shown);
  }
  entry.shape = Shape::from(sizes.data(), sizes.size());

  const std::vector<int64_t> range = integers(fields, object, "data_offsets");
  CARAVAN_CHECK_CODE(range.size() == 2 && range[0] <= range[1], kCorrupt,
                     "{}: {}.data_offsets: got {}, expected [begin, end] with begin <= end", where,
                     shown, to_json_text(object.at("data_offsets")).substr(0, 64));
  CARAVAN_CHECK_CODE(range[1] - range[0] == num_bytes, kCorrupt,
                     "{}: {}.data_offsets: got {} bytes, expected {} for {} {}", where, shown,
                     range[1] - range[0], num_bytes, safetensors_dtype_name(entry.dtype),
                     entry.shape.to_string());
  entry.offset = static_cast<uint64_t>(range[0]) + data_start;
  entry.num_bytes = static_cast<uint64_t>(num_bytes);
  return entry;
}

uint64_t load_u64(const std::byte* bytes) {
  uint64_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

std::string header_json(const std::vector<SafetensorsEntry>& entries,
                        const std::map<std::string, std::string>& metadata) {
  boost::json::object object;
  if (!metadata.empty()) {
    boost::json::object pairs;
    for (const auto& [key, value] : metadata) pairs[key] = value;
    object["__metadata__"] = std::move(pairs);
  }
  for (const SafetensorsEntry& entry : entries) {
    boost::json::array shape;
    for (int i = 0; i < entry.shape.rank(); ++i) shape.push_back(entry.shape[i]);
    object[entry.name] = {{"dtype", safetensors_dtype_name(entry.dtype)},
                          {"shape", std::move(shape)},
                          {"data_offsets", {entry.offset, entry.offset + entry.num_bytes}}};
  }
  return to_json_text(object);
}

}  // namespace

bool is_safetensors_filler(const SafetensorsEntry& entry) {
  return entry.dtype == DType::kU8 && entry.name.starts_with(kFillerPrefix);
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, const std::string& where) {
  CARAVAN_CHECK_CODE(bytes.size() >= kLengthBytes, kCorrupt,
                     "{}: {} bytes, expected a header length of 8 bytes", where, bytes.size());
  const uint64_t length = load_u64(bytes.data());
  CARAVAN_CHECK_CODE(length <= kMaxHeaderBytes, kCorrupt,
                     "{}: header length: got {}, expected at most {}", where, length,
                     kMaxHeaderBytes);
  CARAVAN_CHECK_CODE(length <= bytes.size() - kLengthBytes, kCorrupt,
                     "{}: header length: got {}, expected at most {}, the rest of the file", where,
                     length, bytes.size() - kLengthBytes);
  const std::string_view json(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  CARAVAN_CHECK_CODE(json.starts_with('{'), kCorrupt, "{}: header: expected it to start with '{{'",
                     where);
  const boost::json::value root = parse_json(json, where + ": header");

  SafetensorsHeader header;
  header.data_start = kLengthBytes + length;
  for (const auto& [key, value] : root.get_object()) {
    if (key != "__metadata__") {
      header.entries.push_back(
          parse_entry({key.data(), key.size()}, value, where, header.data_start));
      continue;
    }
    if (value.is_null()) continue;  // safetensors takes it for none
    CARAVAN_CHECK_CODE(value.is_object(), kCorrupt,
                       "{}: __metadata__: got {}, expected an object of strings", where,
                       json_text(value));
    const JsonFields fields(value.get_object(), where, "__metadata__.");
    for (const auto& pair : value.get_object()) {
      header.metadata[std::string(pair.key())] = fields.string(pair.key());
    }
  }
  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.offset, a.num_bytes, a.name) < std::tie(b.offset, b.num_bytes, b.name);
  });
  uint64_t end = header.data_start;
  for (const SafetensorsEntry& entry : header.entries) {
    CARAVAN_CHECK_CODE(entry.offset == end, kCorrupt,
                       "{}: {}.data_offsets: begins at {}, expected {}: tensors must follow each "
                       "other without gap or overlap",
                       where, printable(entry.name), entry.offset - header.data_start,
                       end - header.data_start);
    end = entry.offset + entry.num_bytes;  // below 2^64: both come from numbers below 2^63
  }
  CARAVAN_CHECK_CODE(end == bytes.size(), kCorrupt,
                     "{}: tensors end at offset {}, expected {}, the size of the file", where, end,
                     bytes.size());
  return header;
}

SafetensorsWriter::SafetensorsWriter(const FileAt& file, const std::vector<Spec>& tensors,
                                     const std::map<std::string, std::string>& metadata,
                                     uint64_t alignment)
    : file_(file), alignment_(alignment) {
  const std::string& path = file.path;
  CARAVAN_CHECK_CODE(alignment >= kLengthBytes && (alignment & (alignment - 1)) == 0, kInternal,
                     "{}: alignment {} is not a power of two from 8 on", path, alignment);
  std::vector<SafetensorsEntry> entries;  // offsets are relative to the data
  std::set<std::string> names;
  uint64_t offset = 0;
  for (const Spec& spec : tensors) {
    CARAVAN_CHECK_CODE(names.insert(spec.name).second && spec.name != "__metadata__" &&
                           !spec.name.starts_with(kFillerPrefix),
                       kInternal, "{}: tensor name {} is used twice or reserved", path, spec.name);
    const uint64_t rest = alignment > kLengthBytes ? offset % alignment : 0;
    if (rest != 0) {
      const uint64_t filler = alignment - rest;
      entries.push_back({fmt::format("{}{}", kFillerPrefix, entries.size()), DType::kU8,
                         Shape{static_cast<int64_t>(filler)}, offset, filler});
      offset += filler;
    }
    const int64_t num_bytes = checked_mul(spec.shape.num_elements(),
                                          static_cast<int64_t>(dtype_size(spec.dtype)), spec.name);
    entries.push_back(
        {spec.name, spec.dtype, spec.shape, offset, static_cast<uint64_t>(num_bytes)});
    offset += static_cast<uint64_t>(num_bytes);
    ranges_.push_back({entries.back().offset, offset});
  }
  std::string header = header_json(entries, metadata);
  const uint64_t data_start = static_cast<uint64_t>(round_up(
      static_cast<int64_t>(kLengthBytes + header.size()), static_cast<int64_t>(alignment)));
  header.resize(data_start - kLengthBytes, ' ');
  CARAVAN_CHECK_CODE(header.size() <= kMaxHeaderBytes, kInternal,
                     "{}: a header of {} bytes exceeds the format's limit", path, header.size());
  const uint64_t length = header.size();
  header.insert(0, reinterpret_cast<const char*>(&length), sizeof(length));
  header_checksum_ = xxh3(std::as_bytes(std::span(header.data(), header.size())));
  file_.write(header);
  for (Range& range : ranges_) {
    range.offset += data_start;
    range.end += data_start;
  }
  next_tensor();
}

// Goes on to the next tensor that still needs bytes and writes the filler before it.
void SafetensorsWriter::next_tensor() {
  for (; current_ < ranges_.size(); ++current_) {
    if (file_.offset() < ranges_[current_].offset) file_.pad_to(alignment_);
    if (file_.offset() < ranges_[current_].end) return;
  }
}

void SafetensorsWriter::write(const void* data, size_t num_bytes) {
  if (num_bytes == 0) return;
  CARAVAN_CHECK_CODE(
      current_ < ranges_.size() && num_bytes <= ranges_[current_].end - file_.offset(), kInternal,
      "tensor {} of {}: {} bytes more than its header says", current_, ranges_.size(), num_bytes);
  file_.write(data, num_bytes);
  next_tensor();
}

void SafetensorsWriter::finish() {
  CARAVAN_CHECK_CODE(current_ == ranges_.size(), kInternal,
                     "tensor {} of {}: bytes are missing at offset {}", current_, ranges_.size(),
                     file_.offset());
  file_.commit();
}

}  // namespace caravan
