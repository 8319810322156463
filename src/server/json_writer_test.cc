#include "server/json_writer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "core/json.h"

namespace caravan {
namespace {

namespace json = boost::json;

TEST(JsonWriterTest, WritesWhatWasSaid) {
  JsonWriter writer;
  writer.begin_object().key("a").begin_array().integer(1).null().number(-1.5f).end_array();
  writer.key("b").begin_object().end_object().key("c").begin_array().end_array();
  writer.key("d").raw("{\"x\":1}").key("e").ids({1, 2}).key("f").begin_array();
  writer.raw_items("").raw_items("1,2").raw_items("").raw_items("3").end_array().end_object();
  EXPECT_EQ(writer.take(),
            R"({"a":[1,null,-1.5],"b":{},"c":[],"d":{"x":1},"e":[1,2],"f":[1,2,3]})");
  EXPECT_EQ(writer.take(), "");
}

TEST(JsonWriterTest, EveryTextComesBack) {
  std::string all;
  for (int c = 0; c < 128; ++c) all += static_cast<char>(c);
  all += "\xc3\xa9\xf0\x9f\x98\x80";
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    std::string text;
    for (size_t k = random() % 40; k > 0; --k) text += all[random() % 128];
    if (i == 0) text = all;
    JsonWriter writer;
    writer.text(text);
    EXPECT_EQ(json::value_to<std::string>(json::parse(writer.str())), text);
  }
}

TEST(JsonWriterTest, EveryNumberComesBack) {
  std::mt19937 random(2);
  std::vector<float> values{0.0f,
                            -0.0f,
                            -1.0f,
                            -9999.0f,
                            1e20f,
                            -1e-7f,
                            1e10f,
                            16777216.0f,
                            std::numeric_limits<float>::min(),
                            std::numeric_limits<float>::max(),
                            std::numeric_limits<float>::denorm_min()};
  for (int i = 0; i < 2000; ++i) {
    const uint32_t bits = random();
    float value;
    std::memcpy(&value, &bits, sizeof value);
    if (std::isfinite(value)) values.push_back(value);
  }
  for (const float value : values) {
    JsonWriter writer;
    writer.number(value);
    const json::value read = json::parse(writer.str());
    ASSERT_TRUE(read.is_double()) << writer.str();
    EXPECT_EQ(static_cast<float>(read.get_double()), value) << writer.str();
  }
}

}  // namespace
}  // namespace caravan
