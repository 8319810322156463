#include "tokenizer/model_chat_template.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace caravan {
namespace {

namespace fs = std::filesystem;

class ModelChatTemplateTest : public ::testing::Test {
 protected:
  ModelChatTemplateTest() : dir_(::testing::TempDir() + "/model_chat_template") {
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  ~ModelChatTemplateTest() override { fs::remove_all(dir_); }

  void write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name) << text;
  }
  std::optional<std::string> found() const { return model_chat_template(dir_.string()); }

  fs::path dir_;
};

TEST_F(ModelChatTemplateTest, IsFoundInEveryFormThatTransformersWrites) {
  EXPECT_EQ(found(), std::nullopt);
  for (const char* value : {R"("{{ messages }}")", R"([{"name": "default", "template": "x"}])",
                            R"({"default": "x"})"}) {
    write("tokenizer_config.json", std::string(R"({"chat_template": )") + value + "}");
    EXPECT_EQ(found(), "tokenizer_config.json") << value;
  }
  write("chat_template.json", R"({"chat_template": "{{ messages }}"})");
  EXPECT_EQ(found(), "chat_template.json");
  write("chat_template.jinja", "{{ messages }}");
  EXPECT_EQ(found(), "chat_template.jinja");
}

TEST_F(ModelChatTemplateTest, IsNotSeenWhereThereIsNone) {
  write("chat_template.jinja", "");
  write("chat_template.json", "[1, 2]");
  for (const char* text : {R"({"chat_template": null})", R"({"chat_template": ""})",
                           R"({"chat_template": []})", R"({"model_max_length": 8})", "{broken"}) {
    write("tokenizer_config.json", text);
    EXPECT_EQ(found(), std::nullopt) << text;
  }
  EXPECT_EQ(model_chat_template((dir_ / "absent").string()), std::nullopt);
}

}  // namespace
}  // namespace caravan
