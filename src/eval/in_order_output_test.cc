#include "eval/in_order_output.h"

#include <gtest/gtest.h>

#include <string>

namespace caravan {
namespace {

TEST(InOrderOutputTest, WritesEachTextAsSoonAsThoseBeforeItAreOut) {
  std::string out;
  InOrderOutput output([&](std::string_view text) { out += text; });
  for (int64_t place = 0; place < 4; ++place) EXPECT_EQ(output.reserve(), place);
  output.finish(2, "c");
  output.finish(1, "bb");
  EXPECT_EQ(out, "");
  EXPECT_EQ(output.num_held_bytes(), 3u);
  EXPECT_EQ(output.num_waiting(), 4);
  output.finish(0, "a");
  EXPECT_EQ(out, "abbc");
  EXPECT_EQ(output.num_held_bytes(), 0u);
  EXPECT_EQ(output.num_waiting(), 1);
  output.finish(3, "d");
  EXPECT_EQ(out, "abbcd");
  EXPECT_EQ(output.num_waiting(), 0);
}

}  // namespace
}  // namespace caravan
