#include "eval/dataset.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

const std::string kParquet = CARAVAN_SOURCE_DIR "/tests/data/parquet/";

class DatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / fmt::format("caravan_dataset_{}", ::getpid());
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string write(const std::string& name, const std::string& text) const {
    const fs::path path = directory_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }
  std::string copy(const std::string& parquet, const std::string& name) const {
    const fs::path path = directory_ / name;
    fs::create_directories(path.parent_path());
    fs::copy_file(kParquet + parquet, path);
    return path.string();
  }

  fs::path directory_;
};

std::vector<DatasetRow> read(const std::string& path, int64_t max_rows = -1) {
  DatasetOptions options;
  options.path = path;
  options.max_rows = max_rows;
  return read_dataset(options);
}

void expect_refused(const DatasetOptions& options, ErrorCode code, const std::string& message) {
  try {
    read_dataset(options);
    FAIL() << "read: " << options.path;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

void expect_refused(const std::string& path, ErrorCode code, const std::string& message) {
  DatasetOptions options;
  options.path = path;
  expect_refused(options, code, message);
}

bool operator==(const DatasetRow& a, const DatasetRow& b) {
  return a.id == b.id && a.article == b.article && a.summary == b.summary;
}

TEST_F(DatasetTest, KnownPairsOfNames) {
  for (const auto& [article, summary] : {std::pair{"article", "highlights"},
                                         {"document", "summary"},
                                         {"article", "summary"},
                                         {"text", "summary"},
                                         {"dialogue", "summary"},
                                         {"src", "tgt"}}) {
    const std::string path =
        write("rows.jsonl", fmt::format("{{\"{}\": \"A\", \"x\": 1, \"{}\": \"S\", \"id\": 17}}\n\n"
                                        "{{\"{}\": \"B\\n\", \"{}\": \"\"}}",
                                        article, summary, article, summary));
    const auto rows = read(path);
    ASSERT_EQ(rows.size(), 2u);
    EXPECT_TRUE((rows[0] == DatasetRow{"17", "A", "S"})) << article;
    EXPECT_TRUE((rows[1] == DatasetRow{"1", "B\n", ""})) << article;
  }
}

TEST_F(DatasetTest, GivenNames) {
  DatasetOptions options;
  options.path =
      write("rows.jsonl", R"({"article": "A", "highlights": "H", "body": "B", "tl": "T"})");
  options.article_key = "body";
  EXPECT_EQ(read_dataset(options)[0].article, "B");
  EXPECT_EQ(read_dataset(options)[0].summary, "H");
  options.summary_key = "tl";
  EXPECT_EQ(read_dataset(options)[0].summary, "T");
  options.summary_key = "tldr";
  expect_refused(options, ErrorCode::kCorrupt, "rows.jsonl:1: no \"tldr\", there is \"article\", ");
}

TEST_F(DatasetTest, ArrayAndLimit) {
  const std::string path = write("rows.json", R"( [{"text": "A", "summary": "S"},
      {"text": "B", "summary": "T", "id": "b"}])");
  EXPECT_EQ(read(path).size(), 2u);
  EXPECT_EQ(read(path)[1].id, "b");
  EXPECT_EQ(read(path, 1).size(), 1u);
}

TEST_F(DatasetTest, EveryFormHasTheSameRows) {
  const auto expected = read(kParquet + "rows.jsonl");
  ASSERT_EQ(expected.size(), 23u);
  for (const char* name :
       {"snappy", "plain_gzip", "v2_zstd", "v2_plain_none", "row_groups", "fallback"}) {
    const auto rows = read(kParquet + name + ".parquet");
    ASSERT_EQ(rows.size(), expected.size()) << name;
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_TRUE(rows[i] == expected[i]) << name << i;
    EXPECT_EQ(read(kParquet + name + ".parquet", 9).size(), 9u);
  }
}

TEST_F(DatasetTest, DirectoriesOfTheHub) {
  copy("snappy.parquet", "a/3.0.0/test-00000-of-00002.parquet");
  copy("row_groups.parquet", "a/3.0.0/test-00001-of-00002.parquet");
  copy("types.parquet", "a/3.0.0/train-00000-of-00001.parquet");
  write("a/README.md", "test");
  const auto rows = read(directory_ / "a");
  ASSERT_EQ(rows.size(), 46u);
  EXPECT_EQ(rows[22].id, "row-0022");
  EXPECT_EQ(rows[23].id, "row-0000");
  EXPECT_EQ(read(directory_ / "a", 30).size(), 30u);
  fs::remove(directory_ / "a/3.0.0/test-00001-of-00002.parquet");
  expect_refused(directory_ / "a", ErrorCode::kNotFound, "1 of 2 shards of \"test\"");

  copy("snappy.parquet", "b/default/test/0000.parquet");
  EXPECT_EQ(read(directory_ / "b").size(), 23u);
  write("c/test.jsonl", R"({"text": "A", "summary": "S"})");
  write("c/testament.jsonl", "{}");
  EXPECT_EQ(read(directory_ / "c").size(), 1u);
  DatasetOptions options;
  options.path = directory_ / "c";
  options.split = "validation";
  expect_refused(options, ErrorCode::kInvalidArgument, "no validation*.parquet");
  write("d/1.0.0/test.jsonl", "{}");
  write("d/2.0.0/test.jsonl", "{}");
  expect_refused(directory_ / "d", ErrorCode::kInvalidArgument, "in 2 folders: give one of");
}

TEST_F(DatasetTest, CsvAsKaggleGivesIt) {
  const std::string path =
      write("test.csv",
            "id,article,highlights\r\n"
            "92c514c9,\"LONDON, \"\"England\"\" (Reuters)\r\nsaid so\",One .\nTwo\n"
            "f00,Short,\"S\"\n");
  // A line feed in a field without quotes ends the row.
  expect_refused(path, ErrorCode::kCorrupt, "test.csv:4: 1 fields, the first line names 3");
  const std::string good =
      write("test.csv",
            "id,article,highlights\r\n"
            "92c514c9,\"LONDON, \"\"England\"\" (Reuters)\r\nsaid so\",\"One .\nTwo\"\n"
            "f00,Short,\"S\"\n");
  const auto rows = read(good);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_TRUE((rows[0] ==
               DatasetRow{"92c514c9", "LONDON, \"England\" (Reuters)\r\nsaid so", "One .\nTwo"}));
  EXPECT_TRUE((rows[1] == DatasetRow{"f00", "Short", "S"}));
  EXPECT_EQ(read(good, 1).size(), 1u);
  expect_refused(write("other.csv", "a,b\n1,2\n"), ErrorCode::kCorrupt, "there is \"a\", \"b\"");
  expect_refused(write("header.csv", "article,summary\n"), ErrorCode::kCorrupt, "no rows");
}

TEST_F(DatasetTest, ByteOrderMarks) {
  const std::string row = R"({"article": "A", "summary": "S"})";
  EXPECT_EQ(read(write("a.jsonl", "\xef\xbb\xbf" + row + "\n")).size(), 1u);
  EXPECT_EQ(read(write("a.json", "\xef\xbb\xbf [" + row + "]")).size(), 1u);
  EXPECT_EQ(read(write("a.csv",
                       "\xef\xbb\xbf"
                       "article,summary\nA,S\n"))
                .size(),
            1u);
}

TEST_F(DatasetTest, OneFormOfADirectoryIsRead) {
  write("a/test.json", R"([{"article": "json", "summary": "S"}])");
  write("a/test.csv", "article,summary\ncsv,S\n");
  EXPECT_EQ(read(directory_ / "a")[0].article, "json");
  EXPECT_EQ(read(directory_ / "a").size(), 1u);
  fs::remove(directory_ / "a/test.json");
  EXPECT_EQ(read(directory_ / "a")[0].article, "csv");
}

TEST_F(DatasetTest, LongTextsAndPointersAreRefused) {
  const std::string text((size_t{16} << 20) + 1, 'x');
  const std::string message = "\"article\" has 16777217 bytes, at most 16777216 are read";
  expect_refused(write("a", R"({"summary": "S", "article": ")" + text + "\"}"),
                 ErrorCode::kUnsupported, message);
  expect_refused(write("a", R"([{"summary": "S", "article": ")" + text + "\"}]"),
                 ErrorCode::kUnsupported, message);
  expect_refused(write("a.csv", "article,summary\n" + text + ",S\n"), ErrorCode::kUnsupported,
                 message);
  for (const char* name : {"a.jsonl", "a.parquet", "a.csv"}) {
    expect_refused(
        write(name, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ErrorCode::kCorrupt, "a Git LFS pointer, not the file; run git lfs pull");
  }
}

