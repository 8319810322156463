#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <vector>

#include "core/atomic_file.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/jsonl.h"
#include "core/linear_layout.h"
#include "core/mapped_file.h"
#include "core/tensor.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

class TemporaryDirectory : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = fs::temp_directory_path() / ("caravan_core_test_" + std::to_string(::getpid()));
    fs::create_directories(path_);
  }
  void TearDown() override { fs::remove_all(path_); }
  std::string path(const std::string& name) const { return (path_ / name).string(); }
  fs::path path_;
};
using AtomicFileTest = TemporaryDirectory;

TEST(DTypeTest, EveryFloat16SurvivesTheWayThroughFloat32) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(value)))) << bits;
    } else {
      EXPECT_EQ(f32_to_f16(value), bits);
    }
  }
}

TEST(DTypeTest, Float16RoundsToNearestEven) {
  EXPECT_EQ(f32_to_f16(65504.0f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(std::ldexp(1.0f, -25)), 0x0000);  // half of the smallest: to even
  EXPECT_EQ(f32_to_f16(std::ldexp(1.0001f, -25)), 0x0001);
  EXPECT_EQ(f32_to_f16(1.0f + std::ldexp(1.0f, -11)), 0x3c00);      // tie, even below
  EXPECT_EQ(f32_to_f16(1.0f + 3 * std::ldexp(1.0f, -11)), 0x3c02);  // tie, even above
}

TEST(DTypeTest, Float8RoundsToTheNearestCode) {
  EXPECT_EQ(f8e4m3_to_f32(0x01), std::ldexp(1.0f, -9));
  EXPECT_EQ(f8e4m3_to_f32(0x08), std::ldexp(1.0f, -6));
  EXPECT_EQ(f8e4m3_to_f32(0x38), 1.0f);
  EXPECT_EQ(f8e4m3_to_f32(0xfe), -448.0f);
  EXPECT_TRUE(std::isnan(f8e4m3_to_f32(0x7f)));
  EXPECT_TRUE(std::isnan(f8e4m3_to_f32(f32_to_f8e4m3(std::nanf("")))));
  EXPECT_EQ(f32_to_f8e4m3(INFINITY), 0x7e);
  EXPECT_EQ(f32_to_f8e4m3(-1e9f), 0xfe);
  EXPECT_EQ(f32_to_f8e4m3(std::ldexp(1.0f, -10)), 0x00);  // half of the smallest: to even
  for (int code = 0; code < 0x7e; ++code) {
    const float low = f8e4m3_to_f32(static_cast<uint8_t>(code));
    const float high = f8e4m3_to_f32(static_cast<uint8_t>(code + 1));
    ASSERT_LT(low, high);
    const float middle = (low + high) / 2;
    EXPECT_EQ(f32_to_f8e4m3(low), code);
    EXPECT_EQ(f32_to_f8e4m3(-high), (code + 1) | 0x80);
    EXPECT_EQ(f32_to_f8e4m3(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(f32_to_f8e4m3(std::nextafter(middle, 1000.0f)), code + 1);
    EXPECT_EQ(f32_to_f8e4m3(middle), code % 2 == 0 ? code : code + 1);
  }
}

TEST(DTypeTest, Bfloat16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(1.0f + std::ldexp(1.0f, -8)), 0x3f80);
  EXPECT_EQ(f32_to_bf16(1.0f + 3 * std::ldexp(1.0f, -8)), 0x3f82);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isinf(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::max()))));
}

TEST(ShapeTest, RefusesOverflowAndNegativeSizes) {
  EXPECT_THROW(Shape({int64_t{1} << 40, int64_t{1} << 40}), Error);
  EXPECT_THROW(Shape({-1}), Error);
  EXPECT_EQ(Shape({4096, 12288}).to_string(), "[4096,12288]");
}

TEST(LinearLayoutTest, PackedElementsAreWhereTheIndexSays) {
  for (const LinearLayout layout :
       {LinearLayout::kInOut, LinearLayout::kOutIn, LinearLayout::kPanel32,
        LinearLayout::kPanel32Pairs, LinearLayout::kCore8x8}) {
    for (const auto& [in, out] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {7, 33}, {33, 7}, {64, 96}, {31, 65}}) {
      std::vector<uint16_t> conv1d(static_cast<size_t>(in * out));
      std::vector<uint16_t> rows(conv1d.size());
      for (int64_t k = 0; k < in; ++k) {
        for (int64_t n = 0; n < out; ++n) {
          const auto value = static_cast<uint16_t>(1 + k * out + n);
          conv1d[static_cast<size_t>(k * out + n)] = value;
          rows[static_cast<size_t>(n * in + k)] = value;
        }
      }
      const auto elements = static_cast<size_t>(linear_num_elements(layout, in, out));
      std::vector<uint16_t> a(elements, 0xffff), b(elements, 0xffff);
      pack_linear(conv1d.data(), LinearLayout::kInOut, DType::kF16, in, out, layout, a.data());
      pack_linear(rows.data(), LinearLayout::kOutIn, DType::kF16, in, out, layout, b.data());
      EXPECT_EQ(a, b);
      size_t sum_of_padding = 0;
      for (const uint16_t v : a) sum_of_padding += v;
      for (int64_t k = 0; k < in; ++k) {
        for (int64_t n = 0; n < out; ++n) {
          const auto value = a[static_cast<size_t>(linear_index(layout, in, out, k, n))];
          ASSERT_EQ(value, 1 + k * out + n) << linear_layout_name(layout);
          sum_of_padding -= value;
        }
      }
      EXPECT_EQ(sum_of_padding, 0u);
    }
  }
}

