#include "format/tensor_source.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mapped_file.h"
#include "format/json_fields.h"
#include "format/safetensors.h"
#include "format/torch_file.h"
#include "format/training_form.h"

namespace caravan {

namespace {

constexpr size_t kMaxIndexBytes = size_t{64} << 20;

bool is_torch_name(const std::string& path) {
  return path.ends_with(".bin") || path.ends_with(".pt") || path.ends_with(".pth");
}

std::vector<StoredTensor> tensors_of(const MappedFile& file) {
  const std::span<const std::byte> bytes(file.data(), file.size());
  constexpr std::string_view kLfsPointer = "version https://git-lfs.github.com/";
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  CARAVAN_CHECK_CODE(!text.starts_with(kLfsPointer), kCorrupt,
                     "{}: a Git LFS pointer, not the weights; run git lfs pull", file.path());
  std::vector<StoredTensor> tensors;
  if (is_torch_name(file.path())) {
    for (TorchTensor& tensor : parse_torch_file(bytes, file.path())) {
      tensors.push_back({std::move(tensor.name), tensor.dtype, tensor.shape, &file, tensor.offset,
                         tensor.strides});
    }
    return tensors;
  }
  CARAVAN_CHECK_CODE(file.path().ends_with(".safetensors"), kUnsupported,
                     "{}: expected a name that ends in .safetensors, .bin, .pt or .pth",
                     file.path());
  for (SafetensorsEntry& entry : parse_safetensors(bytes, file.path()).entries) {
    if (is_safetensors_filler(entry)) continue;
    tensors.push_back({std::move(entry.name), entry.dtype, entry.shape, &file, entry.offset});
  }
  return tensors;
}

void sort_by_name(std::vector<StoredTensor>& tensors) {
  std::sort(tensors.begin(), tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
}

}  // namespace

std::map<std::string, std::string> parse_weight_index(std::string_view json,
                                                      const std::string& where) {
  const boost::json::value root = parse_json(json, where);
  CARAVAN_CHECK_CODE(root.is_object(), kCorrupt, "{}: got {}, expected a JSON object", where,
                     json_text(root));
  const boost::json::object& object = root.get_object();
  const boost::json::object& map = JsonFields(object, where).object("weight_map");
  CARAVAN_CHECK_CODE(!map.empty(), kCorrupt, "{}: weight_map: expected at least one tensor", where);
  const JsonFields fields(map, where, "weight_map.");
  std::map<std::string, std::string> shards;
  for (const auto& pair : map) {
    const std::string shard = fields.string(pair.key());
    // A shard lies beside its index: no path of an untrusted file leads out of the directory.
    CARAVAN_CHECK_CODE(!shard.empty() && shard[0] != '.' &&
                           shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos,
                       kCorrupt, "{}: weight_map.{}: got \"{}\", expected a plain file name", where,
                       printable(pair.key()), printable(shard));
    shards.emplace(pair.key(), shard);
  }
  return shards;
}

TensorSource TensorSource::open_file(const std::string& path) {
  TensorSource source;
  source.files_.push_back(std::make_unique<MappedFile>(MappedFile::open(path)));
  source.tensors_ = tensors_of(*source.files_.back());
  sort_by_name(source.tensors_);
  return source;
}

TensorSource TensorSource::open_index(const std::string& directory, const std::string& index_path) {
  const std::map<std::string, std::string> index =
      parse_weight_index(read_text_file(index_path, kMaxIndexBytes), index_path);
  std::set<std::string> shards;
  for (const auto& [name, shard] : index) shards.insert(shard);

  // The shards say what is in them. An index that disagrees is only told of, as transformers reads
  // the shards and not the names: what is missing will be missed by name.
  TensorSource source;
  std::set<std::string> stored;
  size_t num_wrong = 0;
  std::string first_wrong;
  const auto note = [&](const std::string& name, const std::string& shard, const char* what) {
    if (num_wrong++ == 0) {
      first_wrong = fmt::format("{} {} {}", printable(name), what, printable(shard));
    }
  };
  for (const std::string& shard : shards) {
    source.files_.push_back(
        std::make_unique<MappedFile>(MappedFile::open(directory + "/" + shard)));
    for (StoredTensor& tensor : tensors_of(*source.files_.back())) {
      CARAVAN_CHECK_CODE(stored.insert(tensor.name).second, kCorrupt,
                         "{}: {} is in {} and in another shard", index_path, printable(tensor.name),
                         printable(shard));
      const auto entry = index.find(tensor.name);
      if (entry == index.end() || entry->second != shard) {
        note(tensor.name, shard, "is in");
      }
      source.tensors_.push_back(std::move(tensor));
    }
  }
  sort_by_name(source.tensors_);
  for (const auto& [name, shard] : index) {
    if (!stored.contains(name)) note(name, shard, "is not in");
  }
  if (num_wrong != 0) {
    log_warning("{}: weight_map is wrong in {} places, the first: {}; the shards count", index_path,
                num_wrong, first_wrong);
  }
  return source;
}

TensorSource TensorSource::open_directory(const std::string& directory) {
  check_directory(directory);
  const auto path = [&](const char* name) { return directory + "/" + name; };
  for (const char* stem : {"model.safetensors", "pytorch_model.bin"}) {
    const std::string index = path(stem) + ".index.json";
    const bool is_whole = path_exists(path(stem));
    if (!is_whole && !path_exists(index)) continue;
    TensorSource source = is_whole ? open_file(path(stem)) : open_index(directory, index);
    undo_training_form(source.tensors_, directory);
    sort_by_name(source.tensors_);
    return source;
  }
  CARAVAN_CHECK_CODE(!path_exists(path("rank1.safetensors")), kUnsupported,
                     "{}: weights of several ranks; open one rank's file", directory);
  if (path_exists(path("rank0.safetensors"))) return open_file(path("rank0.safetensors"));
  CARAVAN_FAIL(kNotFound,
               "{}: no weights: expected model.safetensors, model.safetensors.index.json, "
               "pytorch_model.bin, pytorch_model.bin.index.json or rank0.safetensors",
               directory);
}

const StoredTensor* TensorSource::find(const std::string& name) const {
  const auto found = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const StoredTensor& tensor, const std::string& wanted) { return tensor.name < wanted; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

}  // namespace caravan
