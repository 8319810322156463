#include "format/tensor_source.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "core/error.h"
#include "format/model_config.h"
#include "format/safetensors.h"
#include "format/weight_spec.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

const std::string kVariants = CARAVAN_SOURCE_DIR "/tests/goldens/variants/";

struct StoredValue {
  const char* variant;
  size_t num_tensors;
  const char* name;
  DType dtype;
  size_t index;
  float value;
};

// Read by a separate reader in Python: json and struct for safetensors, zipfile and pickle for
// .bin.
const StoredValue kStoredValues[] = {
    {"act_gelu_fast", 28, "transformer.wte.weight", DType::kF32, 5, -0.0634567216f},
    {"act_gelu_pytorch_tanh", 28, "transformer.h.1.attn.c_attn.weight", DType::kF32, 1000,
     -0.189990625f},
    {"act_quick_gelu", 28, "transformer.ln_f.bias", DType::kF32, 7, 0.26061371f},
    {"act_silu", 28, "transformer.wte.weight", DType::kF32, 5, -0.208586231f},
    {"act_tanh", 28, "transformer.ln_f.bias", DType::kF32, 7, 0.26061371f},
    {"bf16_sharded", 52, "transformer.wte.weight", DType::kBF16, 5, -0.06640625f},
    {"bf16_sharded", 52, "transformer.h.1.attn.c_attn.weight", DType::kBF16, 1000, -0.125976562f},
    {"bf16_sharded", 52, "transformer.ln_f.bias", DType::kBF16, 7, 0.155273438f},
    {"camel_form", 33, "transformer.wte.weight", DType::kF32, 5, 0.140641764f},
    {"camel_form", 33, "transformer.h.1.attn.c_attn.weight", DType::kF32, 1000, -0.0124474801f},
    {"camel_form", 33, "transformer.ln_f.bias", DType::kF32, 7, 0.239957675f},
    {"camel_form", 33, "lm_head.weight", DType::kF32, 9, 0.116796888f},
    {"camel_form", 33, "transformer.h.0.attn.bias", DType::kBool, 1, 0.0f},
    {"f16_legacy_bin", 28, "transformer.wte.weight", DType::kF16, 5, 0.0728759766f},
    {"f16_legacy_bin", 28, "transformer.h.1.attn.c_attn.weight", DType::kF16, 1000, -0.101501465f},
    {"f16_legacy_bin", 28, "transformer.ln_f.bias", DType::kF16, 7, 0.224975586f},
    {"gpt2_form", 30, "wte.weight", DType::kF32, 5, 0.110374346f},
    {"gpt2_form", 30, "h.1.attn.c_attn.weight", DType::kF32, 1000, 0.125322938f},
    {"gpt2_form", 30, "ln_f.bias", DType::kF32, 7, -0.494376332f},
    {"gpt2_form", 30, "h.0.attn.bias", DType::kF32, 1, 0.0f},
    {"inverse_layer_idx", 40, "transformer.wte.weight", DType::kF32, 5, -0.331553221f},
    {"ln_eps", 28, "transformer.h.1.attn.c_attn.weight", DType::kF32, 1000, -0.362439007f},
    {"no_attn_scale", 28, "transformer.wte.weight", DType::kF32, 5, -0.0634567216f},
    {"odd_sizes_relu", 28, "transformer.wte.weight", DType::kF32, 5, -0.189164117f},
    {"odd_sizes_relu", 28, "transformer.h.1.attn.c_attn.weight", DType::kF32, 1000, -0.0393687934f},
    {"odd_sizes_relu", 28, "transformer.ln_f.bias", DType::kF32, 7, -0.691062748f},
    {"untied_head", 29, "transformer.wte.weight", DType::kF32, 5, -0.203172103f},
    {"untied_head", 29, "lm_head.weight", DType::kF32, 9, 0.271498621f},
};

std::string test_name(const ::testing::TestParamInfo<StoredValue>& info) {
  std::string name = fmt::format("{}_{}", info.param.variant, info.param.name);
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
}

class StoredValueTest : public ::testing::TestWithParam<StoredValue> {};

