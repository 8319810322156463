#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "tokenizer/tiny_tokenizer.h"
#include "tokenizer/tokenizer.h"

namespace caravan {
namespace {

using Ids = std::vector<int32_t>;
using testing::replace_once;

constexpr Tokenizer::EncodeOptions kParseSpecial{.parse_special = true};

// The tiny tokenizer.json with one text in it replaced.
TokenizerFiles edited(const std::string& from, const std::string& to) {
  TokenizerFiles files = testing::tiny_tokenizer_json();
  files.tokenizer_json = replace_once(*files.tokenizer_json, from, to);
  return files;
}

std::string refusal(const TokenizerFiles& files, ErrorCode code) {
  try {
    Tokenizer::from_files(files);
  } catch (const Error& error) {
    EXPECT_STREQ(error_code_name(error.code()), error_code_name(code)) << error.what();
    return error.what();
  }
  return "";
}

// Valid files that Caravan does not know: never called broken, and the component is named.
TEST(TokenizerSideFiles, UnknownComponentsAreUnsupportedByName) {
  struct Row {
    const char* from;
    const char* to;
    const char* name;
  };
  const std::string pre =
      R"("pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                      "use_regex": true})";
  const std::string byte_level = R"({"type": "ByteLevel", "add_prefix_space": false})";
  const Row rows[] = {
      {"\"normalizer\": null", R"("normalizer": {"type": "NFKC"})", "got NFKC"},
      {"\"normalizer\": null",
       R"("normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]})",
       "normalizer.normalizers[0]: got Lowercase"},
      {"\"post_processor\": {\"type\": \"ByteLevel\"}",
       R"("post_processor": {"type": "Sequence", "processors": [{"type": "Strange"}]})",
       "post_processor.processors[0]: got Strange"},
      {"\"decoder\": {\"type\": \"ByteLevel\"}", R"("decoder": {"type": "WordPiece"})",
       "got WordPiece"},
      {"\"decoder\": {\"type\": \"ByteLevel\"}",
       R"("decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Strip"}]})",
       "decoder.decoders[1]: got Strip"},
      {"\"type\": \"BPE\"", "\"type\": \"WordLevel\"", "got WordLevel"},
      {"\"end_of_word_suffix\": \"\"", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix"},
  };
  for (const Row& row : rows) {
    const std::string message = refusal(edited(row.from, row.to), ErrorCode::kUnsupported);
    EXPECT_NE(message.find(row.name), std::string::npos) << message;
  }
  const std::pair<std::string, const char*> pre_tokenizers[] = {
      {R"({"type": "Digits", "individual_digits": true})", "got Digits"},
      {R"({"type": "Whitespace"})", "got Whitespace"},
      {R"({"type": "Punctuation", "behavior": "Isolated"})", "got Punctuation"},
      {R"({"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated"})", "a Split"},
      {R"({"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"})", "a Split"},
      {byte_level, "got ByteLevel"}};
  for (const auto& [first, name] : pre_tokenizers) {
    const std::string message =
        refusal(edited(pre, R"("pre_tokenizer": {"type": "Sequence", "pretokenizers": [)" + first +
                                ", " + byte_level + "]}"),
                ErrorCode::kUnsupported);
    EXPECT_NE(message.find(name), std::string::npos) << message;
  }
}

TEST(TokenizerSideFiles, ContradictoryIdsNameBothFiles) {
  const auto message_of = [](auto edit) {
    TokenizerFiles files = testing::tiny_tokenizer_json();
    edit(files);
    return refusal(files, ErrorCode::kCorrupt);
  };
  EXPECT_EQ(message_of([](TokenizerFiles& f) { f.added_tokens_json = R"({"[PAD]": 261})"; }),
            "/m/added_tokens.json[\"[PAD]\"]: \"[PAD]\" has the id 261, but the id 260 in "
            "/m/tokenizer.json: added_tokens[1]: make them equal");
  EXPECT_EQ(message_of([](TokenizerFiles& f) { f.added_tokens_json = R"({"<new>": 260})"; }),
            "/m/added_tokens.json[\"<new>\"]: id 260 belongs to the token \"[PAD]\" already, in "
            "/m/tokenizer.json: added_tokens[1]");
  EXPECT_EQ(message_of([](TokenizerFiles& f) {
              f.tokenizer_config_json =
                  R"({"added_tokens_decoder": {"261": {"content": "<|end|>"}}})";
            }),
            "/m/tokenizer_config.json: added_tokens_decoder[\"261\"]: \"<|end|>\" has the id 261, "
            "but the id 259 in /m/tokenizer.json: added_tokens[0]: make them equal");
  EXPECT_EQ(message_of([](TokenizerFiles& f) { f.added_tokens_json = R"({"abc": 261})"; }),
            "/m/added_tokens.json[\"abc\"]: id 261, but /m/tokenizer.json: model.vocab gives "
            "\"abc\" the id 257");
}

