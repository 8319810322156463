#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "format/parquet.h"

namespace caravan {
namespace {

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
  return out;
}

std::string le32(size_t value) {
  std::string out(4, '\0');
  for (size_t i = 0; i < 4; ++i) out[i] = static_cast<char>(value >> (8 * i));
  return out;
}

/// A structure in Thrift's compact protocol; fields in ascending order.
class Struct {
 public:
  Struct& integer(int id, int64_t value, int type = 6) {
    field(id, type);
    bytes_ += varint(static_cast<uint64_t>(value) << 1);
    return *this;
  }
  Struct& i32(int id, int64_t value) { return integer(id, value, 5); }
  Struct& text(int id, const std::string& value) {
    field(id, 8);
    bytes_ += varint(value.size()) + value;
    return *this;
  }
  Struct& child(int id, const std::string& value) {
    field(id, 12);
    bytes_ += value;
    return *this;
  }
  Struct& list(int id, int element, const std::vector<std::string>& items) {
    field(id, 9);
    bytes_.push_back(static_cast<char>(0xf0 | element));
    bytes_ += varint(items.size());
    for (const std::string& item : items) bytes_ += item;
    return *this;
  }
  std::string bytes() const { return bytes_ + '\0'; }

 private:
  void field(int id, int type) {
    bytes_.push_back(static_cast<char>((id - last_) << 4 | type));
    last_ = id;
  }
  std::string bytes_;
  int last_ = 0;
};

constexpr int kStruct = 12, kBinary = 8;

std::string dictionary_page(const std::vector<std::string>& strings) {
  std::string body;
  for (const std::string& text : strings) body += le32(text.size()) + text;
  const auto size = static_cast<int64_t>(body.size());
  const std::string header =
      Struct().i32(1, static_cast<int64_t>(strings.size())).i32(2, 0).bytes();
  return Struct().i32(1, 2).i32(2, size).i32(3, size).child(7, header).bytes() + body;
}

std::string data_page(int64_t num_values, int encoding, const std::string& body) {
  const auto size = static_cast<int64_t>(body.size());
  const std::string header = Struct().i32(1, num_values).i32(2, encoding).i32(3, 3).bytes();
  return Struct().i32(1, 0).i32(2, size).i32(3, size).child(5, header).bytes() + body;
}

/// `num_values` times entry 0 of the dictionary: one run of 1 bit.
std::string repeated_page(uint64_t num_values) {
  return data_page(static_cast<int64_t>(num_values), 8, "\x01" + varint(num_values << 1) + '\0');
}

/// One column "a" whose row groups all have the same pages.
std::string parquet_file(const std::string& pages, int64_t num_rows, size_t num_groups = 1,
                         bool is_optional = false) {
  const std::string meta = Struct()
                               .i32(1, 6)
                               .list(3, kBinary,
                                     {"\x01"
                                      "a"})
                               .i32(4, 0)
                               .integer(5, num_rows)
                               .integer(7, static_cast<int64_t>(pages.size()))
                               .integer(9, 4)
                               .bytes();
  const std::string group =
      Struct().list(1, kStruct, {Struct().child(3, meta).bytes()}).integer(3, num_rows).bytes();
  const std::string root = Struct().text(4, "schema").i32(5, 1).bytes();
  const std::string column =
      Struct().i32(1, 6).i32(3, is_optional ? 1 : 0).text(4, "a").i32(6, 0).bytes();
  const std::string footer = Struct()
                                 .i32(1, 1)
                                 .list(2, kStruct, {root, column})
                                 .integer(3, num_rows * static_cast<int64_t>(num_groups))
                                 .list(4, kStruct, std::vector<std::string>(num_groups, group))
                                 .bytes();
  return "PAR1" + pages + footer + le32(footer.size()) + "PAR1";
}

struct Outcome {
  int64_t num_rows = 0;
  uint64_t num_bytes = 0;
  std::string problem;
};

Outcome read(const std::string& text, int64_t most = INT64_MAX) {
  Outcome outcome;
  try {
    const ParquetFile file =
        ParquetFile::parse({reinterpret_cast<const std::byte*>(text.data()), text.size()}, "FILE");
    file.read_strings(0, [&](int64_t, std::optional<std::string_view> value) {
      outcome.num_bytes += value ? value->size() : 0;
      return ++outcome.num_rows < most;
    });
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
    outcome.problem = error.what();
  }
  return outcome;
}

void expect_refused(const Outcome& outcome, const std::string& problem) {
  EXPECT_NE(outcome.problem.find(problem), std::string::npos) << outcome.problem;
}

TEST(ParquetBoundsTest, RepeatedTextsAreRead) {
  const Outcome outcome = read(parquet_file(dictionary_page({"text"}) + repeated_page(1000), 1000));
  EXPECT_EQ(outcome.problem, "");
  EXPECT_EQ(outcome.num_rows, 1000);
  EXPECT_EQ(outcome.num_bytes, 4000u);
}

TEST(ParquetBoundsTest, RowsAreBoundedByTheFile) {
  const std::string file =
      parquet_file(dictionary_page({""}) + repeated_page(20'000'000), 20'000'000);
  ASSERT_LT(file.size(), 500u);
  const Outcome outcome = read(file);
  expect_refused(outcome, fmt::format("FILE: column \"a\": more than {} rows in a file of {} bytes",
                                      (1 << 20) + file.size(), file.size()));
  EXPECT_EQ(outcome.num_rows, (1 << 20) + static_cast<int64_t>(file.size()));
  EXPECT_EQ(read(file, 20).num_rows, 20);  // the first ones may be had
  EXPECT_EQ(read(file, 20).problem, "");
}

TEST(ParquetBoundsTest, NullsAreRows) {
  const std::string levels = varint(uint64_t{20'000'000} << 1) + '\0';
  const std::string file =
      parquet_file(data_page(20'000'000, 0, le32(levels.size()) + levels), 20'000'000, 1, true);
  expect_refused(read(file), " rows in a file of ");
}

TEST(ParquetBoundsTest, OneTextIsBounded) {
  const auto file_of = [](size_t size) {
    return parquet_file(data_page(1, 0, le32(size) + std::string(size, 'x')), 1);
  };
  EXPECT_EQ(read(file_of(16 << 20)).problem, "");
  const Outcome outcome = read(file_of((16 << 20) + 1));
  expect_refused(outcome, "FILE: column \"a\": row 0: a text of 16777217 bytes, at most 16777216");
  EXPECT_EQ(outcome.num_rows, 0);
}

TEST(ParquetBoundsTest, TextsOfADictionaryAreBoundedTogether) {
  const std::string text(size_t{1} << 20, 'x');
  const std::string file = parquet_file(dictionary_page({text}) + repeated_page(1000), 1000);
  const Outcome outcome = read(file);
  expect_refused(outcome, " bytes of text in a file of ");
  EXPECT_LE(outcome.num_bytes, (uint64_t{64} << 20) + 256 * file.size());
  EXPECT_GT(outcome.num_bytes, uint64_t{300} << 20);
}

TEST(ParquetBoundsTest, RowGroupsThatShareTheirBytesAreBounded) {
  // 20,000 times the same dictionary of 1 MiB, for one short text each.
  const std::string pages =
      dictionary_page({"a", std::string(size_t{1} << 20, 'x')}) + repeated_page(1);
  const Outcome outcome = read(parquet_file(pages, 1, 20'000));
  expect_refused(outcome, " bytes of pages in a file of ");
  EXPECT_LT(outcome.num_rows, 1000);
}

TEST(ParquetBoundsTest, EmptyPagesAreBounded) {
  // Pages of no values, each with a body, that row groups share.
  std::string pages;
  for (int i = 0; i < 10; ++i) pages += data_page(0, 0, std::string(100'000, 'x'));
  pages += data_page(1, 0, le32(1) + "a");
  expect_refused(read(parquet_file(pages, 1, 20'000)), " bytes of pages in a file of ");
}

TEST(ParquetBoundsTest, ColumnsOfRowGroupsAreCounted) {
  // A column of a row group may take two bytes of the file, but more than a hundred of memory.
  const std::string group =
      Struct().list(1, kStruct, std::vector<std::string>(2000, {"\0", 1})).bytes();
  const std::string root = Struct().text(4, "schema").i32(5, 0).bytes();
  const std::string footer = Struct()
                                 .list(2, kStruct, {root})
                                 .integer(3, 0)
                                 .list(4, kStruct, std::vector<std::string>(1000, group))
                                 .bytes();
  expect_refused(read("PAR1" + footer + le32(footer.size()) + "PAR1"),
                 "FILE: more than 1048576 columns of row groups");
}

}  // namespace
}  // namespace caravan
