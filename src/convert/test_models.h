#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "convert/synth.h"
#include "core/error.h"
#include "format/tensor_source.h"

namespace caravan {

/// A directory of its own for each test, removed afterwards.
class TempDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    root_ = std::filesystem::temp_directory_path() /
            fmt::format("caravan-{}-{}-{}", info->test_suite_name(), info->name(), ::getpid());
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string at(const std::string& name) const { return (root_ / name).string(); }

  std::filesystem::path root_;
};

/// Sizes odd on purpose: no multiple of 32 but for the heads.
inline ModelConfig odd_config() {
  ModelConfig config = *synth_shape("camel-nano");
  config.hidden_size = 36;
  config.num_heads = 4;
  config.num_layers = 2;
  config.ffn_size = 100;
  config.max_seq_len = 31;
  config.vocab_size = 101;
  config.bos_token_id = 0;
  config.eos_token_ids = {0};
  return config;
}

inline void write_odd_model(const std::string& path, DType dtype = DType::kF32,
                            bool is_tied = true) {
  SynthOptions options;
  options.config = odd_config();
  options.config.tie_word_embeddings = is_tied;
  options.dtype = dtype;
  options.seed = 7;
  write_synthetic_model(options, path);
}

/// Overwrites element `index` of a float32 tensor in a Hugging Face directory.
inline void poke(const std::string& directory, const std::string& tensor_name, int64_t index,
                 float value) {
  std::string path;
  uint64_t offset = 0;
  {
    const TensorSource source = TensorSource::open_directory(directory);
    const StoredTensor* tensor = source.find(tensor_name);
    ASSERT_NE(tensor, nullptr) << tensor_name;
    path = tensor->file->path();
    offset = tensor->offset + static_cast<uint64_t>(index) * sizeof(float);
  }
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(offset));
  file.write(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline std::string file_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Code and message of the Error that `function` throws.
template <typename Function>
std::pair<ErrorCode, std::string> error_of(const Function& function) {
  try {
    function();
  } catch (const Error& e) {
    return {e.code(), e.what()};
  }
  ADD_FAILURE() << "no Error was thrown";
  return {ErrorCode::kInternal, ""};
}

}  // namespace caravan
