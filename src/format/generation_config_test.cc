#include "format/generation_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace caravan {
namespace {

GenerationDefaults load(const std::string& text) {
  const std::string directory =
      ::testing::TempDir() + "caravan_generation_config." + std::to_string(getpid());
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/generation_config.json") << text;
  const GenerationDefaults defaults = load_generation_defaults(directory);
  std::filesystem::remove_all(directory);
  return defaults;
}

TEST(GenerationConfig, SetsWhatItSays) {
  const GenerationDefaults d = load(
      R"({"do_sample": true, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05,
          "repetition_penalty": 1.3, "max_new_tokens": 7})");
  EXPECT_EQ(d.temperature, 0.7f);
  EXPECT_EQ(d.top_k, 5);
  EXPECT_EQ(d.top_p, 0.9f);
  EXPECT_EQ(d.min_p, 0.05f);
  EXPECT_EQ(d.repetition_penalty, 1.3f);
}

TEST(GenerationConfig, DoSampleDecidesTheTemperature) {
  EXPECT_EQ(load(R"({"do_sample": false, "temperature": 0.7})").temperature, 0.0f);
  EXPECT_EQ(load(R"({"do_sample": true})").temperature, 1.0f);
  EXPECT_EQ(load(R"({"temperature": 0.7})").temperature, 0.7f);
  EXPECT_FALSE(load(R"({"eos_token_id": 5})").temperature);
}

TEST(GenerationConfig, IgnoresWhatIsOutOfRangeOrBroken) {
  for (const char* text :
       {"", "[]", "{", R"({"temperature": "hot", "top_p": 0, "top_k": -2, "min_p": 2})",
        R"({"repetition_penalty": 0, "temperature": -1, "top_k": 1e300, "top_p": null})"}) {
    const GenerationDefaults d = load(text);
    EXPECT_FALSE(d.temperature || d.top_k || d.top_p || d.min_p || d.repetition_penalty) << text;
  }
  EXPECT_EQ(load(R"({"top_k": -1})").top_k, 0);
  EXPECT_FALSE(load_generation_defaults("/nonexistent").top_k);
}

}  // namespace
}  // namespace caravan
