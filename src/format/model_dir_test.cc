#include "format/model_dir.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "format/checksum.h"
#include "format/safetensors.h"
#include "format/weight_check.h"
#include "format/weight_spec.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

TEST(ChecksumTest, IsXxh3) {
  // From the xxHash reference implementation's command line: xxhsum -H3.
  EXPECT_EQ(checksum_text(xxh3({})), "2d06800538d394c2");
  Xxh3 pieces;
  const std::vector<std::byte> bytes(1000, std::byte{7});
  pieces.update({bytes.data(), 1});
  pieces.update({bytes.data() + 1, 999});
  EXPECT_EQ(pieces.digest(), xxh3(bytes));
  EXPECT_EQ(parse_checksum("00000000000000ff"), 255u);
  for (const char* text : {"", "ff", "00000000000000fg", "-0000000000000ff", "00000000000000ff0"}) {
    EXPECT_EQ(parse_checksum(text), std::nullopt) << text;
  }
}

// A one-layer engine of random-looking bytes, as `build` lays it out.
class EngineDirTest : public ::testing::Test {
 protected:
  void SetUp() override {
    set_log_level(LogLevel::kOff);
    directory_ = fs::temp_directory_path() / fmt::format("caravan_model_dir_{}", ::getpid());
    fs::create_directories(directory_);
    config_.vocab_size = 50;
    config_.hidden_size = 16;
    config_.num_layers = 1;
    config_.num_heads = 2;
    config_.ffn_size = 40;
    config_.max_seq_len = 8;
    write_engine();
  }
  void TearDown() override {
    set_log_level(LogLevel::kInfo);
    fs::remove_all(directory_);
  }

  void write_engine() {
    std::vector<SafetensorsWriter::Spec> specs;
    std::vector<std::vector<std::byte>> contents;
    boost::json::object table;
    for (const WeightSpec& spec : gpt2_weight_specs(config_, false)) {
      EngineTensor tensor;
      int64_t count = spec.shape.num_elements();
      if (spec.role == WeightRole::kLinear || spec.role == WeightRole::kTokenEmbedding) {
        tensor.dtype = DType::kF16;
        tensor.layout = LinearLayout::kPanel32;
        tensor.in_features = spec.in_features;
        tensor.out_features = spec.out_features;
        count = linear_num_elements(tensor.layout, spec.in_features, spec.out_features);
      }
      std::vector<std::byte> bytes(static_cast<size_t>(count) * dtype_size(tensor.dtype));
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 31 + 7);
      tensor.xxh3 = xxh3(bytes);
      table[spec.name] = engine_tensor_to_json(tensor);
      specs.push_back({spec.name, tensor.dtype, {count}});
      contents.push_back(std::move(bytes));
    }
    SafetensorsWriter writer((directory_ / "rank0.safetensors").string(), specs, {}, 4096);
    for (const std::vector<std::byte>& bytes : contents) writer.write(bytes.data(), bytes.size());
    writer.finish();

    boost::json::object root =
        boost::json::parse(to_hf_config_json(config_, DType::kF16)).as_object();
    root["caravan"] = {{"kind", "engine"},
                       {"format_version", kModelDirFormatVersion},
                       {"tensor_parallel", 1},
                       {"has_own_head", false},
                       {"build", build_config_to_json(build_)},
                       {"tensors", table},
                       {"source", {{"note", "free"}}}};
    std::ofstream(directory_ / "config.json") << to_json_text(root);
  }

  fs::path directory_;
  ModelConfig config_;
  BuildConfig build_{"cpu", DType::kF16, DType::kF32, 4, 5, 3};
};

TEST_F(EngineDirTest, ReadsWhatTheHelpersWrote) {
  const ModelDir dir = open_model_dir(directory_.string());
  EXPECT_EQ(dir.kind, ModelDirKind::kEngine);
  EXPECT_EQ(dir.tensor_parallel, 1);
  EXPECT_FALSE(dir.has_own_head);
  ASSERT_TRUE(dir.build.has_value());
  EXPECT_EQ(dir.build->target, "cpu");
  EXPECT_EQ(dir.build->dtype, DType::kF16);
  EXPECT_EQ(dir.build->kv_cache_dtype, DType::kF32);
  EXPECT_EQ(dir.build->max_batch_size, 4);
  EXPECT_EQ(dir.build->max_input_len, 5);
  EXPECT_EQ(dir.build->max_output_len, 3);
  EXPECT_EQ(dir.tensors.size(), 16u);
  EXPECT_EQ(dir.tensors.at("h.0.mlp.c_fc.weight").layout, LinearLayout::kPanel32);
  EXPECT_EQ(dir.caravan.at("source").at("note"), "free");

  const TensorSource source = TensorSource::open_directory(directory_.string());
  for (const WeightSpec& spec : gpt2_weight_specs(dir.config, false)) {
    EXPECT_EQ(find_engine_tensor(dir, source, spec).offset % 4096, 0u);
  }
  EXPECT_TRUE(verify_checksums(dir));
}

TEST_F(EngineDirTest, OneFlippedBitIsFound) {
  const ModelDir dir = open_model_dir(directory_.string());
  uint64_t offset;
  {
    const TensorSource source = TensorSource::open_file(dir.rank_path(0));
    offset = source.find("h.0.mlp.c_proj.weight")->offset;
  }
  std::fstream file(dir.rank_path(0), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(offset + 100));
  const char original = static_cast<char>(100 * 31 + 7);
  file.put(static_cast<char>(original ^ 1));
  file.close();
  try {
    verify_checksums(dir);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    EXPECT_EQ(
        std::string(error.what())
            .find(fmt::format("{}: h.0.mlp.c_proj.weight: checksum of the ", dir.rank_path(0))),
        0u)
        << error.what();
    EXPECT_NE(std::string(error.what()).find(fmt::format("bytes at offset {}: got ", offset)),
              std::string::npos)
        << error.what();
  }
}

TEST_F(EngineDirTest, HuggingFaceDirectoriesHaveNoCaravanObject) {
  std::ofstream(directory_ / "config.json") << to_hf_config_json(config_, DType::kF32);
  const ModelDir dir = open_model_dir(directory_.string());
  EXPECT_EQ(dir.kind, ModelDirKind::kHuggingFace);
  EXPECT_FALSE(dir.build.has_value());
  EXPECT_TRUE(dir.caravan.empty());
  EXPECT_FALSE(verify_checksums(dir));
}

}  // namespace
}  // namespace caravan
