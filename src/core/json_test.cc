#include <gtest/gtest.h>

#include <limits>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"

namespace caravan {
namespace {

TEST(JsonTest, NamesTheOffsetOfTheFirstMistake) {
  const auto message = [](const char* text) -> std::string {
    try {
      parse_json(text, "f.json");
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message("{\"a\": 1, \"a\": 2}").find("f.json: offset "), 0u);
  EXPECT_NE(message("{\"a\": 1, \"a\": 2}").find("the key \"a\" appears twice"), std::string::npos);
  EXPECT_NE(message("{\"a\": tru}").find("not valid JSON"), std::string::npos);
  EXPECT_NE(message("{} x").find("offset 3: text after the end"), std::string::npos);
  EXPECT_NE(message("").find("not valid JSON"), std::string::npos);
  EXPECT_NE(message(std::string(100, '[').c_str()).find("not valid JSON"), std::string::npos);
  EXPECT_EQ(message("{\"a\": {\"b\": 1}, \"c\": {\"b\": 2}} \n"), "accepted");
}

TEST(JsonTextTest, WritesNumbersAsPeopleDo) {
  EXPECT_EQ(json_number(1.49), "1.49");
  EXPECT_EQ(json_number(14.945158), "14.945158");
  EXPECT_EQ(json_number(1e-5), "1e-05");
  EXPECT_EQ(json_number(0.0001), "0.0001");
  EXPECT_EQ(json_number(0), "0.0");
  EXPECT_EQ(json_number(-0.0), "-0.0");
  EXPECT_EQ(json_number(-3), "-3.0");
  EXPECT_EQ(json_number(100000), "100000.0");
  EXPECT_EQ(json_number(1e15), "1000000000000000.0");
  EXPECT_EQ(json_number(1e300), "1e+300");
  EXPECT_EQ(json_number(0.1 + 0.2), "0.30000000000000004");
  EXPECT_EQ(json_number(std::numeric_limits<double>::quiet_NaN()), "null");
  EXPECT_EQ(json_number(-std::numeric_limits<double>::infinity()), "null");
  for (const double number : {1.49, 1e-320, 1.7976931348623157e308, -0.0, 123456789.125, 3.0}) {
    const boost::json::value read = parse_json(json_number(number), "number");
    ASSERT_TRUE(read.is_double()) << json_number(number);
    EXPECT_EQ(read.get_double(), number);
  }
}

TEST(JsonTextTest, ReadsBackAsTheSameValue) {
  const std::string text =
      R"({"a":[1,-2,18446744073709551615,1.5,true,false,null,[],{}],"\u0001\"":"\\\b\f\n\r\t\u0000é/"})";
  EXPECT_EQ(to_json_text(parse_json(text, "text")), text);
  EXPECT_EQ(to_json_text(boost::json::object{{"k", 1}}), R"({"k":1})");
}

}  // namespace
}  // namespace caravan
