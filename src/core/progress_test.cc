#include "core/progress.h"

#include <gtest/gtest.h>

#include <limits>

namespace caravan {
namespace {

TEST(FormatDuration, SaysSecondsMinutesAndHours) {
  EXPECT_EQ(format_duration(0), "0 s");
  EXPECT_EQ(format_duration(7.4), "7 s");
  EXPECT_EQ(format_duration(59.6), "1 min 00 s");
  EXPECT_EQ(format_duration(200), "3 min 20 s");
  EXPECT_EQ(format_duration(7500), "2 h 05 min");
  EXPECT_EQ(format_duration(-3), "0 s");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::infinity()), "a long time");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::quiet_NaN()), "a long time");
}

TEST(FormatAmount, KeepsDigitsOfSmallRates) {
  EXPECT_EQ(format_amount(0), "0");
  EXPECT_EQ(format_amount(0.1234), "0.12");
  EXPECT_EQ(format_amount(1.5), "1.50");
  EXPECT_EQ(format_amount(12.34), "12.3");
  EXPECT_EQ(format_amount(7), "7");
  EXPECT_EQ(format_amount(340.4), "340");
}

}  // namespace
}  // namespace caravan
