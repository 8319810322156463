#include "format/torch_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <set>
#include <string_view>

#include "core/error.h"
#include "core/log.h"
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

bool is_dict(const PickleObject& object) {
  return object.kind == Kind::kDict || object.kind == Kind::kOrderedDict;
}

// Every storage that the pickle refers to, by key.
Storages collect_storages(const Pickle& pickle, const std::string& where) {
  CARAVAN_CHECK_CODE(is_dict(pickle[pickle.root]), kUnsupported,
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

// Under which key training code puts the state dict: nanoGPT and many others; Lightning;
// PyTorch's tutorials; DeepSpeed.
constexpr std::array<std::string_view, 4> kStateDictKeys = {"model", "state_dict",
                                                            "model_state_dict", "module"};

// The root, or in a training checkpoint the dict in it that holds the model's tensors.
const PickleObject& state_dict_of(const Pickle& pickle, const std::string& where) {
  const PickleObject& root = pickle[pickle.root];
  const PickleObject* inner = nullptr;
  std::string_view inner_key;
  for (size_t i = 0; i < root.items.size(); i += 2) {
    const PickleObject& key = pickle[root.items[i]];
    const PickleObject& value = pickle[root.items[i + 1]];
    if (key.kind != Kind::kString || !is_dict(value) ||
        std::find(kStateDictKeys.begin(), kStateDictKeys.end(), key.text) == kStateDictKeys.end()) {
      continue;
    }
    CARAVAN_CHECK_CODE(inner == nullptr, kUnsupported,
                       "{}: a training checkpoint with both \"{}\" and \"{}\": save the state dict "
                       "that is meant alone",
                       where, inner_key, key.text);
    inner = &value;
    inner_key = key.text;
  }
  if (inner == nullptr) return root;
  log_info("{}: a training checkpoint; its \"{}\" is read", where, inner_key);
  return *inner;
}

// "4,1"
std::string numbers_text(const Pickle& pickle, const std::vector<uint32_t>& items) {
  std::string text;
  for (const uint32_t item : items) {
    text += fmt::format("{}{}", text.empty() ? "" : ",", pickle[item].integer);
  }
  return text;
}

// `value`, a tensor of the state dict; `name` is printable.
TorchTensor located_tensor(const Pickle& pickle, const PickleObject& value,
                           const Storages& storages, const std::string& name,
                           const std::string& where) {
  const std::vector<uint32_t>& size_items = pickle[value.items[1]].items;
  const std::vector<uint32_t>& stride_items = pickle[value.items[2]].items;
  CARAVAN_CHECK_CODE(size_items.size() <= Shape::kMaxRank, kUnsupported,
                     "{}: {}: a tensor of {} dimensions, at most {} are supported", where, name,
                     size_items.size(), int{Shape::kMaxRank});
  Strides sizes{};
  Strides strides{};
  const auto element_size = static_cast<int64_t>(dtype_size(value.dtype));
  int64_t num_bytes = element_size;
  for (size_t d = 0; d < size_items.size(); ++d) {
    sizes[d] = pickle[size_items[d]].integer;
    strides[d] = pickle[stride_items[d]].integer;
    CARAVAN_CHECK_CODE(!__builtin_mul_overflow(num_bytes, sizes[d], &num_bytes), kCorrupt,
                       "{}: {}: its bytes do not fit in 63 bits", where, name);
  }
  const Storage& storage = storages.at(value.text);
  int64_t end = value.integer;  // the element after the last
  bool fits = end >= 0;
  for (size_t d = 0; fits && num_bytes != 0 && d < size_items.size(); ++d) {
    int64_t reach;
    fits = !__builtin_mul_overflow(sizes[d] - 1, strides[d], &reach) &&
           !__builtin_add_overflow(end, reach, &end);
  }
  fits = fits && (num_bytes == 0 || !__builtin_add_overflow(end, 1, &end));
  const Shape shape = Shape::from(sizes.data(), size_items.size());
  CARAVAN_CHECK_CODE(fits && end <= storage.num_elements, kCorrupt,
                     "{}: {}: {} at offset {} with strides [{}] exceeds its storage of {} elements",
                     where, name, shape.to_string(), value.integer,
                     numbers_text(pickle, stride_items), storage.num_elements);
  return {"", value.dtype, shape,
          storage.offset + static_cast<uint64_t>(value.integer * element_size),
          meaningful_strides(shape, strides)};
}

// The root is a dict; its storages are located.
std::vector<TorchTensor> collect_tensors(const Pickle& pickle, const Storages& storages,
                                         const std::string& where) {
  const PickleObject& dict = state_dict_of(pickle, where);
  std::vector<TorchTensor> tensors;
  std::set<std::string_view> names;
  std::string other;  // the first name of something else
  for (size_t i = 0; i < dict.items.size(); i += 2) {
    const PickleObject& key = pickle[dict.items[i]];
    const PickleObject& value = pickle[dict.items[i + 1]];
    CARAVAN_CHECK_CODE(key.kind == Kind::kString, kUnsupported,
                       "{}: key {} of the saved dict is not a string", where, i / 2);
    const std::string name = printable(key.text);
    if (value.kind != Kind::kTensor) {
      if (other.empty()) other = name;
      continue;
    }
    CARAVAN_CHECK_CODE(names.insert(key.text).second, kCorrupt, "{}: {}: appears twice", where,
                       name);
    tensors.push_back(located_tensor(pickle, value, storages, name, where));
    tensors.back().name = std::string(key.text);
  }
  // A counter or a version among the tensors changes nothing; without any tensor it is another
  // file.
  CARAVAN_CHECK_CODE(other.empty() || !tensors.empty(), kUnsupported,
                     "{}: {}: not a tensor; save the state dict alone", where, other);
  if (!other.empty()) log_warning("{}: {}: not a tensor; left out", where, other);
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
