#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "core/json.h"
#include "tokenizer/tokenizer.h"

namespace caravan {
namespace {

namespace json = boost::json;

// As merge() of tools/gen_tokenizer_forms.py: components, which have a "type", are replaced whole.
void merge_patch(json::object& into, const json::object& patch) {
  for (const auto& member : patch) {
    json::value& old = into[member.key()];
    const bool merges = member.value().is_object() && old.is_object() &&
                        !member.value().get_object().contains("type");
    if (merges) {
      merge_patch(old.get_object(), member.value().get_object());
    } else {
      old = member.value();
    }
  }
}

std::string merges_txt(const json::array& merges) {
  std::string text = "#version: 0.2\n";
  for (const json::value& merge : merges) {
    if (merge.is_string()) {
      text += merge.as_string().c_str();
    } else {
      text += std::string(merge.at(0).as_string()) + " " + std::string(merge.at(1).as_string());
    }
    text += "\n";
  }
  return text;
}

TokenizerFiles files_of(const json::value& row, json::object tokenizer) {
  merge_patch(tokenizer, row.at("patch").as_object());
  TokenizerFiles files;
  files.directory = "/m";
  if (row.at("is_split").as_bool()) {
    const json::value& model = tokenizer.at("model");
    files.vocab_json = json::serialize(model.at("vocab"));
    files.merges_txt = merges_txt(model.at("merges").as_array());
  } else {
    files.tokenizer_json = json::serialize(tokenizer);
  }
  const auto side_file = [&](const char* name) -> std::optional<std::string> {
    const json::value* content = row.at("files").as_object().if_contains(name);
    if (content == nullptr) return std::nullopt;
    return json::serialize(*content);
  };
  files.tokenizer_config_json = side_file("tokenizer_config.json");
  files.added_tokens_json = side_file("added_tokens.json");
  files.special_tokens_map_json = side_file("special_tokens_map.json");
  return files;
}

// What tools/gen_tokenizer_forms.py found the libraries to give.
TEST(TokenizerForms, GiveTheIdsOfTheLibraries) {
  std::ifstream file(CARAVAN_SOURCE_DIR "/tests/data/tokenizer/forms.jsonl");
  std::map<std::string, json::object> bases;
  size_t num_forms = 0;
  size_t num_cases = 0;
  for (std::string line; std::getline(file, line);) {
    const json::value row = parse_json(line, "forms.jsonl");
    if (const json::value* base = row.as_object().if_contains("base");
        base != nullptr && row.as_object().contains("tokenizer")) {
      bases[std::string(base->as_string())] = row.at("tokenizer").as_object();
      continue;
    }
    SCOPED_TRACE(std::string(row.at("name").as_string()));
    ++num_forms;
    const TokenizerFiles files = files_of(row, bases.at(std::string(row.at("base").as_string())));
    const Tokenizer tokenizer = Tokenizer::from_files(files);
    for (const json::value& pair : row.at("cases").as_array()) {
      const std::string text(pair.at(0).as_string());
      std::vector<int32_t> ids;
      for (const json::value& id : pair.at(1).as_array()) {
        ids.push_back(static_cast<int32_t>(id.as_int64()));
      }
      EXPECT_EQ(tokenizer.encode(text, {.parse_special = true, .add_special = true}), ids) << text;
      ++num_cases;
    }
  }
  EXPECT_EQ(num_forms, 78u);
  EXPECT_EQ(num_cases, 30 * num_forms);
}

}  // namespace
}  // namespace caravan
