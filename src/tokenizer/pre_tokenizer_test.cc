#include "tokenizer/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tokenizer/byte_alphabet.h"

namespace caravan {
namespace {

using Pieces = std::vector<std::string>;

Pieces split(const std::string& text) {
  Pieces pieces;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = gpt2_piece_end(text, begin);
    EXPECT_GT(end, begin);
    pieces.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return pieces;
}

TEST(PreTokenizer, WordsNumbersAndSigns) {
  EXPECT_EQ(split("Hello world"), (Pieces{"Hello", " world"}));
  EXPECT_EQ(split("a1!b"), (Pieces{"a", "1", "!", "b"}));
  EXPECT_EQ(split(" 12 ab ?!"), (Pieces{" 12", " ab", " ?!"}));
  EXPECT_EQ(split("Füße λόγος 漢字"), (Pieces{"Füße", " λόγος", " 漢字"}));
  EXPECT_EQ(split("½x٣"), (Pieces{"½", "x", "٣"}));
  // A combining mark is neither letter nor number.
  EXPECT_EQ(split("e\u0301a"), (Pieces{"e", "\u0301", "a"}));
}

TEST(PreTokenizer, Contractions) {
  EXPECT_EQ(split("it's we'll I've you're I'm he'd don't"),
            (Pieces{"it", "'s", " we", "'ll", " I", "'ve", " you", "'re", " I", "'m", " he", "'d",
                    " don", "'t"}));
  EXPECT_EQ(split("'S'L"), (Pieces{"'", "S", "'", "L"}));
  EXPECT_EQ(split("'sx"), (Pieces{"'s", "x"}));
  EXPECT_EQ(split("''d"), (Pieces{"''", "d"}));
  EXPECT_EQ(split(" 's"), (Pieces{" '", "s"}));
  EXPECT_EQ(split("'l"), (Pieces{"'", "l"}));
  EXPECT_EQ(split("'r"), (Pieces{"'", "r"}));
  EXPECT_EQ(split("'"), (Pieces{"'"}));
}

TEST(PreTokenizer, Space) {
  EXPECT_EQ(split(" "), (Pieces{" "}));
  EXPECT_EQ(split("a  "), (Pieces{"a", "  "}));
  EXPECT_EQ(split("a   b"), (Pieces{"a", "  ", " b"}));
  EXPECT_EQ(split("a\n\nb"), (Pieces{"a", "\n", "\n", "b"}));
  EXPECT_EQ(split("a\tb"), (Pieces{"a", "\t", "b"}));
  EXPECT_EQ(split("\n \n x"), (Pieces{"\n \n", " x"}));
  EXPECT_EQ(split("a\u00A0b"), (Pieces{"a", "\u00A0", "b"}));
  EXPECT_EQ(split("a\u3000\u2003b"), (Pieces{"a", "\u3000", "\u2003", "b"}));
  // U+180E and U+200B are no white space; U+0085 is.
  EXPECT_EQ(split("a\u180Eb"), (Pieces{"a", "\u180E", "b"}));
  EXPECT_EQ(split("!\u200B"), (Pieces{"!\u200B"}));
  EXPECT_EQ(char_class(0x85), CharClass::kSpace);
  EXPECT_EQ(char_class(0x1C), CharClass::kOther);
}

TEST(PreTokenizer, IllFormedBytesAreSigns) {
  EXPECT_EQ(split("a\xFF\xC3 b"), (Pieces{"a", "\xFF\xC3", " b"}));
  EXPECT_EQ(split(" \xE4\xB8"), (Pieces{" \xE4\xB8"}));
  EXPECT_EQ(split("!\xED\xA0\x80!"), (Pieces{"!\xED\xA0\x80!"}));
}

TEST(PreTokenizer, Classes) {
  EXPECT_EQ(char_class('A'), CharClass::kLetter);
  EXPECT_EQ(char_class(0x4E00), CharClass::kLetter);
  EXPECT_EQ(char_class(0x2160), CharClass::kNumber);
  EXPECT_EQ(char_class(0x1F600), CharClass::kOther);
  EXPECT_EQ(char_class(0x10FFFF), CharClass::kOther);
  int num_letters = 0;
  int num_numbers = 0;
  int num_spaces = 0;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    num_letters += char_class(c) == CharClass::kLetter;
    num_numbers += char_class(c) == CharClass::kNumber;
    num_spaces += char_class(c) == CharClass::kSpace;
  }
  EXPECT_EQ(num_spaces, 25);  // Unicode's White_Space
  EXPECT_EQ(num_letters, 141028);
  EXPECT_EQ(num_numbers, 1911);
}

TEST(PreTokenizer, SpaceAtBothEnds) {
  EXPECT_EQ(leading_space(""), 0u);
  EXPECT_EQ(leading_space(" \n\u3000x "), 5u);
  EXPECT_EQ(trailing_space(""), 0u);
  EXPECT_EQ(trailing_space("  "), 2u);
  EXPECT_EQ(trailing_space(" x \u3000\u00A0"), 6u);
  EXPECT_EQ(trailing_space("x\x80"), 0u);
  EXPECT_EQ(trailing_space("\xE3\x80 "), 1u);
  EXPECT_EQ(trailing_space("\x80\x80\x80\x80\x80"), 0u);
}

TEST(ByteAlphabet, WritesAndReadsEveryByte) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  std::string back;
  EXPECT_EQ(append_token_bytes(written_form(bytes), back), std::nullopt);
  EXPECT_EQ(back, bytes);
  EXPECT_EQ(written_form(" the\n"), "\u0120the\u010A");
  std::string out;
  EXPECT_EQ(append_token_bytes("a b", out), std::optional<uint32_t>(' '));
  EXPECT_EQ(append_token_bytes("\u0144", out), std::optional<uint32_t>(0x144));
  EXPECT_EQ(append_token_bytes("\u00AD", out), std::optional<uint32_t>(0xAD));
  EXPECT_EQ(append_token_bytes("\xFF", out), std::optional<uint32_t>(0xFFFD));
}

}  // namespace
}  // namespace caravan
