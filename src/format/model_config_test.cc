#include "format/model_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

#include "core/error.h"
#include "core/log.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

// camel-5b-hf's own config.json, with what old transformers versions add.
constexpr const char* kCamel = R"({
  "_name_or_path": "Writer/camel-5b-hf", "activation_function": "gelu",
  "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
  "embd_pdrop": 0.1, "eos_token_id": 50256, "gradient_checkpointing": false,
  "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_embd": 4096,
  "n_head": 32, "n_inner": 16384, "n_layer": 24, "n_positions": 2048,
  "reorder_and_upcast_attn": false, "resid_pdrop": 0.1, "scale_attn_by_inverse_layer_idx": false,
  "scale_attn_weights": true, "summary_activation": null, "summary_first_dropout": 0.1,
  "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
  "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
  "torch_dtype": "float16", "transformers_version": "4.28.1", "use_cache": false,
  "vocab_size": 50258})";

ModelConfig parse(const std::string& json) { return parse_model_config(json, "config.json"); }

ModelConfig parse_with(const std::string& fields) {
  return parse("{\"model_type\": \"gpt2\"" + (fields.empty() ? "" : ", " + fields) + "}");
}

class QuietTest : public ::testing::Test {
 protected:
  void SetUp() override { set_log_level(LogLevel::kOff); }
  void TearDown() override { set_log_level(LogLevel::kInfo); }
};
using ModelConfigTest = QuietTest;

TEST_F(ModelConfigTest, ReadsCamel) {
  const ModelConfig config = parse(kCamel);
  EXPECT_EQ(config.vocab_size, 50258);
  EXPECT_EQ(config.hidden_size, 4096);
  EXPECT_EQ(config.num_layers, 24);
  EXPECT_EQ(config.num_heads, 32);
  EXPECT_EQ(config.ffn_size, 16384);
  EXPECT_EQ(config.max_seq_len, 2048);
  EXPECT_EQ(config.activation, Activation::kGelu);
  EXPECT_EQ(config.layer_norm_epsilon, 1e-5f);
  EXPECT_EQ(config.torch_dtype, DType::kF16);
  EXPECT_EQ(config.eos_token_ids, std::vector<int32_t>{50256});
  EXPECT_EQ(config.bos_token_id, 50256);
  EXPECT_EQ(config.pad_token_id, -1);
  EXPECT_EQ(config.num_parameters(), 5'047'369'728);
  EXPECT_EQ(config.attention_scale(5), static_cast<float>(1.0 / std::sqrt(128.0)));
}

TEST_F(ModelConfigTest, DefaultsAreGpt2Small) {
  const ModelConfig config = parse_with("");
  EXPECT_EQ(config.vocab_size, 50257);
  EXPECT_EQ(config.hidden_size, 768);
  EXPECT_EQ(config.num_layers, 12);
  EXPECT_EQ(config.num_heads, 12);
  EXPECT_EQ(config.ffn_size, 3072);
  EXPECT_EQ(config.max_seq_len, 1024);
  EXPECT_EQ(config.activation, Activation::kGeluTanh);
  EXPECT_TRUE(config.scale_attn_weights);
  EXPECT_FALSE(config.scale_attn_by_inverse_layer_idx);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.torch_dtype, DType::kF32);
  EXPECT_EQ(config.num_parameters(), 124'439'808);  // the published size of gpt2
}

TEST_F(ModelConfigTest, EveryActivationKeepsItsMeaning) {
  const std::pair<const char*, Activation> cases[] = {{"gelu", Activation::kGelu},
                                                      {"gelu_new", Activation::kGeluTanh},
                                                      {"gelu_fast", Activation::kGeluTanh},
                                                      {"gelu_pytorch_tanh", Activation::kGeluTanh},
                                                      {"quick_gelu", Activation::kQuickGelu},
                                                      {"relu", Activation::kRelu},
                                                      {"silu", Activation::kSilu},
                                                      {"swish", Activation::kSilu},
                                                      {"tanh", Activation::kTanh}};
  for (const auto& [name, activation] : cases) {
    const ModelConfig config = parse_with(fmt::format("\"activation_function\": \"{}\"", name));
    EXPECT_EQ(config.activation, activation) << name;
    EXPECT_EQ(config.activation_function, name);
  }
}

TEST_F(ModelConfigTest, AttentionScaleFollowsBothSwitches) {
  const auto scale = [](const char* fields, int64_t layer) {
    return parse_with(std::string("\"n_embd\": 64, \"n_head\": 4, ") + fields)
        .attention_scale(layer);
  };
  EXPECT_EQ(scale("\"scale_attn_weights\": true", 2), 0.25f);
  EXPECT_EQ(scale("\"scale_attn_weights\": false", 2), 1.0f);
  EXPECT_EQ(scale("\"scale_attn_by_inverse_layer_idx\": true", 3), 0.0625f);
  EXPECT_EQ(scale("\"scale_attn_weights\": false, \"scale_attn_by_inverse_layer_idx\": true", 3),
            0.25f);
}

