#include "format/torch_file.h"

#include <array>
#include <cstring>
#include <map>
#include <set>
#include <string_view>

#include "core/error.h"
#include "format/torch_pickle.h"
#include "format/zip_directory.h"

namespace caravan {

namespace {

using Kind = PickleObject::Kind;

constexpr std::string_view kZipMagic = "PK\x03\x04";
// The pickle of torch's magic number, 0x1950a86a20f9469cfc6c, an integer of 10 bytes.
constexpr std::string_view kLegacyMagic =
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
constexpr int64_t kLegacyProtocol = 1001;

/// What the pickle says of one storage, and where its bytes turned out to be.
struct Storage {
  DType dtype = DType::kF32;
  int64_t num_elements = 0;
  uint64_t offset = 0;
  bool is_located = false;

  uint64_t num_bytes() const { return static_cast<uint64_t>(num_elements) * dtype_size(dtype); }
};
using Storages = std::map<std::string_view, Storage>;

// Every storage that the state dict refers to, by key.
Storages collect_storages(const Pickle& pickle, const std::string& where) {
  const Kind root = pickle[pickle.root].kind;
  CARAVAN_CHECK_CODE(root == Kind::kDict || root == Kind::kOrderedDict, kUnsupported,
                     "{}: the saved object is not a dict of tensors", where);
  Storages storages;
  for (const PickleObject& object : pickle.objects) {
    if (object.kind != Kind::kStorage) continue;
    const uint64_t size = dtype_size(object.dtype);
    CARAVAN_CHECK_CODE(static_cast<uint64_t>(object.integer) <= (uint64_t{1} << 62) / size,
                       kCorrupt, "{}: storage {}: {} elements of {} bytes do not fit in 62 bits",
                       where, printable(object.text), object.integer, size);
    const Storage storage{object.dtype, object.integer};
    const auto [found, is_new] = storages.emplace(object.text, storage);
    CARAVAN_CHECK_CODE(is_new || (found->second.dtype == storage.dtype &&
                                  found->second.num_elements == storage.num_elements),
                       kCorrupt, "{}: storage {}: described twice, as {} x {} and as {} x {}",
                       where, printable(object.text), found->second.num_elements,
                       dtype_name(found->second.dtype), storage.num_elements,
                       dtype_name(storage.dtype));
  }
  return storages;
}

// The root is a dict; its storages are located.
std::vector<TorchTensor> collect_tensors(const Pickle& pickle, const Storages& storages,
                                         const std::string& where) {
  const PickleObject& root = pickle[pickle.root];
  std::vector<TorchTensor> tensors;
  std::set<std::string_view> names;
  for (size_t i = 0; i < root.items.size(); i += 2) {
    const PickleObject& key = pickle[root.items[i]];
    const PickleObject& value = pickle[root.items[i + 1]];
    CARAVAN_CHECK_CODE(key.kind == Kind::kString, kUnsupported,
                       "{}: key {} of the saved dict is not a string", where, i / 2);
    CARAVAN_CHECK_CODE(value.kind == Kind::kTensor, kUnsupported,
                       "{}: {}: not a tensor; save the state dict alone", where,
                       printable(key.text));
    CARAVAN_CHECK_CODE(names.insert(key.text).second, kCorrupt, "{}: {}: appears twice", where,
                       printable(key.text));
    std::array<int64_t, Shape::kMaxRank> sizes{};
    const std::vector<uint32_t>& size_items = pickle[value.items[1]].items;
    for (size_t j = 0; j < size_items.size(); ++j) sizes[j] = pickle[size_items[j]].integer;
    const Storage& storage = storages.at(value.text);
    const uint64_t begin = static_cast<uint64_t>(value.integer) * dtype_size(value.dtype);
    tensors.push_back({std::string(key.text), value.dtype,
                       Shape::from(sizes.data(), size_items.size()), storage.offset + begin});
  }
  return tensors;
}

std::vector<TorchTensor> parse_zip_file(std::span<const std::byte> bytes,
                                        const std::string& where) {
  const std::map<std::string, ZipEntry> entries = parse_zip_directory(bytes, where);
  // The archive's folder has any name; data.pkl lies directly in it.
  std::string folder;
  for (const auto& [name, entry] : entries) {
    const size_t slash = name.find('/');
    if (slash == std::string::npos || name.substr(slash) != "/data.pkl") continue;
    CARAVAN_CHECK_CODE(folder.empty(), kCorrupt, "{}: both {}data.pkl and {} are there", where,
                       printable(folder), printable(name));
    folder = name.substr(0, slash + 1);
  }
  CARAVAN_CHECK_CODE(!folder.empty(), kCorrupt, "{}: no <folder>/data.pkl in the zip file", where);
  CARAVAN_CHECK_CODE(!entries.contains(folder + "constants.pkl"), kUnsupported,
                     "{}: a TorchScript archive, expected a state dict", where);
  if (const auto order = entries.find(folder + "byteorder"); order != entries.end()) {
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + order->second.offset,
                                order->second.num_bytes);
    CARAVAN_CHECK_CODE(text == "little", kUnsupported,
                       "{}: {}byteorder: got \"{}\", expected \"little\"", where, printable(folder),
                       printable(text));
  }
  const ZipEntry& pickle_entry = entries.at(folder + "data.pkl");
  const std::string pickle_where = where + ": data.pkl";
  const Pickle pickle =
      run_pickle(bytes.subspan(pickle_entry.offset, pickle_entry.num_bytes), 0, pickle_where);
  Storages storages = collect_storages(pickle, pickle_where);
  for (auto& [key, storage] : storages) {
    const auto entry = entries.find(fmt::format("{}data/{}", folder, key));
    CARAVAN_CHECK_CODE(entry != entries.end(), kCorrupt, "{}: storage {}: no entry data/{}", where,
                       printable(key), printable(key));
    CARAVAN_CHECK_CODE(entry->second.num_bytes == storage.num_bytes(), kCorrupt,
                       "{}: storage {}: got {} bytes, expected {}: {} x {}", where, printable(key),
                       entry->second.num_bytes, storage.num_bytes(), storage.num_elements,
                       dtype_name(storage.dtype));
    storage.offset = entry->second.offset;
  }
  return collect_tensors(pickle, storages, where);
}

// {"protocol_version": 1001, "little_endian": True, "type_sizes": {...}}
void check_system_info(const Pickle& pickle, const std::string& where) {
  const PickleObject& root = pickle[pickle.root];
  CARAVAN_CHECK_CODE(root.kind == Kind::kDict, kCorrupt, "{}: system info: expected a dict", where);
  for (size_t i = 0; i < root.items.size(); i += 2) {
    if (pickle[root.items[i]].text != "little_endian") continue;
    const PickleObject& value = pickle[root.items[i + 1]];
    CARAVAN_CHECK_CODE(value.kind == Kind::kBool && value.integer == 1, kUnsupported,
                       "{}: system info: the file is not little endian", where);
    return;
  }
  CARAVAN_FAIL(kCorrupt, "{}: system info: no little_endian", where);
}

// Magic number, protocol, system info, state dict, list of storage keys: five pickles; then for
// each key the number of elements as int64 and the elements.
std::vector<TorchTensor> parse_legacy_file(std::span<const std::byte> bytes,
                                           const std::string& where) {
  const Pickle protocol = run_pickle(bytes, kLegacyMagic.size(), where);
  const PickleObject& version = protocol[protocol.root];
  CARAVAN_CHECK_CODE(version.kind == Kind::kInteger && version.integer == kLegacyProtocol,
                     kUnsupported, "{}: legacy protocol: got {}, expected {}", where,
                     version.integer, kLegacyProtocol);
  const Pickle system_info = run_pickle(bytes, protocol.end, where);
  check_system_info(system_info, where);
  const Pickle pickle = run_pickle(bytes, system_info.end, where);
  Storages storages = collect_storages(pickle, where);
  const Pickle keys = run_pickle(bytes, pickle.end, where);
  const PickleObject& list = keys[keys.root];
  CARAVAN_CHECK_CODE(list.kind == Kind::kList, kCorrupt, "{}: storage keys: expected a list",
                     where);

  uint64_t offset = keys.end;
  for (const uint32_t index : list.items) {
    const PickleObject& key = keys[index];
    const auto found = key.kind == Kind::kString ? storages.find(key.text) : storages.end();
    CARAVAN_CHECK_CODE(found != storages.end() && !found->second.is_located, kCorrupt,
                       "{}: storage keys: \"{}\" is unknown or listed twice", where,
                       printable(key.text));
    Storage& storage = found->second;
    CARAVAN_CHECK_CODE(bytes.size() - offset >= sizeof(int64_t), kCorrupt,
                       "{}: storage {}: no room for its length at offset {}", where,
                       printable(key.text), offset);
    int64_t count;
    std::memcpy(&count, bytes.data() + offset, sizeof(count));
    offset += sizeof(count);
    CARAVAN_CHECK_CODE(count == storage.num_elements, kCorrupt,
                       "{}: storage {}: got {} elements at offset {}, expected {}", where,
                       printable(key.text), count, offset - sizeof(count), storage.num_elements);
    CARAVAN_CHECK_CODE(storage.num_bytes() <= bytes.size() - offset, kCorrupt,
                       "{}: storage {}: {} bytes at offset {} exceed the file of {}", where,
                       printable(key.text), storage.num_bytes(), offset, bytes.size());
    storage.offset = offset;
    storage.is_located = true;
    offset += storage.num_bytes();
  }
  for (const auto& [key, storage] : storages) {
    CARAVAN_CHECK_CODE(storage.is_located, kCorrupt, "{}: storage {}: not among the storage keys",
                       where, printable(key));
  }
  CARAVAN_CHECK_CODE(offset == bytes.size(), kCorrupt,
                     "{}: storages end at offset {}, expected {}, the size of the file", where,
                     offset, bytes.size());
  return collect_tensors(pickle, storages, where);
}

}  // namespace

std::vector<TorchTensor> parse_torch_file(std::span<const std::byte> bytes,
                                          const std::string& where) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with(kZipMagic)) return parse_zip_file(bytes, where);
  if (text.starts_with(kLegacyMagic)) return parse_legacy_file(bytes, where);
  CARAVAN_FAIL(kCorrupt, "{}: neither a zip archive nor a pickle that torch.save wrote", where);
}

}  // namespace caravan
