#include "eval/table_rows.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/json_text.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

class TableRowsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = fs::temp_directory_path() / fmt::format("caravan_rows_{}.csv", ::getpid());
  }
  void TearDown() override { fs::remove(path_); }

  /// "LINE:row" of each row, or what is wrong without the path.
  std::vector<std::string> read(const std::string& text) const {
    std::ofstream(path_, std::ios::binary) << text;
    std::vector<std::string> rows;
    try {
      for_each_row(path_, [&](const boost::json::object& row, const std::string& where) {
        rows.push_back(where.substr(path_.size() + 1) + ":" + to_json_text(row));
        return true;
      });
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
      rows.push_back(std::string(error.what()).substr(path_.size() + 1));
    }
    return rows;
  }

  std::string path_;
};

using Rows = std::vector<std::string>;

TEST_F(TableRowsTest, FieldsAndQuotes) {
  const Rows expected{R"(2:{"id":"1","text":"a"})", R"(3:{"id":"","text":"b, \"c\"\r\nd"})",
                      R"(6:{"id":" x","text":""})"};
  const std::string text = "id,text\n1,a\n\"\",\"b, \"\"c\"\"\r\nd\"\n\n x,\n";
  EXPECT_EQ(read(text), expected);
  EXPECT_EQ(read("\xef\xbb\xbf" + text), expected);
  EXPECT_EQ(read("id,text\r\n1,a\r\n\"\",\"b, \"\"c\"\"\r\nd\"\r\n\r\n x,"), expected);
  EXPECT_EQ(read("\"id\",\"text\"\n1,5\" disk\n"), (Rows{R"(2:{"id":"1","text":"5\" disk"})"}));
  EXPECT_EQ(read("id\na\rb\n"), (Rows{R"(2:{"id":"a\rb"})"}));
  EXPECT_EQ(read(std::string("id\na\0b\n", 7)), (Rows{R"(2:{"id":"a\u0000b"})"}));
  EXPECT_EQ(read(""), Rows{});
  EXPECT_EQ(read("id,text\n"), Rows{});
}

TEST_F(TableRowsTest, Refusals) {
  EXPECT_EQ(read("a,b\n1\n"), Rows{"2: 1 fields, the first line names 2"});
  EXPECT_EQ(read("a,b\n1,2,3\n"), Rows{"2: 3 fields, the first line names 2"});
  EXPECT_EQ(read("a,a\n"), Rows{"1: two columns are named \"a\""});
  EXPECT_EQ(read("a\n\"x\n\n"), Rows{"2: field 1: the quote has no end"});
  EXPECT_EQ(read("a\n\"x\"y\n"),
            Rows{"2: field 1: text after the closing quote; a quote inside is written twice"});
  EXPECT_EQ(read("a\n\xe9\n"), Rows{"2: field 1 is not UTF-8"});
  EXPECT_EQ(read(std::string(5000, ',') + "\n"), Rows{"1: more than 4096 fields"});
}

TEST_F(TableRowsTest, QuoteThatIsMissingIsFoundInBoundedMemory) {
  const Rows rows = read("a\n\"" + std::string((64 << 20) + 1, 'x') + "\"\n");
  EXPECT_EQ(rows, Rows{"2: the row has more than 67108864 bytes; is a quote missing?"});
}

TEST_F(TableRowsTest, StopsWhenTold) {
  std::ofstream(path_) << "a\n1\n2\n\"broken";
  int count = 0;
  for_each_row(path_, [&](const boost::json::object&, const std::string&) { return ++count < 2; });
  EXPECT_EQ(count, 2);
}

}  // namespace
}  // namespace caravan
