#include "convert/model_files.h"

#include <filesystem>
#include <system_error>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/json.h"
#include "core/mapped_file.h"
#include "format/weight_checksums.h"

namespace caravan {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxSideFileBytes = size_t{64} << 20;
constexpr size_t kMaxConfigBytes = size_t{64} << 20;

std::vector<std::string> copy_files(const std::string& from, const std::string& to,
                                    const std::vector<std::string>& names) {
  std::vector<std::string> copied;
  for (const std::string& name : names) {
    const std::string source = from + "/" + name;
    if (!fs::exists(source)) continue;
    AtomicFile file(to + "/" + name);
    file.write(read_text_file(source, kMaxSideFileBytes));
    file.commit();
    copied.push_back(name);
  }
  return copied;
}

void append_pretty(const boost::json::value& value, int depth, int max_depth, std::string& out) {
  const auto newline = [&](int levels) {
    out += "\n" + std::string(2 * static_cast<size_t>(levels), ' ');
  };
  const bool is_flat = depth >= max_depth;
  if (value.is_object() && !value.get_object().empty() && !is_flat) {
    out += "{";
    bool is_first = true;
    for (const auto& member : value.get_object()) {
      if (!is_first) out += ",";
      is_first = false;
      newline(depth + 1);
      out += boost::json::serialize(boost::json::string(member.key())) + ": ";
      append_pretty(member.value(), depth + 1, max_depth, out);
    }
    newline(depth);
    out += "}";
  } else if (value.is_array() && !value.get_array().empty() && !is_flat) {
    out += "[";
    bool is_first = true;
    for (const auto& element : value.get_array()) {
      if (!is_first) out += ",";
      is_first = false;
      newline(depth + 1);
      append_pretty(element, depth + 1, max_depth, out);
    }
    newline(depth);
    out += "]";
  } else {
    out += boost::json::serialize(value);
  }
}

}  // namespace

const std::vector<std::string>& model_side_files() {
  static const std::vector<std::string> kNames = {"tokenizer.json",
                                                  "vocab.json",
                                                  "merges.txt",
                                                  "added_tokens.json",
                                                  "special_tokens_map.json",
                                                  "tokenizer_config.json",
                                                  "generation_config.json"};
  return kNames;
}

std::vector<std::string> copy_side_files(const std::string& from, const std::string& to) {
  return copy_files(from, to, model_side_files());
}

std::vector<std::string> copy_tokenizer_files(const std::string& from, const std::string& to) {
  std::vector<std::string> names = model_side_files();
  std::erase(names, "generation_config.json");
  return copy_files(from, to, names);
}

void clear_directory(const std::string& directory) {
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end;) {
    const fs::path path = it->path();
    it.increment(error);
    if (!error) fs::remove_all(path, error);
  }
  CARAVAN_CHECK_CODE(!error, kIo, "{}: cannot remove the files of an earlier run: {}", directory,
                     error.message());
}

std::string pretty_json(const boost::json::value& value, int max_depth) {
  std::string out;
  append_pretty(value, 0, max_depth, out);
  return out + "\n";
}

void write_json_file(const std::string& path, const boost::json::value& value) {
  AtomicFile file(path);
  file.write(pretty_json(value, 3));
  file.commit();
}

void write_model_config(const std::string& path, boost::json::object config,
                        boost::json::object caravan) {
  caravan["config_xxh3"] = kNoConfigChecksum;
  config["caravan"] = std::move(caravan);
  AtomicFile file(path);
  file.write(with_config_checksum(pretty_json(config, 3)));
  file.commit();
}

boost::json::object source_config_json(const std::string& source_directory, DType dtype) {
  const std::string path = source_directory + "/config.json";
  boost::json::value value = parse_json_file(path, kMaxConfigBytes);
  CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: expected an object", path);
  boost::json::object config = std::move(value.get_object());
  config.erase("caravan");
  if (config.contains("dtype")) config["dtype"] = dtype_name(dtype);
  config["torch_dtype"] = dtype_name(dtype);
  return config;
}

}  // namespace caravan
