// Cut and scrambled copies of valid files: refused with an Error or read within their bounds, never
// anything else. Meaningful under AddressSanitizer, which sees every read past the end of a copy.

#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <random>
#include <sstream>

#include "core/dtype.h"
#include "core/error.h"
#include "core/log.h"
#include "format/model_config.h"
#include "format/safetensors.h"
#include "format/torch_file.h"
#include "tests/malformed/builders.h"

namespace caravan::test {
namespace {

std::string read_variant(const std::string& name) {
  std::ifstream file(CARAVAN_SOURCE_DIR "/tests/goldens/variants/" + name, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

const std::string& act_tanh() {
  static const std::string bytes = read_variant("act_tanh/model.safetensors");
  return bytes;
}

// A copy on the heap, exactly as long as the file: a read past it is seen.
class ExactCopy {
 public:
  explicit ExactCopy(std::string_view bytes)
      : size_(bytes.size()), data_(std::make_unique<std::byte[]>(bytes.size())) {
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(data_.get()));
  }
  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }
  // Reads the ends of a tensor as a model would.
  void touch(uint64_t offset, DType dtype, const Shape& shape,
             const std::optional<Strides>& strides = {}) const {
    if (shape.num_elements() == 0) return;
    const StoredTensor tensor{"", dtype, shape, nullptr, offset, strides};
    const uint64_t span = tensor.span_bytes();
    ASSERT_LE(offset, size_);
    ASSERT_LE(span, size_ - offset);
    load_as_f32(data_.get() + offset, dtype, 0);
    load_as_f32(data_.get() + offset, dtype, span / dtype_size(dtype) - 1);
  }

 private:
  size_t size_;
  std::unique_ptr<std::byte[]> data_;
};

using Reader = void (*)(const ExactCopy&);

void read_safetensors_copy(const ExactCopy& copy) {
  for (const SafetensorsEntry& entry : parse_safetensors(copy.bytes(), "FILE").entries) {
    copy.touch(entry.offset, entry.dtype, entry.shape);
  }
}

void read_torch_copy(const ExactCopy& copy) {
  for (const TorchTensor& tensor : parse_torch_file(copy.bytes(), "FILE")) {
    copy.touch(tensor.offset, tensor.dtype, tensor.shape, tensor.strides);
  }
}

void read_config_copy(const ExactCopy& copy) {
  const auto bytes = copy.bytes();
  parse_model_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "FILE");
}

bool is_refused(Reader read, std::string_view bytes) {
  const ExactCopy copy(bytes);
  try {
    read(copy);
    return false;
  } catch (const Error& error) {
    EXPECT_TRUE(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kUnsupported)
        << error.what();
    EXPECT_EQ(std::string(error.what()).find("FILE"), 0u) << error.what();
    return true;
  }
}

struct Original {
  const char* name;
  Reader read;
  std::string bytes;
  size_t header_begin;  // the region of structure, where every cut and many flips are tried
  size_t header_end;
};

std::vector<Original> originals() {
  const std::string zip = torch_zip(torch_pickle());
  const std::string zip64 = zip_file(torch_members(torch_pickle()), true).bytes;
  const std::string legacy = torch_legacy().bytes();
  const std::string big_zip = read_variant("odd_sizes_relu/pytorch_model.bin");
  const std::string big_legacy = read_variant("f16_legacy_bin/pytorch_model.bin");
  const std::string config = read_variant("camel_form/config.json");
  const size_t json_end = 8 + static_cast<size_t>(static_cast<unsigned char>(act_tanh()[0])) +
                          256 * static_cast<size_t>(static_cast<unsigned char>(act_tanh()[1]));
  return {{"small_zip", read_torch_copy, zip, 0, zip.size()},
          {"small_zip64", read_torch_copy, zip64, 0, zip64.size()},
          {"small_legacy", read_torch_copy, legacy, 0, legacy.size()},
          {"safetensors", read_safetensors_copy, act_tanh(), 0, json_end},
          {"zip", read_torch_copy, big_zip, big_zip.size() - 3000, big_zip.size()},
          {"legacy", read_torch_copy, big_legacy, 0, 4000},
          {"config", read_config_copy, config, 0, config.size()}};
}

class MutationTest : public ::testing::TestWithParam<Original> {
 protected:
  void SetUp() override {
    set_log_level(LogLevel::kOff);
    ASSERT_FALSE(is_refused(GetParam().read, GetParam().bytes));
  }
  void TearDown() override { set_log_level(LogLevel::kInfo); }
};

TEST_P(MutationTest, EveryCutIsRefused) {
  const Original& file = GetParam();
  // In steps where the structure is long: each cut copies the file.
  const size_t step = file.bytes.size() > 10'000 ? 7 : 1;
  for (size_t size = file.header_begin; size < file.header_end; size += step) {
    ASSERT_TRUE(is_refused(file.read, std::string_view(file.bytes).substr(0, size))) << size;
  }
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    const size_t size = random() % file.bytes.size();
    ASSERT_TRUE(is_refused(file.read, std::string_view(file.bytes).substr(0, size))) << size;
  }
}

TEST_P(MutationTest, ScrambledStructureNeverReadsOutside) {
  const Original& file = GetParam();
  std::mt19937 random(11);
  const size_t range = file.header_end - file.header_begin;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = file.bytes;
    const int num_changes = 1 + static_cast<int>(random() % 4);
    for (int j = 0; j < num_changes; ++j) {
      bytes[file.header_begin + random() % range] = static_cast<char>(random());
    }
    is_refused(file.read, bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Files, MutationTest, ::testing::ValuesIn(originals()),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace caravan::test
