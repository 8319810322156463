#include "tests/malformed/builders.h"

#include <stdexcept>

namespace caravan::test {

namespace {

std::string little_endian(uint64_t value, size_t num_bytes) {
  std::string bytes;
  for (size_t i = 0; i < num_bytes; ++i) bytes.push_back(static_cast<char>(value >> (8 * i)));
  return bytes;
}

constexpr uint64_t kIn64 = 0xffffffff;

}  // namespace

std::string le16(uint64_t value) { return little_endian(value, 2); }
std::string le32(uint64_t value) { return little_endian(value, 4); }
std::string le64(uint64_t value) { return little_endian(value, 8); }

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  if (at == std::string::npos || text.find(from, at + 1) != std::string::npos) {
    throw std::logic_error("not exactly one \"" + std::string(from) + "\"");
  }
  return text.replace(at, from.size(), to);
}

std::string patched(std::string bytes, size_t at, std::string_view value) {
  if (at + value.size() > bytes.size()) throw std::logic_error("a patch exceeds the file");
  return bytes.replace(at, value.size(), value);
}

std::string safetensors_file(std::string_view header, size_t num_data_bytes) {
  return le64(header.size()) + std::string(header) + std::string(num_data_bytes, '\0');
}

namespace pickle {

std::string text(std::string_view value) { return "X" + le32(value.size()) + std::string(value); }

std::string integer(int64_t value) {
  if (value >= 0 && value < 256) return "K" + little_endian(static_cast<uint64_t>(value), 1);
  if (value >= -2147483648 && value <= 2147483647) return "J" + le32(static_cast<uint64_t>(value));
  return "\x8a\x08" + le64(static_cast<uint64_t>(value));
}

std::string global(std::string_view module, std::string_view name) {
  return "c" + std::string(module) + "\n" + std::string(name) + "\n";
}

std::string tuple(const std::vector<std::string>& items) {
  std::string bytes = "(";
  for (const std::string& item : items) bytes += item;
  return bytes + "t";
}

std::string integers(const std::vector<int64_t>& values) {
  std::vector<std::string> items;
  for (const int64_t value : values) items.push_back(integer(value));
  return tuple(items);
}

std::string ordered_dict() { return global("collections", "OrderedDict") + ")R"; }

std::string storage(std::string_view type, std::string_view key, int64_t num_elements) {
  return tuple({text("storage"), global("torch", type), text(key), text("cpu"),
                integer(num_elements)}) +
         "Q";
}

std::string tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& sizes,
                   const std::vector<int64_t>& strides) {
  return global("torch._utils", "_rebuild_tensor_v2") +
         tuple({storage, integer(offset), integers(sizes), integers(strides), "\x89",
                ordered_dict()}) +
         "R";
}

std::string state_dict(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string bytes = ordered_dict() + "(";
  for (const auto& [name, value] : entries) bytes += text(name) + value;
  return bytes + "u";
}

std::string whole(const std::string& object) { return "\x80\x02" + object + "."; }

}  // namespace pickle

ZipFile zip_file(const std::vector<ZipMember>& members, bool has_zip64_end) {
  ZipFile zip;
  for (const ZipMember& member : members) {
    const uint64_t size = member.data.size();
    const std::string size32 = le32(member.is_zip64 ? kIn64 : size);
    const std::string extra =
        member.is_zip64 ? le16(1) + le16(16) + le64(size) + le64(size) : std::string();
    zip.local.push_back(zip.bytes.size());
    zip.bytes += "PK\x03\x04" + le16(20) + le16(0) + le16(0) + le32(0) + le32(0) + size32 + size32 +
                 le16(member.name.size()) + le16(extra.size()) + member.name + extra + member.data;
  }
  const size_t directory = zip.bytes.size();
  for (size_t i = 0; i < members.size(); ++i) {
    const ZipMember& member = members[i];
    const uint64_t size = member.data.size();
    const std::string size32 = le32(member.is_zip64 ? kIn64 : size);
    const std::string extra =
        member.is_zip64 ? le16(1) + le16(24) + le64(size) + le64(size) + le64(zip.local[i])
                        : std::string();
    zip.central.push_back(zip.bytes.size());
    zip.bytes += "PK\x01\x02" + le16(20) + le16(20) + le16(0) + le16(0) + le32(0) + le32(0) +
                 size32 + size32 + le16(member.name.size()) + le16(extra.size()) + le16(0) +
                 le16(0) + le16(0) + le32(0) + le32(member.is_zip64 ? kIn64 : zip.local[i]) +
                 member.name + extra;
  }
  const size_t directory_size = zip.bytes.size() - directory;
  if (has_zip64_end) {
    zip.end64 = zip.bytes.size();
    zip.bytes += "PK\x06\x06" + le64(44) + le16(45) + le16(45) + le32(0) + le32(0) +
                 le64(members.size()) + le64(members.size()) + le64(directory_size) +
                 le64(directory);
    zip.locator64 = zip.bytes.size();
    zip.bytes += "PK\x06\x07" + le32(0) + le64(zip.end64) + le32(1);
  }
  zip.end = zip.bytes.size();
  const uint64_t count = has_zip64_end ? 0xffff : members.size();
  zip.bytes += "PK\x05\x06" + le16(0) + le16(0) + le16(count) + le16(count) +
               le32(has_zip64_end ? kIn64 : directory_size) +
               le32(has_zip64_end ? kIn64 : directory) + le16(0);
  return zip;
}

std::string torch_pickle() {
  using namespace pickle;
  return whole(state_dict({{"a", tensor(storage("FloatStorage", "0", 2), 0, {2}, {1})},
                           {"b", tensor(storage("HalfStorage", "1", 6), 0, {2, 3}, {3, 1})}}));
}

std::vector<ZipMember> torch_members(const std::string& pickle) {
  return {{"m/data.pkl", pickle},
          {"m/byteorder", "little"},
          {"m/data/0", std::string(8, '\0')},
          {"m/data/1", std::string(12, '\0')}};
}

std::string torch_zip(const std::string& pickle) { return zip_file(torch_members(pickle)).bytes; }

LegacyFile torch_legacy() {
  using namespace pickle;
  return {.magic = std::string("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15),
          .protocol = whole("M" + le16(1001)),
          .system_info = whole("}(" + text("protocol_version") + "M" + le16(1001) +
                               text("little_endian") + "\x88" + text("type_sizes") + "}u"),
          .state = torch_pickle(),
          .keys = whole("](" + text("0") + text("1") + "e"),
          .storages = le64(2) + std::string(8, '\0') + le64(6) + std::string(12, '\0')};
}

}  // namespace caravan::test