TEST_F(ModelConfigTest, PositionsComeFromNPositionsOrNCtxAlone) {
  EXPECT_EQ(parse_with("\"n_positions\": 64").max_seq_len, 64);
  EXPECT_EQ(parse_with("\"n_ctx\": 128").max_seq_len, 128);
  EXPECT_EQ(parse_with("\"n_positions\": 64, \"n_ctx\": 128").max_seq_len, 64);
  EXPECT_EQ(parse_with("\"max_position_embeddings\": 32").max_seq_len, 32);
}

TEST_F(ModelConfigTest, TransformersAliasesMeanTheSame) {
  const ModelConfig config = parse_with(
      "\"hidden_size\": 96, \"num_hidden_layers\": 3, \"num_attention_heads\": 6, \"n_head\": 6");
  EXPECT_EQ(config.hidden_size, 96);
  EXPECT_EQ(config.num_layers, 3);
  EXPECT_EQ(config.num_heads, 6);
  EXPECT_EQ(config.ffn_size, 384);
}

TEST_F(ModelConfigTest, TokenIdsMayBeListsNullOrOutsideTheVocabulary) {
  EXPECT_EQ(parse_with("\"eos_token_id\": [5, 7]").eos_token_ids, (std::vector<int32_t>{5, 7}));
  EXPECT_TRUE(parse_with("\"eos_token_id\": null").eos_token_ids.empty());
  EXPECT_TRUE(parse_with("\"eos_token_id\": -1").eos_token_ids.empty());
  EXPECT_TRUE(parse_with("\"vocab_size\": 100, \"eos_token_id\": 50256").eos_token_ids.empty());
  EXPECT_TRUE(parse_with("\"vocab_size\": 100").eos_token_ids.empty());
  EXPECT_EQ(parse_with("\"vocab_size\": 100").bos_token_id, -1);
  EXPECT_EQ(parse_with("\"pad_token_id\": 3").pad_token_id, 3);
}

TEST_F(ModelConfigTest, UnknownFieldsAreErrorsUnlessTheyAreOff) {
  for (const char* field : {"\"rotary_dim\": 64", "\"auto_map\": {\"a\": \"b\"}",
                            "\"quantization_config\": {\"bits\": 4}", "\"n_expert\": 1"}) {
    try {
      parse_with(field);
      ADD_FAILURE() << field;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << field;
    }
  }
  for (const char* field : {"\"rotary_dim\": null", "\"use_moe\": false", "\"pruned_heads\": {}"}) {
    EXPECT_NO_THROW(parse_with(field)) << field;
  }
}

TEST_F(ModelConfigTest, HuggingFaceTextReadsBackEqual) {
  for (const std::string& text :
       {std::string(kCamel),
        std::string(R"({"model_type": "gpt2", "eos_token_id": [1, 2], "bos_token_id": null,
          "layer_norm_epsilon": 0.001, "activation_function": "swish", "n_inner": 200,
          "scale_attn_weights": false, "tie_word_embeddings": false})")}) {
    const ModelConfig config = parse(text);
    const std::string written = to_hf_config_json(config, DType::kBF16);
    const ModelConfig again = parse(written);
    EXPECT_EQ(again.torch_dtype, DType::kBF16);
    EXPECT_EQ(again.layer_norm_epsilon, config.layer_norm_epsilon);
    EXPECT_EQ(again.eos_token_ids, config.eos_token_ids);
    EXPECT_EQ(again.bos_token_id, config.bos_token_id);
    EXPECT_EQ(again.activation_function, config.activation_function);
    EXPECT_EQ(again.ffn_size, config.ffn_size);
    EXPECT_EQ(again.scale_attn_weights, config.scale_attn_weights);
    EXPECT_EQ(again.tie_word_embeddings, config.tie_word_embeddings);
    EXPECT_EQ(to_hf_config_json(again, DType::kBF16), written);
  }
}

TEST_F(ModelConfigTest, GenerationConfigOverridesTokenIds) {
  const fs::path directory =
      fs::temp_directory_path() / fmt::format("caravan_model_config_test_{}", ::getpid());
  fs::create_directories(directory);
  std::ofstream(directory / "config.json") << kCamel;
  EXPECT_EQ(load_model_config(directory.string()).eos_token_ids, std::vector<int32_t>{50256});
  std::ofstream(directory / "generation_config.json")
      << R"({"eos_token_id": [50256, 50257], "pad_token_id": 50257, "temperature": 0.7})";
  const ModelConfig config = load_model_config(directory.string());
  EXPECT_EQ(config.eos_token_ids, (std::vector<int32_t>{50256, 50257}));
  EXPECT_EQ(config.pad_token_id, 50257);
  EXPECT_EQ(config.bos_token_id, 50256);
  fs::remove_all(directory);
}

}  // namespace
}  // namespace caravan