TEST(TokenizerSideFiles, IdsMayHaveHoles) {
  TokenizerFiles files = edited("\"abc\": 257", "\"abc\": 300");
  files.added_tokens_json = R"({"<far>": 1000})";
  const Tokenizer tokenizer = Tokenizer::from_files(files);
  EXPECT_EQ(tokenizer.encode("abc<far>"), (Ids{300, 1000}));
  EXPECT_EQ(tokenizer.vocab_size(), 1001);
  EXPECT_EQ(tokenizer.decode({300, 257, 500, 1000}), "abc<far>");
  EXPECT_EQ(tokenizer.token_bytes(257), "");
  files.added_tokens_json = R"({"<far>": 2000000})";
  EXPECT_NE(refusal(files, ErrorCode::kUnsupported).find("too far above"), std::string::npos);
}

TEST(TokenizerSideFiles, APadTokenWithoutAnIdIsIgnored) {
  TokenizerFiles files = testing::tiny_vocab_and_merges();
  files.special_tokens_map_json =
      R"({"eos_token": "<|end|>", "pad_token": "[NEW]", "mask_token": "<mask>"})";
  const Tokenizer tokenizer = Tokenizer::from_files(files);
  EXPECT_EQ(tokenizer.token_id("[NEW]"), -1);
  // transformers gives 261 to [NEW] and 262 to <mask>.
  EXPECT_EQ(tokenizer.token_id("<mask>"), 262);
  EXPECT_TRUE(tokenizer.is_special(262));
  EXPECT_EQ(tokenizer.encode("<mask>", kParseSpecial), (Ids{262}));
}

TEST(TokenizerSideFiles, ARoleMakesATokenSpecial) {
  TokenizerFiles files = testing::tiny_tokenizer_json();
  EXPECT_FALSE(Tokenizer::from_files(files).is_special(260));
  files.tokenizer_config_json = R"({"eos_token": "[PAD]"})";
  EXPECT_TRUE(Tokenizer::from_files(files).is_special(260));
  files.tokenizer_config_json = R"({"eos_token": {"__type": "AddedToken", "content": "[PAD]"}})";
  EXPECT_TRUE(Tokenizer::from_files(files).is_special(260));
}

TEST(TokenizerSideFiles, OnlySpecialTokensAreHiddenFromTexts) {
  const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  EXPECT_EQ(tokenizer.encode("a[PAD]"), (Ids{'a', 260}));
  EXPECT_EQ(tokenizer.encode("<|end|>").size(), 7u);
  EXPECT_EQ(tokenizer.encode("<|end|>", kParseSpecial), (Ids{259}));
}

TEST(TokenizerSideFiles, APromptGetsTheTokensAroundIt) {
  TokenizerFiles files = testing::tiny_vocab_and_merges();
  files.tokenizer_config_json = R"({"add_bos_token": true, "add_eos_token": true})";
  const Tokenizer tokenizer = Tokenizer::from_files(files);
  EXPECT_EQ(tokenizer.encode("a"), (Ids{'a'}));
  EXPECT_EQ(tokenizer.encode("a", {.add_special = true}), (Ids{259, 'a', 259}));
  EXPECT_EQ(tokenizer.encode("", {.add_special = true}), (Ids{259, 259}));
  // Beside tokenizer.json its post_processor decides, as in transformers.
  TokenizerFiles whole = testing::tiny_tokenizer_json();
  whole.tokenizer_config_json = files.tokenizer_config_json;
  EXPECT_EQ(Tokenizer::from_files(whole).encode("a", {.add_special = true}), (Ids{'a'}));
}

TEST(TokenizerSideFiles, MergesTxtAsPeopleEditIt) {
  const Ids wanted = {257, 258, 256};
  for (const char* merges :
       {"a b\nab c\nĠ a", "#version: 0.2\r\na b\r\nab c\r\nĠ a\r\n", "a b \nab c\t\nĠ a  \n\n\n",
        "\xEF\xBB\xBF#version: 0.2\na b\nab c\nĠ a\n", "a b\n#version: 0.2\nab c\nĠ a\n",
        "a b\nab c\nĠ a\na b\n"}) {
    TokenizerFiles files = testing::tiny_vocab_and_merges();
    files.merges_txt = merges;
    EXPECT_EQ(Tokenizer::from_files(files).encode("abc aab"), wanted) << merges;
  }
}

