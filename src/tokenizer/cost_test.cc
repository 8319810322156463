#include <gtest/gtest.h>

#include <ctime>
#include <string>
#include <vector>

#include "tokenizer/added_tokens.h"

namespace caravan {
namespace {

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

AddedToken space_token(bool strips_left, bool strips_right) {
  AddedToken token;
  token.content = "\n";
  token.id = 7;
  token.strips_left = strips_left;
  token.strips_right = strips_right;
  return token;
}

/// Seconds for `size` line feeds, and how many tokens they are.
std::pair<double, size_t> split_seconds(const AddedTokens& tokens, size_t size) {
  const std::string text(size, '\n');
  size_t num_tokens = 0;
  const double start = cpu_seconds();
  tokens.split(
      text, [](std::string_view) { FAIL(); }, [&](int32_t) { ++num_tokens; });
  return {cpu_seconds() - start, num_tokens};
}

// Each of n tokens of white space looked at all the space before or after it: n^2 steps.
TEST(AddedTokenCostTest, TokensOfSpaceThatTakeSpace) {
  for (const bool strips_left : {false, true}) {
    for (const bool strips_right : {false, true}) {
      const AddedTokens tokens({space_token(strips_left, strips_right)});
      const auto [small, num_small] = split_seconds(tokens, 20'000);
      const auto [large, num_large] = split_seconds(tokens, 160'000);
      EXPECT_LT(large, 20 * small + 0.5) << strips_left << strips_right;
      EXPECT_EQ(num_small, strips_left && strips_right ? 1u : 20'000u);
      EXPECT_EQ(num_large, strips_left && strips_right ? 1u : 160'000u);
    }
  }
}

TEST(AddedTokenCostTest, WhatSpaceTokensGiveIsAsBefore) {
  const auto split = [](bool strips_left, bool strips_right, const std::string& text) {
    std::string out;
    AddedTokens({space_token(strips_left, strips_right)})
        .split(
            text, [&](std::string_view part) { out += "[" + std::string(part) + "]"; },
            [&](int32_t) { out += "T"; });
    return out;
  };
  EXPECT_EQ(split(false, false, "a \n b"), "[a ]T[ b]");
  EXPECT_EQ(split(true, false, "a \n b"), "[a]T[ b]");
  EXPECT_EQ(split(false, true, "a \n b"), "[a ]T[b]");
  EXPECT_EQ(split(true, true, "a \n\n b"), "[a]T[b]");
  EXPECT_EQ(split(false, true, "a \n \n b"), "[a ]TT[b]");
  EXPECT_EQ(split(true, false, "a \n \n b"), "[a]TT[ b]");
  EXPECT_EQ(split(false, true, "\n\xe2\x80\x83\n\xe2\x80\x83x"), "TT[x]");
}

}  // namespace
}  // namespace caravan
