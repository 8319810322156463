#include "tokenizer/model_chat_template.h"

#include <filesystem>

#include "core/error.h"
#include "core/json.h"

namespace caravan {

namespace json = boost::json;
namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxJsonBytes = size_t{64} << 20;  // as the tokenizer's files

bool has_bytes(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && fs::file_size(path, error) > 0 && !error;
}

/// Text, or a list or an object of named texts (transformers has had all three).
bool is_template(const json::value* value) {
  if (value == nullptr) return false;
  if (value->is_string()) return !value->get_string().empty();
  if (value->is_array()) return !value->get_array().empty();
  return value->is_object() && !value->get_object().empty();
}

bool has_member(const fs::path& path) {
  if (!has_bytes(path)) return false;
  try {
    const json::value root = parse_json_file(path.string(), kMaxJsonBytes);
    return root.is_object() && is_template(root.get_object().if_contains("chat_template"));
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

std::optional<std::string> model_chat_template(const std::string& directory) {
  const fs::path root(directory);
  if (has_bytes(root / "chat_template.jinja")) return "chat_template.jinja";
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    if (has_member(root / name)) return name;
  }
  return std::nullopt;
}

}  // namespace caravan
