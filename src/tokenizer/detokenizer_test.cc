#include "tokenizer/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "core/error.h"
#include "tokenizer/tiny_tokenizer.h"
#include "tokenizer/utf8.h"

namespace caravan {
namespace {

using Ids = std::vector<int32_t>;

std::string sanitized(const std::string& bytes) {
  std::string text;
  EXPECT_EQ(append_sanitized_utf8(bytes, true, text), bytes.size());
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

// In the tiny tokenizer the byte b is the token b.
std::vector<std::string> push_bytes(const std::string& bytes) {
  const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  Detokenizer detokenizer(tokenizer);
  std::vector<std::string> parts;
  for (const char byte : bytes) parts.push_back(detokenizer.push(static_cast<uint8_t>(byte)));
  parts.push_back(detokenizer.flush());
  return parts;
}

using Parts = std::vector<std::string>;

TEST(Detokenizer, WaitsForWholeCharacters) {
  EXPECT_EQ(push_bytes("a\xC3\xA9"), (Parts{"a", "", "é", ""}));
  EXPECT_EQ(push_bytes("\xF0\x9F\x98\x80!"), (Parts{"", "", "", "😀", "!", ""}));
  EXPECT_EQ(push_bytes("\xE4\xB8\x80"), (Parts{"", "", "一", ""}));
}

TEST(Detokenizer, ReplacesWhatCannotBecomeValid) {
  EXPECT_EQ(push_bytes("\x80"), (Parts{"\uFFFD", ""}));
  EXPECT_EQ(push_bytes("\xC3("), (Parts{"", "\uFFFD(", ""}));
  EXPECT_EQ(push_bytes("\xE4\xB8"), (Parts{"", "", "\uFFFD"}));
  EXPECT_EQ(push_bytes("\xF0\x9F\xC3\xA9"), (Parts{"", "", "\uFFFD", "é", ""}));
  EXPECT_EQ(push_bytes("\xC0\xAF"), (Parts{"\uFFFD", "\uFFFD", ""}));
  EXPECT_EQ(push_bytes("\xED\xA0\x80"), (Parts{"", "\uFFFD\uFFFD", "\uFFFD", ""}));
}

TEST(Detokenizer, SkipsSpecialTokensOrNot) {
  const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  Detokenizer skipping(tokenizer);
  EXPECT_EQ(skipping.push(256) + skipping.push(259) + skipping.push(260), "ab[PAD]");
  Detokenizer keeping(tokenizer, false);
  EXPECT_EQ(keeping.push(256) + keeping.push(259), "ab<|end|>");
  EXPECT_EQ(keeping.push(261), "");  // above the vocabulary
  EXPECT_THROW(keeping.push(-1), Error);
}

// A special token in the middle of a character is no text: it does not end the character.
TEST(Detokenizer, CharacterAroundASkippedToken) {
  const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  Detokenizer detokenizer(tokenizer);
  EXPECT_EQ(detokenizer.push(0xC3), "");
  EXPECT_EQ(detokenizer.push(259), "");
  EXPECT_EQ(detokenizer.push(0xA9), "é");
}

TEST(Detokenizer, CanGoOnAfterFlush) {
  const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  Detokenizer detokenizer(tokenizer);
  detokenizer.push(0xC3);
  EXPECT_EQ(detokenizer.flush(), "\uFFFD");
  EXPECT_EQ(detokenizer.flush(), "");
  EXPECT_EQ(detokenizer.push('a'), "a");
}

TEST(Detokenizer, RandomIdsGiveTheWholeTextInValidParts) {
  const Tokenizer tokenizer = Tokenizer::from_directory(CARAVAN_SOURCE_DIR "/models/camel-nano");
  // Tokens that are parts of characters, which random ids seldom bring together.
  Ids broken;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!is_valid_utf8(std::string(tokenizer.token_bytes(id)))) broken.push_back(id);
  }
  ASSERT_GT(broken.size(), 128u);
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    Ids ids;
    const size_t length = random() % 40;
    for (size_t i = 0; i < length; ++i) {
      ids.push_back(
          random() % 4 != 0
              ? broken[random() % broken.size()]
              : static_cast<int32_t>(random() % static_cast<uint32_t>(tokenizer.vocab_size())));
    }
    for (const bool skips : {false, true}) {
      Detokenizer detokenizer(tokenizer, skips);
      std::string text;
      for (const int32_t id : ids) {
        const std::string part = detokenizer.push(id);
        ASSERT_TRUE(is_valid_utf8(part));
        text += part;
      }
      text += detokenizer.flush();
      ASSERT_EQ(text, sanitized(tokenizer.decode(ids, {.skip_special = skips})));
    }
  }
}

// Unicode 15, table 3-8 and the rows around it.
TEST(Utf8, ReplacesMaximalSubparts) {
  const std::string r = "\uFFFD";
  EXPECT_EQ(sanitized("a\xF1\x80\x80\xE1\x80\xC2"
                      "b\x80"
                      "c\x80\xBF"
                      "d"),
            "a" + r + r + r + "b" + r + "c" + r + r + "d");
  EXPECT_EQ(sanitized("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
                      "A"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(sanitized("\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
                      "A"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(sanitized("\xF4\x91\x92\x93\xFF"
                      "A\x80\xBF"
                      "B"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(sanitized("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                      "A"),
            r + r + r + r + "A");
}

TEST(Utf8, EveryCodePointRoundTrips) {
  for (uint32_t code_point = 0; code_point < 0x110000; ++code_point) {
    if (code_point >= 0xD800 && code_point < 0xE000) continue;
    std::string bytes;
    append_utf8(code_point, bytes);
    const Utf8Char c = decode_utf8(bytes, 0);
    ASSERT_EQ(c.state, Utf8Char::State::kValid);
    ASSERT_EQ(c.code_point, code_point);
    ASSERT_EQ(c.num_bytes, bytes.size());
    if (bytes.size() > 1) {
      const Utf8Char cut = decode_utf8(bytes.substr(0, bytes.size() - 1), 0);
      ASSERT_EQ(cut.state, Utf8Char::State::kTruncated);
      ASSERT_EQ(cut.num_bytes, bytes.size() - 1);
    }
  }
}

}  // namespace
}  // namespace caravan