TEST_P(StoredValueTest, IsRead) {
  const StoredValue& expected = GetParam();
  const TensorSource source = TensorSource::open_directory(kVariants + expected.variant);
  EXPECT_EQ(source.tensors().size(), expected.num_tensors);
  const StoredTensor* tensor = source.find(expected.name);
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->dtype, expected.dtype);
  EXPECT_EQ(load_as_f32(tensor->data(), tensor->dtype, expected.index), expected.value);
}

INSTANTIATE_TEST_SUITE_P(Variants, StoredValueTest, ::testing::ValuesIn(kStoredValues), test_name);

TEST(WeightSpecTest, EveryVariantResolves) {
  size_t num_variants = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(kVariants)) {
    const std::string path = entry.path().string();
    const ModelConfig config = load_model_config(path);
    const TensorSource source = TensorSource::open_directory(path);
    const ResolvedWeights resolved = resolve_gpt2_weights(source, config, path);
    const std::string variant = entry.path().filename().string();
    EXPECT_EQ(resolved.has_own_head, variant == "untied_head");
    EXPECT_EQ(resolved.has_stored_head, variant == "untied_head" || variant == "camel_form");
    EXPECT_EQ(resolved.skipped.size(), variant == "camel_form"  ? 4u
                                       : variant == "gpt2_form" ? 2u
                                                                : 0u);
    int64_t num_parameters = 0;
    for (const ResolvedWeight& weight : resolved.weights) {
      ASSERT_NE(weight.tensor, nullptr);
      EXPECT_EQ(weight.tensor->shape, weight.spec.shape);
      EXPECT_TRUE(weight.tensor->name.ends_with(weight.spec.name));
      num_parameters += weight.spec.shape.num_elements();
    }
    EXPECT_EQ(num_parameters, config.num_parameters());
    ++num_variants;
  }
  EXPECT_EQ(num_variants, 14u);
}

class WeightSpecFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / fmt::format("caravan_weight_spec_{}", ::getpid());
    fs::create_directories(directory_);
    config_.vocab_size = 5;
    config_.hidden_size = 4;
    config_.num_layers = 1;
    config_.num_heads = 2;
    config_.ffn_size = 8;
    config_.max_seq_len = 6;
    for (const WeightSpec& spec : gpt2_weight_specs(config_, false)) {
      tensors_.push_back({spec.name, DType::kF32, spec.shape});
    }
  }
  void TearDown() override { fs::remove_all(directory_); }

  SafetensorsWriter::Spec& named(const std::string& name) {
    for (SafetensorsWriter::Spec& tensor : tensors_) {
      if (tensor.name == name) return tensor;
    }
    throw std::out_of_range(name);
  }

  // Element i of tensor t is t, so that tensors of one shape differ.
  ResolvedWeights resolve() {
    const std::string path = (directory_ / "model.safetensors").string();
    SafetensorsWriter writer(path, tensors_, {});
    for (size_t t = 0; t < tensors_.size(); ++t) {
      const auto count = static_cast<size_t>(tensors_[t].shape.num_elements());
      const float value =
          head_equals_wte_ && tensors_[t].name == "lm_head.weight" ? 0.0f : static_cast<float>(t);
      std::vector<uint8_t> bytes(count * dtype_size(tensors_[t].dtype));
      const std::vector<float> values(count, value);
      if (is_floating(tensors_[t].dtype)) {
        convert_elements(values.data(), DType::kF32, bytes.data(), tensors_[t].dtype, count);
      }
      writer.write(bytes.data(), bytes.size());
    }
    writer.finish();
    source_ = std::make_unique<TensorSource>(TensorSource::open_directory(directory_.string()));
    return resolve_gpt2_weights(*source_, config_, "model");
  }

  std::string message() {
    try {
      resolve();
    } catch (const Error& error) {
      return fmt::format("{}: {}", error_code_name(error.code()), error.what());
    }
    return "accepted";
  }

  fs::path directory_;
  ModelConfig config_;
  std::vector<SafetensorsWriter::Spec> tensors_;
  std::unique_ptr<TensorSource> source_;
  bool head_equals_wte_ = false;
};