TEST_F(AtomicFileTest, AppearsOnlyAfterCommit) {
  {
    AtomicFile file(path("a"));
    file.write("abc");
    EXPECT_FALSE(fs::exists(path("a")));
  }
  EXPECT_TRUE(fs::is_empty(path_));
  AtomicFile file(path("a"));
  file.write("abc");
  file.pad_to(8);
  file.commit();
  EXPECT_EQ(read_text_file(path("a"), 100), std::string("abc\0\0\0\0\0", 8));
}

TEST_F(AtomicFileTest, DirectoryIsRenamedWholeAndLocked) {
  {
    AtomicDirectory first(path("d"), false);
    EXPECT_THROW(AtomicDirectory(path("d"), false), Error);
    std::ofstream(first.work_path() + "/x") << "1";
  }
  EXPECT_FALSE(fs::exists(path("d")));
  AtomicDirectory again(path("d/"), false);
  EXPECT_TRUE(fs::exists(again.work_path() + "/x"));  // kept for resuming
  again.commit();
  EXPECT_TRUE(fs::exists(path("d/x")));
  EXPECT_THROW(AtomicDirectory(path("d"), false), Error);
}

TEST_F(AtomicFileTest, DirectoryTakesThePlaceOfAnother) {
  fs::create_directories(path_ / "d");
  std::ofstream(path("d/old")) << "1";
  AtomicDirectory directory(path("d"), true);
  std::ofstream(directory.work_path() + "/new") << "2";
  directory.commit();
  EXPECT_TRUE(fs::exists(path("d/new")));
  EXPECT_FALSE(fs::exists(path("d/old")));
  EXPECT_FALSE(fs::exists(directory.work_path()));
}

/// What the Error says that `call` throws; "" when it throws none.
template <typename Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

TEST_F(AtomicFileTest, JsonLinesNameTheirLine) {
  std::ofstream(path("rows")) << "{\"a\": 1}\n\n  \r\n{\"ids\": [3, -1]}";
  std::vector<std::string> places;
  for_each_json_line(path("rows"), [&](const boost::json::object&, const std::string& where) {
    places.push_back(where);
  });
  EXPECT_EQ(places, (std::vector<std::string>{path("rows") + ":1", path("rows") + ":4"}));
  const auto read_ids = [](const boost::json::object& row, const std::string& where) {
    if (row.contains("ids")) token_ids_of(row.at("ids"), where, "output_ids");
  };
  EXPECT_EQ(message_of([&] { for_each_json_line(path("rows"), read_ids); }),
            path("rows") + ":4: \"output_ids\"[1] is -1, expected a token id");
  std::ofstream(path("array")) << "{}\n[1]\n";
  EXPECT_EQ(message_of([&] { for_each_json_line(path("array"), read_ids); }),
            path("array") + ":2: expected a JSON object");
  EXPECT_THROW(for_each_json_line(path("none"), read_ids), Error);
  EXPECT_THROW(for_each_json_line(path_.string(), read_ids), Error);  // a directory
}

TEST_F(AtomicFileTest, JsonLinesAreBounded) {
  {
    std::ofstream file(path("long"));
    file << "{\"a\": \"" << std::string(kMaxJsonLineBytes - 8, 'x')
         << "\"}\n";  // one byte too many
  }
  int64_t num_rows = 0;
  const auto count = [&](const boost::json::object&, const std::string&) { ++num_rows; };
  EXPECT_EQ(message_of([&] { for_each_json_line(path("long"), count); }),
            path("long") + ":1: the line has more than 67108864 bytes; is this JSON Lines?");
  EXPECT_EQ(num_rows, 0);
}

TEST_F(AtomicFileTest, MappedFileChecksRanges) {
  std::ofstream(path("m")) << "0123456789";
  const MappedFile file = MappedFile::open(path("m"));
  EXPECT_EQ(file.bytes(3, 4).size(), 4u);
  EXPECT_THROW(file.bytes(8, 3), Error);
  EXPECT_THROW(file.bytes(~uint64_t{0}, 2), Error);
  EXPECT_THROW(MappedFile::open(path("none")), Error);
  EXPECT_THROW(MappedFile::open(path_.string()), Error);
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  EXPECT_THROW(MappedFile::open(path("fifo")), Error);  // and does not wait for a writer
}

}  // namespace
}  // namespace caravan
