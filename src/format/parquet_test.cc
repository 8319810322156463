#include "format/parquet.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>

#include "core/error.h"
#include "core/json.h"
#include "format/parquet_page.h"

namespace caravan {
namespace {

const std::string kData = CARAVAN_SOURCE_DIR "/tests/data/parquet/";
constexpr const char* kReadable[] = {"snappy",     "plain_gzip", "v2_zstd", "v2_plain_none",
                                     "row_groups", "fallback",   "nulls",   "empty"};

using Column = std::vector<std::optional<std::string>>;

Column read_column(const ParquetFile& file, const std::string& name) {
  const auto index = file.find_column(name);
  EXPECT_TRUE(index.has_value()) << name;
  Column values;
  file.read_strings(index.value_or(0), [&](int64_t row, std::optional<std::string_view> value) {
    EXPECT_EQ(row, static_cast<int64_t>(values.size()));
    values.push_back(value ? std::optional<std::string>(*value) : std::nullopt);
    return true;
  });
  return values;
}

// What the fixtures were made from (tools/parquet_fixtures.py).
Column expected_column(const std::string& name) {
  std::ifstream lines(kData + "rows.jsonl");
  Column values;
  for (std::string line; std::getline(lines, line);) {
    values.emplace_back(parse_json(line, "rows.jsonl").at(name).as_string());
  }
  return values;
}

std::string read_bytes(const std::string& name) {
  std::ifstream file(kData + name + ".parquet", std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

// Reads all there is from a heap copy exactly as long as the text, as a data set would.
void read_everything(std::string_view text) {
  const auto copy = std::make_unique<std::byte[]>(text.size());
  std::memcpy(copy.get(), text.data(), text.size());
  const ParquetFile file = ParquetFile::parse({copy.get(), text.size()}, "FILE");
  for (size_t i = 0; i < file.columns().size(); ++i) {
    size_t num_bytes = 0;
    file.read_strings(i, [&](int64_t, std::optional<std::string_view> value) {
      for (const char c : value.value_or("")) num_bytes += static_cast<unsigned char>(c) & 1;
      return true;
    });
  }
}

// The message of the Error, which must be one line with a code that says the file is to blame; ""
// when there is none.
std::string refusal(std::string_view text) {
  try {
    read_everything(text);
    return "";
  } catch (const Error& error) {
    EXPECT_TRUE(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kUnsupported)
        << error.what();
    EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos);
    return error.what();
  }
}

TEST(ParquetTest, ReadsEveryForm) {
  const std::vector<std::string> names = {"article", "highlights", "id"};
  for (const char* form : kReadable) {
    SCOPED_TRACE(form);
    if (std::string_view(form) == "nulls" || std::string_view(form) == "empty") continue;
    const ParquetFile file = ParquetFile::open(kData + form + ".parquet");
    EXPECT_EQ(file.num_rows(), 23);
    ASSERT_EQ(file.columns().size(), names.size());
    for (const std::string& name : names) {
      EXPECT_EQ(read_column(file, name), expected_column(name)) << name;
    }
    EXPECT_EQ(file.columns()[0].is_optional, std::string_view(form) != "row_groups");
  }
}

TEST(ParquetTest, NullsAndNoRows) {
  Column holes = expected_column("highlights");
  for (size_t i = 1; i < holes.size(); i += 3) holes[i].reset();
  const ParquetFile nulls = ParquetFile::open(kData + "nulls.parquet");
  EXPECT_EQ(read_column(nulls, "highlights"), holes);
  EXPECT_EQ(read_column(nulls, "article"), expected_column("article"));
  const ParquetFile empty = ParquetFile::open(kData + "empty.parquet");
  EXPECT_EQ(empty.num_rows(), 0);
  EXPECT_TRUE(read_column(empty, "article").empty());
}

TEST(ParquetTest, StopsWhenTold) {
  const ParquetFile file = ParquetFile::open(kData + "row_groups.parquet");
  int64_t num_seen = 0;
  file.read_strings(0, [&](int64_t, std::optional<std::string_view>) { return ++num_seen < 10; });
  EXPECT_EQ(num_seen, 10);
}

TEST(ParquetTest, SaysWhatItDoesNotRead) {
  EXPECT_NE(refusal(read_bytes("delta")).find("values in DELTA_BYTE_ARRAY, expected PLAIN"),
            std::string::npos);
  EXPECT_NE(refusal(read_bytes("lz4")).find("compressed with LZ4"), std::string::npos);
  const ParquetFile types = ParquetFile::open(kData + "types.parquet");
  EXPECT_EQ(types.column_names(),
            "\"article\" (INT64), \"highlights.list.element\" (list of BYTE_ARRAY), \"id\" "
            "(BYTE_ARRAY), \"extra.k\" (BYTE_ARRAY)");
  EXPECT_FALSE(types.columns()[3].is_string) << "part of a group";
  EXPECT_EQ(read_column(types, "id"), (Column{"x", "y"}));
  try {
    types.read_strings(0, [](int64_t, std::optional<std::string_view>) { return true; });
    FAIL() << "a column of numbers was read as strings";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string_view(error.what())
                  .find("column \"article\" is INT64, expected strings (BYTE_ARRAY), one a row"),
              std::string_view::npos);
  }
  EXPECT_NE(refusal("PAR1").find("not a Parquet file"), std::string::npos);
  EXPECT_NE(refusal("{\"article\": 1}").find("not a Parquet file"), std::string::npos);
  EXPECT_NE(refusal("PAR1....PARE").find("encrypted"), std::string::npos);
  EXPECT_NE(refusal(std::string("PAR1\xff\xff\xff\x7fPAR1")).find("a footer of 2147483647 bytes"),
            std::string::npos);
}

TEST(ParquetTest, TruncatedAnywhereIsRefused) {
  for (const char* form : kReadable) {
    const std::string bytes = read_bytes(form);
    for (size_t size = 0; size < bytes.size(); size += 64) {
      EXPECT_NE(refusal(bytes.substr(0, size)), "") << form << " cut to " << size;
      // The end is there, something before it is not.
      if (size > 0) {
        EXPECT_NE(refusal("PAR1" + bytes.substr(size)), "") << form << " from " << size;
      }
    }
  }
}

TEST(ParquetTest, FlippedBitsNeverCrash) {
  for (const char* form : kReadable) {
    const std::string bytes = read_bytes(form);
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      std::string copy = bytes;
      copy[bit / 8] = static_cast<char>(copy[bit / 8] ^ (1 << (bit % 8)));
      refusal(copy);
    }
  }
}

// Sizes, counts and offsets lie in varints: any byte of footer or page headers becomes the
// beginning of a large one.
TEST(ParquetTest, LyingSizesNeverCrash) {
  for (const char* form : kReadable) {
    const std::string bytes = read_bytes(form);
    for (size_t i = 4; i + 8 < bytes.size(); ++i) {
      for (const std::string_view lie : {"\xff\xff\xff\xff\x0f", "\xfe\xff\xff\xff\xff\xff\x7f",
                                         "\x01", "\x80\x80\x80\x80\x08"}) {
        std::string copy = bytes;
        copy.replace(i, std::min(lie.size(), bytes.size() - 8 - i), lie, 0,
                     std::min(lie.size(), bytes.size() - 8 - i));
        refusal(copy);
      }
    }
  }
}

TEST(ParquetTest, ScrambledBytesNeverCrash) {
  std::mt19937 random(7);
  for (const char* form : kReadable) {
    const std::string bytes = read_bytes(form);
    for (int round = 0; round < 2000; ++round) {
      std::string copy = bytes;
      const int num_changes = 1 + static_cast<int>(random() % 8);
      for (int i = 0; i < num_changes; ++i) {
        copy[random() % copy.size()] = static_cast<char>(random());
      }
      refusal(copy);
    }
  }
}

TEST(ParquetTest, ChecksumsAreVerified) {
  std::string bytes = read_bytes("row_groups");
  const size_t where = bytes.find("Caravan");
  ASSERT_NE(where, std::string::npos);
  bytes[where] = 'K';
  EXPECT_NE(refusal(bytes).find("checksum"), std::string::npos);
}

std::vector<std::byte> as_bytes(std::initializer_list<int> values) {
  std::vector<std::byte> out;
  for (const int v : values) out.push_back(static_cast<std::byte>(v));
  return out;
}

// The examples of Encodings.md: 0..7 packed into 3 bits, and a run.
TEST(ParquetHybridDecoderTest, PackedAndRuns) {
  const auto bytes = as_bytes({0x03, 0x88, 0xc6, 0xfa, 0x0a, 0x06});
  ParquetHybridDecoder decoder(bytes, 3, "FILE");
  for (uint32_t i = 0; i < 8; ++i) EXPECT_EQ(decoder.next(), i);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(decoder.next(), 6u);
  EXPECT_THROW(decoder.next(), Error);
}

TEST(ParquetHybridDecoderTest, EveryWidth) {
  std::mt19937 random(11);
  for (int width = 0; width <= 32; ++width) {
    std::vector<uint32_t> values(24);
    const uint64_t mask = (uint64_t{1} << width) - 1;
    for (uint32_t& v : values) v = static_cast<uint32_t>(random() & mask);
    std::vector<std::byte> bytes{static_cast<std::byte>((values.size() / 8) << 1 | 1)};
    std::vector<bool> bits;
    for (const uint32_t v : values) {
      for (int b = 0; b < width; ++b) bits.push_back(((v >> b) & 1) != 0);
    }
    bytes.resize(1 + bits.size() / 8);
    for (size_t i = 0; i < bits.size(); ++i) {
      if (bits[i]) bytes[1 + i / 8] |= static_cast<std::byte>(1 << (i % 8));
    }
    ParquetHybridDecoder decoder(bytes, width, "FILE");
    for (const uint32_t v : values) ASSERT_EQ(decoder.next(), v) << "width " << width;
  }
  EXPECT_THROW(ParquetHybridDecoder({}, 33, "FILE"), Error);
}

}  // namespace
}  // namespace caravan