TEST_F(WeightSpecFileTest, MasksOfEveryFormAreSkippedAndBiasesAreNot) {
  tensors_.push_back({"h.0.attn.bias", DType::kU8, {1, 1, 6, 6}});
  tensors_.push_back({"transformer.h.0.attn.masked_bias", DType::kF32, {}});
  tensors_.push_back({"h.7.attn.bias", DType::kBool, {1, 1, 3, 3}});
  tensors_.push_back({"h.1.attn.masked_bias", DType::kF16, {1}});
  const ResolvedWeights resolved = resolve();
  EXPECT_EQ(std::set<std::string>(resolved.skipped.begin(), resolved.skipped.end()),
            (std::set<std::string>{"h.0.attn.bias", "h.1.attn.masked_bias", "h.7.attn.bias",
                                   "transformer.h.0.attn.masked_bias"}));
  EXPECT_EQ(resolved.weights.size(), tensors_.size() - 4);
  tensors_.push_back({"h.2.attn.bias", DType::kF32, {12}});  // not a mask: [n,n] is one
  EXPECT_EQ(message(),
            "unsupported: model: 1 tensors have no place in GPT-2 with 1 layers: h.2.attn.bias");
}

TEST_F(WeightSpecFileTest, StoredHeadIsComparedWithTheEmbedding) {
  tensors_.push_back({"lm_head.weight", DType::kF32, {5, 4}});
  head_equals_wte_ = true;
  for (const bool tied : {true, false}) {
    config_.tie_word_embeddings = tied;
    const ResolvedWeights equal = resolve();
    EXPECT_TRUE(equal.has_stored_head);
    EXPECT_FALSE(equal.has_own_head);
    EXPECT_EQ(equal.weights.back().spec.name, "ln_f.bias");
  }
  head_equals_wte_ = false;
  for (const bool tied : {true, false}) {
    config_.tie_word_embeddings = tied;
    const ResolvedWeights own = resolve();
    EXPECT_TRUE(own.has_own_head);
    EXPECT_EQ(own.weights.back().spec.role, WeightRole::kHead);
  }
}

TEST_F(WeightSpecFileTest, ATiedHeadAloneIsTheEmbedding) {
  named("wte.weight").name = "lm_head.weight";
  const ResolvedWeights resolved = resolve();
  EXPECT_EQ(resolved.weights.front().spec.name, "wte.weight");
  EXPECT_EQ(resolved.weights.front().tensor->name, "lm_head.weight");
  EXPECT_FALSE(resolved.has_own_head);
  EXPECT_FALSE(resolved.has_stored_head);
  config_.tie_word_embeddings = false;
  EXPECT_EQ(message(), "corrupt file: model: 1 of 17 tensors are missing: wte.weight");
}

TEST_F(WeightSpecFileTest, OtherHeadsAreLeftOutAndStrangersAreNot) {
  for (const char* name :
       {"v_head.summary.weight", "transformer.score.weight", "classifier.bias", "qa_outputs.bias",
        "multiple_choice_head.summary.weight", "h.0.crossattention.q_attn.weight",
        "transformer.h.0.ln_cross_attn.bias"}) {
    tensors_.push_back({name, DType::kF32, {4}});
  }
  tensors_.push_back({"transformer.position_ids", DType::kI64, {1, 6}});
  const ResolvedWeights resolved = resolve();
  EXPECT_EQ(resolved.other_heads.size(), 7u);
  EXPECT_EQ(resolved.skipped, std::vector<std::string>{"transformer.position_ids"});
  for (const char* name : {"h.0.attn.c_attn.lora_A.weight", "lm_head.bias", "scores", "v_heads.x",
                           "h.0.attn.rotary.bias", "h.1.ln_1.weight", "head.weight"}) {
    tensors_.push_back({name, DType::kF32, {4}});
    EXPECT_EQ(message(), fmt::format("unsupported: model: 1 tensors have no place in GPT-2 with 1 "
                                     "layers: {}",
                                     name));
    tensors_.pop_back();
  }
}

TEST_F(WeightSpecFileTest, APrefixOfSomeNamesIsNamed) {
  for (SafetensorsWriter::Spec& tensor : tensors_) {
    if (tensor.name != "ln_f.bias") tensor.name = "backbone." + tensor.name;
  }
  EXPECT_NE(message().find("; all names must have the same prefix: strip \"backbone.\""),
            std::string::npos)
      << message();
}