TEST_F(DatasetTest, Refusals) {
  expect_refused(directory_ / "none", ErrorCode::kNotFound, "no such file or directory");
  expect_refused(write("empty", ""), ErrorCode::kCorrupt, "empty: no rows");
  expect_refused(write("blank", "\n \n"), ErrorCode::kCorrupt, "blank: no rows");
  expect_refused(kParquet + "empty.parquet", ErrorCode::kCorrupt, "empty.parquet: no rows");
  expect_refused(write("csv", "id,article\n"), ErrorCode::kCorrupt,
                 "neither Parquet nor JSON: begins with \"id,artic\"; name it .csv if it is CSV");
  const std::string good = R"({"article": "A", "highlights": "S"})"
                           "\n";
  expect_refused(write("a", good + R"({"article": "A"})"), ErrorCode::kCorrupt,
                 "a:2: no \"highlights\"");
  expect_refused(write("b", good + R"({"article": 1, "highlights": "S"})"), ErrorCode::kCorrupt,
                 "b:2: \"article\" is not a string");
  expect_refused(write("c", good + "{\"article\": \"\xff\", \"highlights\": \"S\"}"),
                 ErrorCode::kCorrupt, "c:2: ");
  expect_refused(write("d", good + "[1]"), ErrorCode::kCorrupt, "d:2: expected a JSON object");
  expect_refused(write("e", good + "{\"article\": \"A\", \"highli"), ErrorCode::kCorrupt, "e:2: ");
  expect_refused(write("f", R"({"question": "Q"})"), ErrorCode::kCorrupt,
                 "there is \"question\": name them with --article-key");
  expect_refused(write("g", R"({"text": "Q", "summary": "S", "id": true})"), ErrorCode::kCorrupt,
                 "g:1: \"id\" is neither text nor a whole number");
  expect_refused(kParquet + "nulls.parquet", ErrorCode::kCorrupt, "row 1: \"highlights\" is null");
  expect_refused(kParquet + "types.parquet", ErrorCode::kCorrupt,
                 "there is \"article\" (INT64), \"highlights.list.element\" (list of BYTE_ARRAY)");
  expect_refused(kParquet + "lz4.parquet", ErrorCode::kUnsupported, "compressed with LZ4");
}

}  // namespace
}  // namespace caravan
