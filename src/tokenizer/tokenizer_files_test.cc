// What the loaders say about files that are wrong: one row for each way.

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "core/error.h"
#include "tokenizer/tiny_tokenizer.h"
#include "tokenizer/tokenizer.h"

namespace caravan {
namespace {

constexpr ErrorCode kCorrupt = ErrorCode::kCorrupt;
constexpr ErrorCode kUnsupported = ErrorCode::kUnsupported;

// An edit of a good file: `from`, which is there once, becomes `to`; an empty `from` stands for the
// whole file.
struct BadFile {
  std::string from;
  std::string to;
  ErrorCode code;
  std::string message;
};

void expect_error(const std::function<void()>& work, ErrorCode code, const std::string& message) {
  try {
    work();
    ADD_FAILURE() << "no error; wanted: " << message;
  } catch (const Error& e) {
    EXPECT_EQ(e.what(), message);
    EXPECT_STREQ(error_code_name(e.code()), error_code_name(code)) << message;
  }
}

// `file` is the member of TokenizerFiles that each row edits.
void expect_refused(const TokenizerFiles& good, std::optional<std::string> TokenizerFiles::*file,
                    const std::vector<BadFile>& rows) {
  for (const BadFile& row : rows) {
    TokenizerFiles files = good;
    files.*file =
        row.from.empty() ? row.to : testing::replace_once(*(good.*file), row.from, row.to);
    expect_error([&] { Tokenizer::from_files(files); }, row.code, row.message);
  }
}

TEST(BadTokenizerFiles, TokenizerJson) {
  expect_refused(
      testing::tiny_tokenizer_json(), &TokenizerFiles::tokenizer_json,
      {
          {"", "", kCorrupt, "/m/tokenizer.json: offset 0: not valid JSON: incomplete JSON"},
          {"", "{", kCorrupt, "/m/tokenizer.json: offset 1: not valid JSON: incomplete JSON"},
          {"", "[]", kCorrupt, "/m/tokenizer.json: got an array, expected an object"},
          {"", "{}", kUnsupported,
           "/m/tokenizer.json: pre_tokenizer: got null, only ByteLevel is supported"},
          {"\"version\": \"1.0\"", "\"version\": \"2.0\"", kUnsupported,
           "/m/tokenizer.json: version: got \"2.0\", expected \"1.0\""},
          {"\"version\": \"1.0\"", "\"version\": 1", kCorrupt,
           "/m/tokenizer.json: version: got the number 1, expected a string"},
          {"\"truncation\": null", "\"extra\": null", kUnsupported,
           "/m/tokenizer.json: the field \"extra\" is not known and might change the token ids"},
          {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", kUnsupported,
           "/m/tokenizer.json: normalizer: got NFC, only null is supported"},
          {"\"normalizer\": null", "\"normalizer\": {}", kCorrupt,
           "/m/tokenizer.json: normalizer: the field \"type\" is missing"},
          {"\"normalizer\": null", "\"normalizer\": \"NFC\"", kCorrupt,
           "/m/tokenizer.json: normalizer: got the string \"NFC\", expected an object"},
          {"\"pre_tokenizer\": {\"type\": \"ByteLevel\"",
           "\"pre_tokenizer\": {\"type\": \"Whitespace\"", kUnsupported,
           "/m/tokenizer.json: pre_tokenizer: got Whitespace, only one ByteLevel is supported"},
          {"\"add_prefix_space\": false", "\"add_prefix_space\": 0", kCorrupt,
           "/m/tokenizer.json: pre_tokenizer.add_prefix_space: got the number 0, expected true or "
           "false"},
          {"\"use_regex\": true", "\"use_regex\": \"yes\"", kCorrupt,
           "/m/tokenizer.json: pre_tokenizer.use_regex: got the string \"yes\", expected true or "
           "false"},
          {"\"use_regex\": true", "\"behavior\": true", kUnsupported,
           "/m/tokenizer.json: pre_tokenizer: the field \"behavior\" is not known and might change "
           "the token ids"},
          {"\"post_processor\": {\"type\": \"ByteLevel\"}",
           "\"post_processor\": {\"type\": \"TemplateProcessing\"}", kCorrupt,
           "/m/tokenizer.json: post_processor: the field \"single\" is missing"},
          {"\"post_processor\": {\"type\": \"ByteLevel\"}", "\"post_processor\": {\"type\": 7}",
           kCorrupt, "/m/tokenizer.json: post_processor.type: got the number 7, expected a string"},
          {"\"decoder\": {\"type\": \"ByteLevel\"}", "\"decoder\": null", kUnsupported,
           "/m/tokenizer.json: decoder: got null, only ByteLevel is supported"},
          {"\"decoder\": {\"type\": \"ByteLevel\"}", "\"decoder\": {\"type\": \"Metaspace\"}",
           kUnsupported, "/m/tokenizer.json: decoder: got Metaspace, only ByteLevel is supported"},
          {"\"decoder\": {\"type\": \"ByteLevel\"}", "\"decoder\": []", kCorrupt,
           "/m/tokenizer.json: decoder: got an array, expected an object"},
          {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", kUnsupported,
           "/m/tokenizer.json: model.type: got Unigram, only BPE is supported"},
          {"\"type\": \"BPE\"", "\"type\": 1", kCorrupt,
           "/m/tokenizer.json: model.type: got the number 1, expected a string"},
          {"\"dropout\": null", "\"dropout\": 0.1", kUnsupported,
           "/m/tokenizer.json: model.dropout: got the number 0.1, only null and 0 are supported"},
          {"\"continuing_subword_prefix\": \"\"", "\"continuing_subword_prefix\": \"##\"",
           kUnsupported,
           "/m/tokenizer.json: model.continuing_subword_prefix: got \"##\", only \"\" is "
           "supported"},
          {"\"end_of_word_suffix\": \"\"", "\"end_of_word_suffix\": \"</w>\"", kUnsupported,
           "/m/tokenizer.json: model.end_of_word_suffix: got \"</w>\", only \"\" is supported"},
          {"\"fuse_unk\": false", "\"max_length\": 5", kUnsupported,
           "/m/tokenizer.json: model: the field \"max_length\" is not known and might change the "
           "token ids"},
          {"\"merges\": [\"a b\", \"ab c\", [\"Ġ\", \"a\"]]", "\"merges\": {\"a\": \"b\"}",
           kCorrupt, "/m/tokenizer.json: model.merges: got an object, expected an array"},
          {"\"abc\": 257", "\"abc\": \"257\"", kCorrupt,
           "/m/tokenizer.json: model.vocab[\"abc\"]: got the string \"257\", expected an id, 0 or "
           "more"},
          {"\"abc\": 257", "\"abc\": -1", kCorrupt,
           "/m/tokenizer.json: model.vocab[\"abc\"]: got the number -1, expected an id, 0 or more"},
          {"\"abc\": 257", "\"abc\": 257.5", kCorrupt,
           "/m/tokenizer.json: model.vocab[\"abc\"]: got the number 257.5, expected an id, 0 or "
           "more"},
          {"\"abc\": 257", "\"abc\": 99999999999", kUnsupported,
           "/m/tokenizer.json: model.vocab[\"abc\"]: the id 99999999999 is too far above the 261 "
           "tokens: at most 1048576 ids without a token are supported"},
          {"\"abc\": 257", "\"abc\": 1e3", kCorrupt,
           "/m/tokenizer.json: model.vocab[\"abc\"]: got the number 1000, expected an id, 0 or "
           "more"},
          {"\"abc\": 257", "\"abc\": 256", kCorrupt,
           "/m/tokenizer.json: model.vocab[\"abc\"]: id 256 belongs to the token \"ab\" already"},
          {"\"abc\": 257", "\"a bc\": 257", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: the merged token \"abc\" is not in the vocabulary"},
          {"\"abc\": 257", "\"▁abc\": 257", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: the merged token \"abc\" is not in the vocabulary"},
          {"\"abc\": 257", "\"ab\": 257", kCorrupt,
           "/m/tokenizer.json: offset 3440: the key \"ab\" appears twice in one object"},
          {"\"abc\": 257, ", "", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: the merged token \"abc\" is not in the vocabulary"},
          {"[\"Ġ\", \"a\"]", "[\"Ġ\"]", kCorrupt,
           "/m/tokenizer.json: model.merges[2]: got an array of 1, expected two tokens"},
          {"[\"Ġ\", \"a\"]", "[\"Ġ\", 1]", kCorrupt,
           "/m/tokenizer.json: model.merges[2][1]: got the number 1, expected a string"},
          {"[\"Ġ\", \"a\"]", "5", kCorrupt,
           "/m/tokenizer.json: model.merges[2]: got the number 5, expected an array"},
          {"[\"Ġ\", \"a\"]", "[\"Ġ\", \"\"]", kCorrupt,
           "/m/tokenizer.json: model.merges[2]: the right token \"\" is not in the vocabulary"},
          {"\"ab c\"", "\"abc\"", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: got \"abc\", expected two tokens with one space "
           "between them"},
          {"\"ab c\"", "\"a b c\"", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: got \"a b c\", expected two tokens with one space "
           "between them"},
          {"\"ab c\"", "\" c\"", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: got \" c\", expected two tokens with one space "
           "between them"},
          {"\"ab c\"", "\"zz c\"", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: the left token \"zz\" is not in the vocabulary"},
          {"\"ab c\"", "\"ab zz\"", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: the right token \"zz\" is not in the vocabulary"},
          {"\"ab c\"", "\"b c\"", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: the merged token \"bc\" is not in the vocabulary"},
          {"\"ab c\"", "\"ab ▁\"", kCorrupt,
           "/m/tokenizer.json: model.merges[1]: the right token \"\\xe2\\x96\\x81\" is not in the "
           "vocabulary"},
          {"\"added_tokens\": [", "\"added_tokens\": [1,", kCorrupt,
           "/m/tokenizer.json: added_tokens[0]: got the number 1, expected an object"},
          {"{\"id\": 259,", "{", kCorrupt,
           "/m/tokenizer.json: added_tokens[0]: the field \"id\" is missing"},
          {"\"content\": \"[PAD]\",", "", kCorrupt,
           "/m/tokenizer.json: added_tokens[1]: the field \"content\" is missing"},
          {"\"content\": \"[PAD]\"", "\"content\": 5", kCorrupt,
           "/m/tokenizer.json: added_tokens[1].content: got the number 5, expected a string"},
          {"\"content\": \"[PAD]\"", "\"content\": \"<|end|>\"", kCorrupt,
           "/m/tokenizer.json: added_tokens[1]: \"<|end|>\" has the id 260, but the id 259 in "
           "/m/tokenizer.json: added_tokens[0]: make them equal"},
          {"\"content\": \"[PAD]\"", std::string("\"content\": \"") + std::string(1025, 'x') + "\"",
           kUnsupported,
           "/m/tokenizer.json: added_tokens[1]: the added token has 1025 bytes, at most 1024 are "
           "supported"},
          {"\"id\": 260", "\"id\": 259", kCorrupt,
           "/m/tokenizer.json: added_tokens[1]: id 259 belongs to the token \"<|end|>\" already, "
           "in "
           "/m/tokenizer.json: added_tokens[0]"},
          {"\"id\": 260", "\"id\": 3", kCorrupt,
           "/m/tokenizer.json: added_tokens[1]: id 3 belongs to the token \"\\x03\" already"},
          {"\"id\": 260", "\"id\": null", kCorrupt,
           "/m/tokenizer.json: added_tokens[1].id: got null, expected an id, 0 or more"},
          {"\"id\": 259", "\"id\": 258", kCorrupt,
           "/m/tokenizer.json: added_tokens[0]: id 258, but /m/tokenizer.json: model.vocab gives "
           "\"<|end|>\" the id 259"},
          {"\"normalized\": true, \"special\": false", "\"normalized\": true, \"special\": 0",
           kCorrupt,
           "/m/tokenizer.json: added_tokens[1].special: got the number 0, expected true or false"},
          {"\"normalized\": true, \"special\": false", "\"weight\": true, \"special\": false",
           kUnsupported,
           "/m/tokenizer.json: added_tokens[1]: the field \"weight\" is not known and might change "
           "the token ids"},
          {"\"unk_token\": null", "\"dropout\": null", kCorrupt,
           "/m/tokenizer.json: offset 661: the key \"dropout\" appears twice in one object"},
          {"\"merges\": [\"a b\", \"ab c\", [\"Ġ\", \"a\"]]", "\"unk_id\": []", kUnsupported,
           "/m/tokenizer.json: model: the field \"unk_id\" is not known and might change the token "
           "ids"},
      });
}

TEST(BadTokenizerFiles, ConfigBesideTokenizerJson) {
  expect_refused(
      testing::tiny_tokenizer_json(), &TokenizerFiles::tokenizer_config_json,
      {
          {"", "{\"add_prefix_space\": \"no\"}", kCorrupt,
           "/m/tokenizer_config.json: add_prefix_space: got the string \"no\", expected true or "
           "false"},
          {"", "[1]", kCorrupt, "/m/tokenizer_config.json: got an array, expected an object"},
      });
}

TEST(BadTokenizerFiles, VocabJson) {
  expect_refused(testing::tiny_vocab_and_merges(), &TokenizerFiles::vocab_json,
                 {
                     {"", "", kCorrupt, "/m/vocab.json: offset 0: not valid JSON: incomplete JSON"},
                     {"", "[]", kCorrupt, "/m/vocab.json: got an array, expected an object"},
                     {"", "{}", kUnsupported,
                      "/m/vocab.json: no byte has a token; only byte-level BPE is supported"},
                     {"\"abc\": 257", "\"abc\": null", kCorrupt,
                      "/m/vocab.json[\"abc\"]: got null, expected an id, 0 or more"},
                     {"\"abc\": 257", "\"abc\": 1", kCorrupt,
                      "/m/vocab.json[\"abc\"]: id 1 belongs to the token \"\\x01\" already"},
                     {"\"abc\": 257", "\"▁abc\": 257", kCorrupt,
                      "/m/merges.txt: line 3: the merged token \"abc\" is not in the vocabulary"},
                     {"\"abc\": 257, ", "", kCorrupt,
                      "/m/merges.txt: line 3: the merged token \"abc\" is not in the vocabulary"},
                     {"\"!\": 33", "\"!\": 33, \"ab\": 1", kCorrupt,
                      "/m/vocab.json: offset 2627: the key \"ab\" appears twice in one object"},
                 });
}

TEST(BadTokenizerFiles, MergesTxt) {
  expect_refused(
      testing::tiny_vocab_and_merges(), &TokenizerFiles::merges_txt,
      {
          {"", "a b\n\nab c\n", kCorrupt,
           "/m/merges.txt: line 2: got \"\", expected two tokens with one space between them"},
          {"", "a b\nab  c\n", kCorrupt,
           "/m/merges.txt: line 2: got \"ab  c\", expected two tokens with one space between them"},
          {"", "a b\nabc\n", kCorrupt,
           "/m/merges.txt: line 2: got \"abc\", expected two tokens with one space between them"},
          {"", "a b\nb c\n", kCorrupt,
           "/m/merges.txt: line 2: the merged token \"bc\" is not in the vocabulary"},
          {"", "▁ a\n", kCorrupt,
           "/m/merges.txt: line 1: the left token \"\\xe2\\x96\\x81\" is not in the vocabulary"},
          {"ab c", "\xff c", kCorrupt,
           "/m/merges.txt: line 3: the left token \"\\xff\" is not in the vocabulary"},
          {"ab c", "ab q", kCorrupt,
           "/m/merges.txt: line 3: the merged token \"abq\" is not in the vocabulary"},
          {"ab c", "ab c d", kCorrupt,
           "/m/merges.txt: line 3: got \"ab c d\", expected two tokens with one space between "
           "them"},
      });
}

TEST(BadTokenizerFiles, AddedTokensJson) {
  expect_refused(
      testing::tiny_vocab_and_merges(), &TokenizerFiles::added_tokens_json,
      {
          {"", "[]", kCorrupt, "/m/added_tokens.json: got an array, expected an object"},
          {"", "{\"[PAD]\": \"260\"}", kCorrupt,
           "/m/added_tokens.json[\"[PAD]\"]: got the string \"260\", expected an id, 0 or more"},
          {"", "{\"[PAD]\": 5}", kCorrupt,
           "/m/added_tokens.json[\"[PAD]\"]: id 5 belongs to the token \"\\x05\" already"},
          {"", "{\"[PAD]\": 260, \"ab\": 3}", kCorrupt,
           "/m/added_tokens.json[\"ab\"]: id 3, but /m/vocab.json gives \"ab\" the id 256"},
          {"", "{\"[PAD]\": 260", kCorrupt,
           "/m/added_tokens.json: offset 13: not valid JSON: incomplete JSON"},
      });
}

TEST(BadTokenizerFiles, SpecialTokensMapJson) {
  expect_refused(
      testing::tiny_vocab_and_merges(), &TokenizerFiles::special_tokens_map_json,
      {
          {"", "[]", kCorrupt, "/m/special_tokens_map.json: got an array, expected an object"},
          {"", "{\"pad_token\": 5}", kCorrupt,
           "/m/special_tokens_map.json: pad_token: got the number 5, expected a string"},
          {"", "{\"pad_token\": {\"lstrip\": true}}", kCorrupt,
           "/m/special_tokens_map.json: pad_token: the field \"content\" is missing"},
          {"", "{\"additional_special_tokens\": \"[PAD]\"}", kCorrupt,
           "/m/special_tokens_map.json: additional_special_tokens: got the string \"[PAD]\", "
           "expected an array"},
      });
}

TEST(BadTokenizerFiles, TokenizerConfigJson) {
  expect_refused(
      testing::tiny_vocab_and_merges(), &TokenizerFiles::tokenizer_config_json,
      {
          {"", "[]", kCorrupt, "/m/tokenizer_config.json: got an array, expected an object"},
          {"", "{\"add_prefix_space\": 1}", kCorrupt,
           "/m/tokenizer_config.json: add_prefix_space: got the number 1, expected true or false"},
          {"", "{\"added_tokens_decoder\": []}", kCorrupt,
           "/m/tokenizer_config.json: added_tokens_decoder: got an array, expected an object"},
          {"", "{\"added_tokens_decoder\": {\"x\": {\"content\": \"[PAD]\"}}}", kCorrupt,
           "/m/tokenizer_config.json: added_tokens_decoder[\"x\"]: the key is not an id"},
          {"", "{\"added_tokens_decoder\": {\"260\": \"[PAD]\"}}", kCorrupt,
           "/m/tokenizer_config.json: added_tokens_decoder[\"260\"]: got the string \"[PAD]\", "
           "expected an object"},
          {"", "{\"added_tokens_decoder\": {\"261\": {\"content\": \"[PAD]\"}}}", kCorrupt,
           "/m/added_tokens.json[\"[PAD]\"]: \"[PAD]\" has the id 260, but the id 261 in "
           "/m/tokenizer_config.json: added_tokens_decoder[\"261\"]: make them equal"},
      });
}

// A folder of files that goes away again.
class Folder {
 public:
  Folder() : path_(::testing::TempDir() + "caravan_tokenizer_files." + std::to_string(getpid())) {
    clear();
  }
  ~Folder() { std::filesystem::remove_all(path_); }