TEST_F(WeightSpecFileTest, UntiedModelsNeedAHead) {
  config_.tie_word_embeddings = false;
  EXPECT_EQ(message(),
            "corrupt file: model: lm_head.weight is missing although tie_word_embeddings is false");
}

TEST_F(WeightSpecFileTest, ShapesAndDtypesAreChecked) {
  named("h.0.attn.c_attn.weight").shape = {12, 4};
  EXPECT_EQ(message(),
            "corrupt file: model: h.0.attn.c_attn.weight: shape [12,4], expected [4,12]");
  named("h.0.attn.c_attn.weight").shape = {4, 12};
  named("wpe.weight").dtype = DType::kF64;
  EXPECT_EQ(message(), "accepted");
  named("wpe.weight").dtype = DType::kI32;
  EXPECT_EQ(message(),
            "unsupported: model: wpe.weight: dtype int32, expected float64, float32, float16 or "
            "bfloat16");
}

TEST_F(WeightSpecFileTest, MissingAndUnexpectedTensorsAreNamed) {
  named("ln_f.bias").name = "transformer.ln_g.bias";
  EXPECT_EQ(message(),
            "corrupt file: model: 1 of 16 tensors are missing: ln_f.bias; without a place: "
            "transformer.ln_g.bias");
  config_.num_layers = 3;
  EXPECT_EQ(message(),
            "corrupt file: model: 25 of 40 tensors are missing: h.1.ln_1.weight, h.1.ln_1.bias, "
            "h.1.attn.c_attn.weight, h.1.attn.c_attn.bias, h.1.attn.c_proj.weight, "
            "h.1.attn.c_proj.bias, h.1.ln_2.weight, h.1.ln_2.bias and 17 more; without a place: "
            "transformer.ln_g.bias");
  config_.num_layers = 1;
  named("transformer.ln_g.bias").name = "transformer.ln_f.bias";
  EXPECT_EQ(message(), "accepted");
  tensors_.push_back({"ln_f.bias", DType::kF32, {4}});
  EXPECT_EQ(message(), "corrupt file: model: both ln_f.bias and transformer.ln_f.bias are stored");
}

TEST_F(WeightSpecFileTest, SplitsFollowTheKindOfTensor) {
  const auto split = [&](const std::string& name) {
    for (const WeightSpec& spec : gpt2_weight_specs(config_, true)) {
      if (spec.name == name) return spec.split;
    }
    throw std::out_of_range(name);
  };
  EXPECT_EQ(split("wte.weight"), WeightSplit::kVocabulary);
  EXPECT_EQ(split("lm_head.weight"), WeightSplit::kVocabulary);
  EXPECT_EQ(split("wpe.weight"), WeightSplit::kNone);
  EXPECT_EQ(split("h.0.attn.c_attn.weight"), WeightSplit::kQkvColumns);
  EXPECT_EQ(split("h.0.attn.c_attn.bias"), WeightSplit::kQkvColumns);
  EXPECT_EQ(split("h.0.attn.c_proj.weight"), WeightSplit::kRows);
  EXPECT_EQ(split("h.0.attn.c_proj.bias"), WeightSplit::kNone);
  EXPECT_EQ(split("h.0.mlp.c_fc.weight"), WeightSplit::kColumns);
  EXPECT_EQ(split("h.0.mlp.c_fc.bias"), WeightSplit::kColumns);
  EXPECT_EQ(split("h.0.mlp.c_proj.weight"), WeightSplit::kRows);
  EXPECT_EQ(split("h.0.ln_1.weight"), WeightSplit::kNone);
}

TEST_F(WeightSpecFileTest, OpenDirectoryNamesWhatItLooksFor) {
  EXPECT_THROW(TensorSource::open_directory((directory_ / "none").string()), Error);
  try {
    TensorSource::open_directory(directory_.string());
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    EXPECT_NE(std::string(error.what()).find("expected model.safetensors"), std::string::npos);
  }
}

}  // namespace
}  // namespace caravan