// Of two ranks of one pair the last counts, as in `tokenizers`: "b c" goes before "a b" then.
TEST(TokenizerSideFiles, TheLastRankOfAMergeCounts) {
  TokenizerFiles files = edited(R"("merges": ["a b",)", R"("merges": ["a b", "b c", "a b",)");
  files.tokenizer_json =
      replace_once(*files.tokenizer_json, "\"abc\": 257", "\"abc\": 257, \"bc\": 261");
  EXPECT_EQ(Tokenizer::from_files(files).encode("abc"), (Ids{'a', 261}));
}

TEST(TokenizerSideFiles, VocabularyInEscapes) {
  const TokenizerFiles files = edited("\"Ġa\": 258", "\"\\u0120a\": 258");
  EXPECT_EQ(Tokenizer::from_files(files).encode(" a"), (Ids{258}));
}

TEST(TokenizerSideFiles, BytesWithoutATokenAreDropped) {
  const TokenizerFiles files = edited("\"Z\": 90, ", "");
  const Tokenizer tokenizer = Tokenizer::from_files(files);
  EXPECT_EQ(tokenizer.encode("aZb"), (Ids{256}));
  EXPECT_EQ(tokenizer.encode("Z"), Ids());
  EXPECT_EQ(tokenizer.encode(std::string(100, 'Z')), Ids());
  EXPECT_EQ(tokenizer.encode(std::string(60, 'Z') + "b"), (Ids{'b'}));
  TokenizerFiles unk = files;
  unk.tokenizer_json =
      replace_once(*unk.tokenizer_json, "\"unk_token\": null", "\"unk_token\": \"?\"");
  EXPECT_EQ(Tokenizer::from_files(unk).encode("aZZb"), (Ids{'a', '?', '?', 'b'}));
  unk.tokenizer_json =
      replace_once(*unk.tokenizer_json, "\"fuse_unk\": false", "\"fuse_unk\": true");
  EXPECT_EQ(Tokenizer::from_files(unk).encode("aZZb"), (Ids{'a', '?', 'b'}));
  EXPECT_EQ(Tokenizer::from_files(unk).encode(std::string(60, 'Z')), (Ids{'?'}));
  unk.tokenizer_json =
      replace_once(*unk.tokenizer_json, "\"unk_token\": \"?\"", "\"unk_token\": \"none\"");
  EXPECT_NE(refusal(unk, ErrorCode::kUnsupported).find("unk_token \"none\""), std::string::npos);
}

// Zero bytes and ill-formed UTF-8 beside a token that must stand alone.
TEST(TokenizerSideFiles, SingleWordsBesideAnyBytes) {
  TokenizerFiles files = edited("{\"id\": 260, \"content\": \"[PAD]\", \"single_word\": false",
                                "{\"id\": 260, \"content\": \"cab\", \"single_word\": true");
  const Tokenizer tokenizer = Tokenizer::from_files(files);
  EXPECT_EQ(tokenizer.encode(std::string_view("\0cab\xFF", 5)), (Ids{0, 260, 0xFF}));
  EXPECT_EQ(tokenizer.encode("cab"), (Ids{260}));
  for (const char* text : {"xcab", "cab_", "cab1",
                           "\xC3\xA9"
                           "cab"}) {
    for (const int32_t id : tokenizer.encode(text)) EXPECT_NE(id, 260) << text;
  }
}

TEST(TokenizerSideFiles, IgnoreMergesNeverGivesASpecialToken) {
  TokenizerFiles files = edited("\"fuse_unk\": false", "\"ignore_merges\": true");
  files.tokenizer_json =
      replace_once(*files.tokenizer_json, "\"use_regex\": true", "\"use_regex\": false");
  const Tokenizer tokenizer = Tokenizer::from_files(files);
  EXPECT_EQ(tokenizer.encode("abc"), (Ids{257}));
  EXPECT_EQ(tokenizer.encode("<|end|>").size(), 7u);
}

TEST(TokenizerSideFiles, ASentencePieceVocabularyIsRefused) {
  TokenizerFiles files = testing::tiny_vocab_and_merges();
  files.vocab_json = R"({"▁the": 0, "▁a": 1, "b": 2})";
  files.merges_txt = "";
  EXPECT_NE(refusal(files, ErrorCode::kUnsupported).find("only byte-level BPE"), std::string::npos);
}

}  // namespace
}  // namespace caravan
