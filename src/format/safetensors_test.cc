#include "format/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <numeric>

#include "core/error.h"
#include "format/tensor_source.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / fmt::format("caravan_safetensors_{}", ::getpid());
    fs::create_directories(directory_);
    path_ = (directory_ / "t.safetensors").string();
  }
  void TearDown() override { fs::remove_all(directory_); }

  SafetensorsHeader read() {
    file_ = MappedFile::open(path_);
    return parse_safetensors({file_.data(), file_.size()}, path_);
  }

  fs::path directory_;
  std::string path_;
  MappedFile file_;
};

const std::vector<SafetensorsWriter::Spec> kSpecs = {{"b", DType::kF16, {3, 7}},
                                                     {"a", DType::kF32, {5}},
                                                     {"empty", DType::kF32, {0, 4}},
                                                     {"mask", DType::kBool, {1, 1, 3, 3}},
                                                     {"scalar", DType::kI64, {}}};

std::vector<uint8_t> payload(size_t size, uint8_t first) {
  std::vector<uint8_t> bytes(size);
  std::iota(bytes.begin(), bytes.end(), first);
  return bytes;
}

void write_all(const std::string& path, uint64_t alignment) {
  SafetensorsWriter writer(path, kSpecs, {{"format", "pt"}, {"a\"b", "c\n"}}, alignment);
  uint8_t first = 1;
  for (const SafetensorsWriter::Spec& spec : kSpecs) {
    const std::vector<uint8_t> bytes =
        payload(static_cast<size_t>(spec.shape.num_elements()) * dtype_size(spec.dtype), first++);
    writer.write(bytes.data(), bytes.size() / 2);  // in two pieces
    writer.write(bytes.data() + bytes.size() / 2, bytes.size() - bytes.size() / 2);
  }
  writer.finish();
}

TEST_F(SafetensorsTest, WriterAndReaderAgree) {
  for (const uint64_t alignment : {8, 64, 4096}) {
    write_all(path_, alignment);
    const SafetensorsHeader header = read();
    EXPECT_EQ(header.metadata,
              (std::map<std::string, std::string>{{"format", "pt"}, {"a\"b", "c\n"}}));
    EXPECT_EQ(header.data_start % alignment, 0u);
    const TensorSource source = TensorSource::open_file(path_);
    EXPECT_EQ(source.tensors().size(), kSpecs.size());  // fillers are hidden
    uint8_t first = 1;
    for (const SafetensorsWriter::Spec& spec : kSpecs) {
      const StoredTensor* tensor = source.find(spec.name);
      ASSERT_NE(tensor, nullptr) << spec.name;
      EXPECT_EQ(tensor->dtype, spec.dtype);
      EXPECT_EQ(tensor->shape, spec.shape);
      if (alignment > 8) {
        EXPECT_EQ(tensor->offset % alignment, 0u) << spec.name;
      }
      const std::vector<uint8_t> bytes = payload(tensor->num_bytes(), first++);
      EXPECT_TRUE(
          std::equal(bytes.begin(), bytes.end(), reinterpret_cast<const uint8_t*>(tensor->data())))
          << spec.name;
    }
  }
}

TEST_F(SafetensorsTest, FillersAreOrdinaryZeroTensors) {
  write_all(path_, 64);
  const SafetensorsHeader header = read();
  size_t num_fillers = 0;
  uint64_t end = header.data_start;
  for (const SafetensorsEntry& entry : header.entries) {
    EXPECT_EQ(entry.offset, end);  // any reader of the format accepts the file
    end += entry.num_bytes;
    if (!is_safetensors_filler(entry)) continue;
    ++num_fillers;
    EXPECT_EQ(entry.dtype, DType::kU8);
    for (uint64_t i = 0; i < entry.num_bytes; ++i) {
      EXPECT_EQ(file_.data()[entry.offset + i], std::byte{0});
    }
  }
  EXPECT_EQ(num_fillers, 3u);  // after b, a and mask; the empty tensor needs none
  EXPECT_EQ(end, file_.size());
}

TEST_F(SafetensorsTest, NoTensorsIsAFileToo) {
  SafetensorsWriter(path_, {}, {}).finish();
  EXPECT_TRUE(read().entries.empty());
}

TEST_F(SafetensorsTest, WriterRefusesMisuseAndLeavesNothing) {
  const std::vector<SafetensorsWriter::Spec> one = {{"a", DType::kF32, {2}}};
  const float values[3] = {};
  {
    SafetensorsWriter writer(path_, one, {});
    EXPECT_THROW(writer.write(values, 12), Error);
    writer.write(values, 4);
    EXPECT_THROW(writer.finish(), Error);
    writer.write(values, 4);
    EXPECT_THROW(writer.write(values, 1), Error);
  }
  EXPECT_THROW(SafetensorsWriter(path_, {one[0], one[0]}, {}), Error);
  EXPECT_THROW(SafetensorsWriter(path_, {{"__pad.1", DType::kU8, {1}}}, {}), Error);
  EXPECT_THROW(SafetensorsWriter(path_, one, {}, 48), Error);
  EXPECT_TRUE(fs::is_empty(directory_));
}

}  // namespace
}  // namespace caravan