  void clear() {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(path_ + "/" + name) << text;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(TokenizerDirectory, ReadsEitherForm) {
  Folder folder;
  folder.write("tokenizer.json", *testing::tiny_tokenizer_json().tokenizer_json);
  EXPECT_EQ(Tokenizer::from_directory(folder.path()).vocab_size(), 261);
  folder.clear();
  const TokenizerFiles files = testing::tiny_vocab_and_merges();
  folder.write("vocab.json", *files.vocab_json);
  folder.write("merges.txt", *files.merges_txt);
  EXPECT_EQ(Tokenizer::from_directory(folder.path()).vocab_size(), 260);
  folder.write("added_tokens.json", *files.added_tokens_json);
  EXPECT_EQ(Tokenizer::from_directory(folder.path()).token_id("[PAD]"), 260);
  EXPECT_FALSE(Tokenizer::from_directory(folder.path()).is_special(259));
  folder.write("special_tokens_map.json", *files.special_tokens_map_json);
  EXPECT_TRUE(Tokenizer::from_directory(folder.path()).is_special(259));
  folder.write("tokenizer_config.json", "{\"add_prefix_space\": true}");
  EXPECT_EQ(Tokenizer::from_directory(folder.path()).encode("a"), (std::vector<int32_t>{258}));
}

TEST(TokenizerDirectory, SaysWhatIsMissing) {
  Folder folder;
  const auto load = [&] { Tokenizer::from_directory(folder.path()); };
  expect_error(
      load, ErrorCode::kNotFound,
      folder.path() + ": no tokenizer: expected tokenizer.json, or vocab.json and merges.txt");
  folder.write("vocab.json", "{}");
  expect_error(load, ErrorCode::kNotFound,
               folder.path() + ": vocab.json is there, but no merges.txt");
  folder.clear();
  folder.write("merges.txt", "");
  expect_error(load, ErrorCode::kNotFound,
               folder.path() + ": merges.txt is there, but no vocab.json");
  expect_error(
      [&] { Tokenizer::from_directory(folder.path() + "/none"); }, ErrorCode::kNotFound,
      folder.path() + "/none: no tokenizer: expected tokenizer.json, or vocab.json and merges.txt");
}

TEST(TokenizerDirectory, ATokenizerThatCannotBeReadIsAReason) {
  Folder folder;
  const TokenizerOrReason missing = try_load_tokenizer(folder.path());
  EXPECT_FALSE(missing);
  EXPECT_EQ(missing.reason, folder.path() +
                                ": no tokenizer: expected tokenizer.json, or "
                                "vocab.json and merges.txt");
  expect_error([&] { missing.value(); }, ErrorCode::kNotFound, missing.reason);
  folder.write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n");
  EXPECT_EQ(try_load_tokenizer(folder.path()).code, ErrorCode::kCorrupt);
  folder.write("tokenizer.json",
               testing::replace_once(*testing::tiny_tokenizer_json().tokenizer_json,
                                     "\"type\": \"BPE\"", "\"type\": \"WordPiece\""));
  const TokenizerOrReason unsupported = try_load_tokenizer(folder.path());
  EXPECT_FALSE(unsupported);
  EXPECT_NE(unsupported.reason.find("got WordPiece"), std::string::npos) << unsupported.reason;
  expect_error([&] { unsupported.value(); }, ErrorCode::kUnsupported, unsupported.reason);
  folder.write("tokenizer.json", *testing::tiny_tokenizer_json().tokenizer_json);
  const TokenizerOrReason loaded = try_load_tokenizer(folder.path());
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded.reason, "");
  EXPECT_EQ(loaded.value().vocab_size(), 261);
}

TEST(TokenizerDirectory, RefusesFilesThatAreTooLarge) {
  Folder folder;
  folder.write("tokenizer.json", "");
  std::filesystem::resize_file(folder.path() + "/tokenizer.json", (size_t{64} << 20) + 1);
  EXPECT_THROW(Tokenizer::from_directory(folder.path()), Error);
}

}  // namespace
}  // namespace caravan
