#include "server/output_text.h"

#include <gtest/gtest.h>

#include <random>

#include "server/json_schema.h"
#include "tokenizer/tiny_tokenizer.h"
#include "tokenizer/utf8.h"

namespace caravan {
namespace {

const Tokenizer& tiny() {
  static const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  return tokenizer;
}

std::string sanitized(std::string_view bytes) {
  std::string text;
  append_sanitized_utf8(bytes, true, text);
  return text;
}

bool is_valid_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = decode_utf8(text, i);
    if (c.state != Utf8Char::State::kValid) return false;
    i += c.num_bytes;
  }
  return true;
}

/// Random mixtures of ASCII, characters of 2 to 4 bytes and bytes that are no text.
std::string random_bytes(std::mt19937_64& random) {
  const char* const pieces[] = {"a",
                                "b",
                                "c",
                                " ",
                                "\n",
                                "é",
                                "ß",
                                "中",
                                "文",
                                "\xe2\x80\xa8",
                                "😀",
                                "👩‍🚀",
                                "\xff",
                                "\x80",
                                "\xc3",
                                "\xe2\x82",
                                "\xf0\x9f\x98",
                                "\xed\xa0\x80"};
  std::string text;
  const size_t count = random() % 24;
  for (size_t i = 0; i < count; ++i) text += pieces[random() % std::size(pieces)];
  return text;
}

// RELIABILITY: every delta is whole text, all deltas together are the text, at most 3 bytes wait.
TEST(OutputTextTest, DeltasOfAnyBytesAreWholeTextAndMissNothing) {
  std::mt19937_64 random(38);
  int64_t num_waiting = 0;
  for (int trial = 0; trial < 100000; ++trial) {
    const std::string bytes = random_bytes(random);
    OutputText output(tiny(), {});
    std::string all;
    size_t num_fed = 0;
    // The tokenizer splits bytes as it merges them: some tokens end within a character.
    for (const int32_t id : tiny().encode(bytes)) {
      const std::string delta = output.push(id, false);
      num_fed += tiny().token_bytes(id).size();
      ASSERT_TRUE(is_valid_utf8(delta)) << trial;
      all += delta;
      const std::string without_wait = sanitized(bytes.substr(0, num_fed));
      ASSERT_LE(without_wait.size(), all.size() + 3) << trial;  // U+FFFD for what waits
      num_waiting += without_wait.size() != all.size() ? 1 : 0;
    }
    all += output.finish();
    ASSERT_EQ(all, sanitized(bytes)) << trial;
    ASSERT_EQ(output.num_code_points(), static_cast<int64_t>(num_code_points(all))) << trial;
  }
  EXPECT_GT(num_waiting, 100000);  // that characters were split at all
}

TEST(OutputTextTest, StopStringsAreFoundAcrossTokensAndCharacters) {
  std::mt19937_64 random(39);
  for (int trial = 0; trial < 20000; ++trial) {
    const std::string bytes = random_bytes(random);
    const std::string whole = sanitized(bytes);
    const std::vector<std::string> stops{"a ", "中文", "é"};
    for (const bool includes : {false, true}) {
      OutputText output(tiny(), {.stops = stops, .includes_stop = includes});
      std::string all;
      for (const int32_t id : tiny().encode(bytes)) {
        if (output.found_stop()) break;
        all += output.push(id, false);
        ASSERT_EQ(whole.rfind(all, 0), 0u) << "shown too early";
      }
      all += output.finish();
      size_t first = std::string::npos;
      std::string found;
      for (const std::string& stop : stops) {
        if (whole.find(stop) < first) {
          first = whole.find(stop);
          found = stop;
        }
      }
      ASSERT_EQ(output.found_stop(), first != std::string::npos);
      ASSERT_EQ(output.stop_string(), found);
      ASSERT_EQ(all, first == std::string::npos ? whole
                                                : whole.substr(0, first) + (includes ? found : ""));
    }
  }
}

TEST(OutputTextTest, StopStringsWaitForMinTokens) {
  const int32_t a = tiny().token_id("a");
  OutputText again(tiny(), {.stops = {"a"}, .min_tokens = 2});
  EXPECT_EQ(again.push(a, false), "a");
  EXPECT_EQ(again.push(a, false), "a");
  EXPECT_FALSE(again.found_stop());
  EXPECT_EQ(again.push(a, false), "");
  EXPECT_TRUE(again.found_stop());
  EXPECT_EQ(again.num_tokens(), 3);
}

TEST(OutputTextTest, TheTokenThatEndsIsShownOnlyWhenAskedFor) {
  const int32_t a = tiny().token_id("a"), end = tiny().token_id("<|end|>");
  OutputText plain(tiny(), {});
  EXPECT_EQ(plain.push(a, true), "");
  EXPECT_EQ(plain.num_tokens(), 1);
  OutputText shown(tiny(), {.includes_stop = true});
  EXPECT_EQ(shown.push(a, true), "a");
  OutputText special(tiny(), {});
  EXPECT_EQ(special.push(end, false), "");
  OutputText all(tiny(), {.skips_special_tokens = false});
  EXPECT_EQ(all.push(end, false), "<|end|>");
}

}  // namespace
}  // namespace caravan
