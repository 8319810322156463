#include "convert/model_files.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "convert/resumable_file.h"
#include "core/atomic_file.h"
#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "core/mapped_file.h"
#include "format/weight_checksums.h"

namespace caravan {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxSideFileBytes = size_t{64} << 20;
constexpr size_t kMaxConfigBytes = size_t{64} << 20;

std::vector<std::string> copy_files(const std::string& from, const AtomicDirectory& to,
                                    const std::vector<std::string>& names) {
  std::vector<std::string> copied;
  for (const std::string& name : names) {
    const std::string source = from + "/" + name;
    std::error_code error;
    if (fs::symlink_status(source, error).type() == fs::file_type::not_found) continue;
    AtomicFile file(to.file(name));
    file.write(read_text_file(source, kMaxSideFileBytes));
    file.commit();
    copied.push_back(name);
  }
  return copied;
}

/// `value`["caravan"]["kind"], "" when there is none.
std::string caravan_kind(const boost::json::value& value) {
  const boost::json::value* caravan =
      value.is_object() ? value.get_object().if_contains("caravan") : nullptr;
  const boost::json::value* kind = caravan != nullptr && caravan->is_object()
                                       ? caravan->get_object().if_contains("kind")
                                       : nullptr;
  if (kind == nullptr || !kind->is_string()) return {};
  return {kind->get_string().data(), kind->get_string().size()};
}

// config.json says so; of a synthetic model the weights must too, because training such a model
// keeps its config.json.
bool is_caravan_model(const DirectoryKind::ReadHead& read) {
  if (read(kJournalName, kJournalTitle.size()) == kJournalTitle) return true;
  std::string kind;
  try {
    kind = caravan_kind(parse_json(read("config.json", kMaxConfigBytes), "config.json"));
  } catch (const Error&) {
    return false;
  }
  if (kind != "synthetic") return kind == "checkpoint" || kind == "engine";
  constexpr size_t kHeadBytes = 4096;
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    const std::string head = read(name, kHeadBytes);
    if (!head.empty()) return head.find(kSyntheticMark) != std::string::npos;
  }
  return false;
}

/// "PREFIXnumberSUFFIX".
bool is_numbered(std::string_view name, std::string_view prefix, std::string_view suffix) {
  if (name.size() <= prefix.size() + suffix.size() || !name.starts_with(prefix) ||
      !name.ends_with(suffix)) {
    return false;
  }
  name = name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
  return name.find_first_not_of("0123456789") == std::string_view::npos;
}

bool is_model_file_name(std::string_view name) {
  for (const std::string& side_file : model_side_files()) {
    if (name == side_file) return true;
  }
  const size_t of = name.find("-of-");
  return name == "config.json" || name == kJournalName || name == "model.safetensors" ||
         name == "model.safetensors.index.json" || is_numbered(name, "rank", ".safetensors") ||
         (of != std::string_view::npos && is_numbered(name.substr(0, of), "model-", "") &&
          is_numbered(name.substr(of), "-of-", ".safetensors"));
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
      append_json_string(out, {member.key().data(), member.key().size()});
      out += ": ";
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
    append_json_text(out, value);
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
                                                  "chat_template.jinja",
                                                  "chat_template.json",
                                                  "generation_config.json"};
  return kNames;
}

const DirectoryKind& model_directory_kind() {
  static const DirectoryKind kKind = {"config.json that caravan wrote", is_caravan_model,
                                      is_model_file_name};
  return kKind;
}

void check_model_output(const std::string& output, bool replace,
                        const std::vector<InputPath>& inputs) {
  check_output_directory("--output", output, inputs);
  AtomicDirectory::check(output, replace, model_directory_kind());
}

std::vector<std::string> copy_side_files(const std::string& from, const AtomicDirectory& to) {
  return copy_files(from, to, model_side_files());
}

std::vector<std::string> copy_tokenizer_files(const std::string& from, const AtomicDirectory& to) {
  std::vector<std::string> names = model_side_files();
  std::erase(names, "generation_config.json");
  return copy_files(from, to, names);
}

std::string pretty_json(const boost::json::value& value, int max_depth) {
  std::string out;
  append_pretty(value, 0, max_depth, out);
  return out + "\n";
}

void write_json_file(const FileAt& path, const boost::json::value& value) {
  AtomicFile file(path);
  file.write(pretty_json(value, 3));
  file.commit();
}

void write_model_config(const FileAt& path, boost::json::object config,
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
