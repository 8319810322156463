#include "format/stored_tensor.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace caravan {
namespace {

constexpr size_t kFileBytes = 1 << 20;

// Byte i of the file tells i.
class StoredTensorReadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() / fmt::format("caravan_stored_{}", ::getpid());
    std::string bytes(kFileBytes, '\0');
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>((i * 2654435761u) >> 13);
    std::ofstream(path_, std::ios::binary) << bytes;
    file_ = MappedFile::open(path_.string());
  }
  void TearDown() override { std::filesystem::remove(path_); }

  // Every range is compared with the formula of the strides.
  void expect_range(const StoredTensor& tensor, const Strides& strides, int64_t first,
                    int64_t count) const {
    const size_t size = dtype_size(tensor.dtype);
    std::vector<std::byte> scratch;
    const std::byte* got = tensor.read(first, count, scratch);
    for (int64_t n = 0; n < count; ++n) {
      int64_t rest = first + n;
      int64_t at = 0;
      for (int d = tensor.shape.rank() - 1; d >= 0; --d) {
        at += rest % tensor.shape[d] * strides[static_cast<size_t>(d)];
        rest /= tensor.shape[d];
      }
      ASSERT_EQ(std::memcmp(got + static_cast<size_t>(n) * size,
                            file_.data() + tensor.offset + static_cast<size_t>(at) * size, size),
                0)
          << first << " + " << n;
    }
  }

  std::filesystem::path path_;
  MappedFile file_;
};

TEST_F(StoredTensorReadTest, AnyRangeOfAnyStrides) {
  struct Case {
    Shape shape;
    Strides strides;
  };
  const Case kCases[] = {{{3, 5}, {5, 1}},
                         {{130, 67}, {1, 130}},
                         {{67, 130}, {133, 1}},
                         {{65, 129}, {2, 131}},
                         {{7, 4}, {0, 0}},
                         {{9, 9}, {1, 1}},
                         {{11}, {3}},
                         {{1, 6}, {99, 2}},
                         {{2, 3, 4}, {1, 2, 6}},
                         {{2, 3, 4, 5}, {5, 0, 20, 1}}};
  for (const Case& one : kCases) {
    for (const DType dtype : {DType::kU8, DType::kF16, DType::kBF16, DType::kF32, DType::kF64}) {
      const StoredTensor tensor{"a",    dtype, one.shape,
                                &file_, 24,    meaningful_strides(one.shape, one.strides)};
      ASSERT_LE(tensor.offset + tensor.span_bytes(), kFileBytes);
      const int64_t total = one.shape.num_elements();
      const int64_t width = one.shape[one.shape.rank() - 1];
      expect_range(tensor, one.strides, 0, total);
      expect_range(tensor, one.strides, total - 1, 1);
      expect_range(tensor, one.strides, total / 3, total / 2);
      expect_range(tensor, one.strides, width / 2, total - width / 2);
      expect_range(tensor, one.strides, 0, std::min(total, width + 1));
    }
  }
}

TEST_F(StoredTensorReadTest, OnlyContiguousTensorsHaveData) {
  StoredTensor tensor{"a\n", DType::kF32, {4, 3}, &file_, 0};
  EXPECT_EQ(tensor.data(), file_.data());
  tensor = tensor.transposed();
  EXPECT_EQ(tensor.first_byte(), file_.data());
  try {
    tensor.data();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(error.what()).find("a\\x0a: a tensor that is not contiguous"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace caravan
