#include "convert/engine_builder.h"

#include <algorithm>
#include <cmath>

#include "convert/hf_converter.h"
#include "convert/lint.h"
#include "convert/test_models.h"
#include "format/model_dir.h"
#include "format/weight_check.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

EngineBuildOptions options_for(const std::string& input, const std::string& output, DType dtype) {
  EngineBuildOptions options;
  options.input = input;
  options.output = output;
  options.build.dtype = dtype;
  options.build.kv_cache_dtype = dtype;
  options.build.max_batch_size = 2;
  options.build.max_input_len = 20;
  options.build.max_output_len = 11;
  return options;
}

class EngineBuilderTest : public TempDirectoryTest {};

TEST_F(EngineBuilderTest, EveryElementIsWhereTheLayoutSays) {
  write_odd_model(at("hf"), DType::kF32, false);
  const TensorSource source = TensorSource::open_directory(at("hf"));
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    const EngineBuildResult result =
        build_engine(options_for(at("hf"), at(dtype_name(dtype)), dtype));
    const ModelDir dir = open_model_dir(at(dtype_name(dtype)));
    ASSERT_EQ(dir.kind, ModelDirKind::kEngine);
    EXPECT_TRUE(dir.has_own_head);
    EXPECT_EQ(dir.build->max_input_len, 20);
    EXPECT_EQ(dir.build->dtype, dtype);
    EXPECT_EQ(result.num_bytes, result.plan.weights_bytes);
    EXPECT_TRUE(verify_checksums(dir));
    const TensorSource engine = TensorSource::open_file(dir.rank_path(0));
    int64_t num_bytes = 0;
    for (const WeightSpec& spec : gpt2_weight_specs(dir.config, true)) {
      SCOPED_TRACE(fmt::format("{} {}", spec.name, dtype_name(dtype)));
      const StoredTensor* got = engine.find(spec.name);
      ASSERT_NE(got, nullptr);
      num_bytes += static_cast<int64_t>(got->num_bytes());
      EXPECT_EQ(got->offset % 4096, 0u);
      const StoredTensor* from = source.find("transformer." + spec.name);
      if (from == nullptr) from = source.find(spec.name);
      const EngineTensor& entry = dir.tensors.at(spec.name);
      const bool is_vector = spec.role == WeightRole::kVector;
      EXPECT_EQ(got->dtype, is_vector ? DType::kF32 : dtype);
      const auto rounded = [&](int64_t i) {
        const float value = load_as_f32(from->data(), DType::kF32, static_cast<size_t>(i));
        if (is_vector || dtype == DType::kF32) return value;
        return dtype == DType::kF16 ? f16_to_f32(f32_to_f16(value))
                                    : bf16_to_f32(f32_to_bf16(value));
      };
      const auto stored = [&](int64_t i) {
        return load_as_f32(got->data(), got->dtype, static_cast<size_t>(i));
      };
      if (spec.in_features == 0) {
        ASSERT_EQ(got->shape, spec.shape);
        for (int64_t i = 0; i < spec.shape.num_elements(); ++i) ASSERT_EQ(stored(i), rounded(i));
        continue;
      }
      EXPECT_EQ(entry.layout,
                dtype == DType::kBF16 ? LinearLayout::kPanel32Pairs : LinearLayout::kPanel32);
      double sum = 0;
      for (int64_t k = 0; k < spec.in_features; ++k) {
        for (int64_t n = 0; n < spec.out_features; ++n) {
          const float wanted =
              rounded(linear_index(spec.stored_layout, spec.in_features, spec.out_features, k, n));
          ASSERT_EQ(stored(linear_index(entry.layout, spec.in_features, spec.out_features, k, n)),
                    wanted)
              << k << " " << n;
          sum += std::abs(double{wanted});
        }
      }
      double stored_sum = 0;  // the padding adds nothing
      for (int64_t i = 0; i < got->shape.num_elements(); ++i) stored_sum += std::abs(stored(i));
      EXPECT_NEAR(stored_sum, sum, 1e-9 * sum);
    }
    EXPECT_EQ(num_bytes, result.plan.weights_bytes);
  }
}

KvCalibration odd_calibration(DType dtype) {
  KvCalibration calibration;
  calibration.scales = uniform_kv_scales(odd_config(), 0.0f);
  float next = 0.01f;
  for (auto* values : {&calibration.scales.k, &calibration.scales.v}) {
    for (float& value : *values) value = next *= 1.1f;
  }
  calibration.dtype = dtype;
  calibration.record = {{"dtype", dtype_name(dtype)}, {"method", "absmax"}};
  return calibration;
}

TEST_F(EngineBuilderTest, KvScalesPassThroughEveryDirectory) {
  write_odd_model(at("hf"), DType::kF32, false);
  const KvCalibration calibration = odd_calibration(DType::kI8);
  ConvertOptions convert;
  convert.input = at("hf");
  convert.output = at("checkpoint");
  convert.kv_calibration = calibration;
  convert_checkpoint(convert);
  EngineBuildOptions options = options_for(at("checkpoint"), at("engine"), DType::kF16);
  options.build.kv_cache_dtype = DType::kI8;
  const EngineBuildResult result = build_engine(options);
  for (const char* name : {"checkpoint", "engine"}) {
    const ModelDir dir = open_model_dir(at(name));
    ASSERT_EQ(dir.kv_scale_dtype, DType::kI8) << name;
    const auto got = load_kv_calibration(dir);
    ASSERT_TRUE(got.has_value());
    EXPECT_EQ(got->scales.k, calibration.scales.k) << name;
    EXPECT_EQ(got->scales.v, calibration.scales.v) << name;
    EXPECT_EQ(got->record, calibration.record) << name;
    // For the other dtype the clipping values are the same.
    const KvScales other = kv_scales_for(*got, DType::kF8E4M3);
    for (size_t i = 0; i < other.k.size(); ++i) {
      EXPECT_FLOAT_EQ(other.k[i] * 448, calibration.scales.k[i] * 127);
      EXPECT_FLOAT_EQ(other.v[i] * 448, calibration.scales.v[i] * 127);
    }
  }
  const ModelDir engine = open_model_dir(at("engine"));
  EXPECT_EQ(engine.build->kv_cache_dtype, DType::kI8);
  EXPECT_TRUE(verify_checksums(engine));
  EXPECT_EQ(result.num_bytes, result.plan.weights_bytes + result.plan.kv_scale_bytes);
  EXPECT_FALSE(load_kv_calibration(open_model_dir(at("hf"))).has_value());
}

TEST_F(EngineBuilderTest, KvScalesAreSplitByHeads) {
  ModelConfig config = odd_config();
  SynthOptions synth;
  synth.config = config;
  synth.config.hidden_size = 48;
  synth.config.num_heads = 6;
  synth.config.ffn_size = 96;
  synth.config.num_layers = 2;
  write_synthetic_model(synth, at("hf"));
  ConvertOptions convert;
  convert.input = at("hf");
  convert.output = at("checkpoint");
  convert.tensor_parallel = 2;
  KvCalibration calibration = odd_calibration(DType::kF8E4M3);
  calibration.scales = uniform_kv_scales(synth.config, 0.0f);
  for (size_t i = 0; i < 12; ++i) {
    calibration.scales.k[i] = static_cast<float>(i + 1);
    calibration.scales.v[i] = static_cast<float>(i + 101);
  }
  convert.kv_calibration = calibration;
  convert_checkpoint(convert);
  for (int rank = 0; rank < 2; ++rank) {
    const TensorSource source =
        TensorSource::open_file(open_model_dir(at("checkpoint")).rank_path(rank));
    for (size_t layer = 0; layer < 2; ++layer) {
      for (const bool is_k : {true, false}) {
        const StoredTensor* tensor =
            source.find(fmt::format("h.{}.attn.{}_scale", layer, is_k ? "k" : "v"));
        ASSERT_NE(tensor, nullptr);
        ASSERT_EQ(tensor->shape, Shape{3});
        for (size_t h = 0; h < 3; ++h) {
          EXPECT_EQ(load_as_f32(tensor->data(), DType::kF32, h),
                    static_cast<float>(layer * 6 + static_cast<size_t>(rank) * 3 + h) +
                        (is_k ? 1.0f : 101.0f));
        }
      }
    }
  }
}

TEST_F(EngineBuilderTest, BrokenKvScalesAreNamed) {
  write_odd_model(at("hf"), DType::kF32, false);
  EngineBuildOptions options = options_for(at("hf"), at("engine"), DType::kF16);
  options.build.kv_cache_dtype = DType::kI8;
  const auto missing = error_of([&] { build_engine(options); });
  EXPECT_EQ(missing.first, ErrorCode::kInvalidArgument);
  EXPECT_NE(missing.second.find("--calibrate-kv-cache FILE"), std::string::npos) << missing.second;
  EXPECT_FALSE(fs::exists(at("engine")));
  int next = 0;
  for (const float bad : {0.0f, -1.0f, INFINITY, std::nanf("")}) {
    options.output = at("engine" + std::to_string(next++));
    options.kv_calibration = odd_calibration(DType::kI8);
    options.kv_calibration->scales.v[1] = bad;
    build_engine(options);
    const auto error = error_of([&] { load_kv_calibration(open_model_dir(options.output)); });
    EXPECT_EQ(error.first, ErrorCode::kCorrupt);
    EXPECT_NE(error.second.find("h.0.attn.v_scale of head 1"), std::string::npos) << error.second;
  }
  options.output = at("few");
  options.kv_calibration = odd_calibration(DType::kI8);
  options.kv_calibration->scales.k.pop_back();
  EXPECT_EQ(error_of([&] { build_engine(options); }).first, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(fs::exists(at("few")));
}

// wte of 50,258 rows passes through the builder in several pieces.
TEST_F(EngineBuilderTest, LargeMatricesAreTheSameInPieces) {
  SynthOptions synth;
  synth.config = odd_config();
  synth.config.vocab_size = 70'001;
  synth.config.num_layers = 1;
  write_synthetic_model(synth, at("hf"));
  build_engine(options_for(at("hf"), at("engine"), DType::kF16));
  const TensorSource source = TensorSource::open_directory(at("hf"));
  const TensorSource engine = TensorSource::open_file(at("engine/rank0.safetensors"));
  const StoredTensor* from = source.find("transformer.wte.weight");
  ASSERT_GT(from->num_bytes(), uint64_t{8} << 20);
  std::vector<uint16_t> halves(static_cast<size_t>(from->shape.num_elements()));
  convert_elements(from->data(), DType::kF32, halves.data(), DType::kF16, halves.size());
  std::vector<uint16_t> packed(
      static_cast<size_t>(linear_num_elements(LinearLayout::kPanel32, 36, 70'001)));
  pack_linear(halves.data(), LinearLayout::kOutIn, DType::kF16, 36, 70'001, LinearLayout::kPanel32,
              packed.data());
  const StoredTensor* got = engine.find("wte.weight");
  ASSERT_EQ(got->num_bytes(), packed.size() * 2);
  EXPECT_EQ(std::memcmp(got->data(), packed.data(), packed.size() * 2), 0);
}

TEST_F(EngineBuilderTest, ThroughACheckpointTheBytesAreTheSame) {
  write_odd_model(at("hf"));
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    const std::string name = dtype_name(dtype);
    ConvertOptions convert;
    convert.input = at("hf");
    convert.output = at("checkpoint-" + name);
    convert.dtype = dtype;
    convert_checkpoint(convert);
    build_engine(options_for(at("hf"), at("direct-" + name), dtype));
    build_engine(options_for(convert.output, at("indirect-" + name), dtype));
    for (const char* file : {"/rank0.safetensors", "/config.json"}) {
      EXPECT_EQ(file_bytes(at("direct-" + name) + file), file_bytes(at("indirect-" + name) + file))
          << name << file;
    }
  }
}

TEST_F(EngineBuilderTest, EveryFlippedBitIsFound) {
  write_odd_model(at("hf"));
  build_engine(options_for(at("hf"), at("engine"), DType::kF16));
  const ModelDir dir = open_model_dir(at("engine"));
  const std::string good = file_bytes(dir.rank_path(0));
  uint64_t offset = 0;
  uint64_t num_bytes = 0;
  {
    const TensorSource source = TensorSource::open_file(dir.rank_path(0));
    offset = source.find("h.0.attn.c_attn.weight")->offset;
    num_bytes = source.find("h.0.attn.c_attn.weight")->num_bytes();
  }
  for (uint64_t i = 0; i < num_bytes; i += num_bytes / 20) {
    std::string bad = good;
    bad[offset + i] ^= static_cast<char>(1 << (i % 8));
    std::ofstream(dir.rank_path(0), std::ios::binary) << bad;
    const auto [code, message] = error_of([&] { verify_checksums(dir); });
    EXPECT_EQ(code, ErrorCode::kCorrupt);
    EXPECT_NE(message.find("h.0.attn.c_attn.weight"), std::string::npos) << message;
  }
}

TEST_F(EngineBuilderTest, TheCertificateIsStoredOrFailsTheBuild) {
  write_odd_model(at("hf"));
  EngineBuildOptions options = options_for(at("hf"), at("engine"), DType::kF16);
  options.certify = [&](const std::string& path) {
    EXPECT_EQ(open_model_dir(path).kind, ModelDirKind::kEngine);
    EXPECT_FALSE(fs::exists(at("engine")));
    return boost::json::object{{"kl_max", 0.5}};
  };
  build_engine(options);
  const ModelDir dir = open_model_dir(at("engine"));
  EXPECT_EQ(dir.caravan.at("certificate").at("kl_max").as_double(), 0.5);
  EXPECT_GT(dir.caravan.at("memory_plan").at("weights_bytes").as_int64(), 0);

  options.output = at("other");
  options.certify = [](const std::string&) -> boost::json::object {
    CARAVAN_FAIL(kUnsupported, "parity: too far");
  };
  EXPECT_EQ(error_of([&] { build_engine(options); }).second, "parity: too far");
  EXPECT_FALSE(fs::exists(at("other")));
  EXPECT_FALSE(fs::exists(at("other.partial")));
}

TEST_F(EngineBuilderTest, WhatCannotBeBuiltIsRefusedBeforeAnythingIsWritten) {
  write_odd_model(at("hf"));
  const auto code_of = [&](const EngineBuildOptions& options) {
    const ErrorCode code = error_of([&] { build_engine(options); }).first;
    EXPECT_FALSE(fs::exists(options.output));
    EXPECT_FALSE(fs::exists(options.output + ".partial"));
    return code;
  };
  EngineBuildOptions options = options_for(at("hf"), at("engine"), DType::kF16);
  options.build.target = "sm_70";
  EXPECT_EQ(code_of(options), ErrorCode::kUnsupported);
  options = options_for(at("hf"), at("engine"), DType::kF16);
  options.build.max_input_len = 21;  // 21 + 11 exceed 31 positions
  EXPECT_EQ(code_of(options), ErrorCode::kInvalidArgument);
  options = options_for(at("none"), at("engine"), DType::kF16);
  EXPECT_EQ(code_of(options), ErrorCode::kNotFound);

  ConvertOptions convert;
  convert.input = at("hf");
  convert.output = at("split");
  convert.tensor_parallel = 2;
  convert_checkpoint(convert);
  EXPECT_EQ(code_of(options_for(at("split"), at("engine"), DType::kF16)), ErrorCode::kUnsupported);

  build_engine(options_for(at("hf"), at("built"), DType::kF16));
  EXPECT_EQ(code_of(options_for(at("built"), at("engine"), DType::kF16)),
            ErrorCode::kInvalidArgument);
}

TEST_F(EngineBuilderTest, ReplaceKeepsTheOldEngineUntilTheNewOneIsWhole) {
  write_odd_model(at("hf"));
  EngineBuildOptions options = options_for(at("hf"), at("engine"), DType::kF16);
  build_engine(options);
  EXPECT_EQ(error_of([&] { build_engine(options); }).first, ErrorCode::kInvalidArgument);
  options.replace = true;
  options.build.dtype = DType::kBF16;
  options.certify = [&](const std::string&) {
    EXPECT_EQ(open_model_dir(at("engine")).build->dtype, DType::kF16);
    return boost::json::object{};
  };
  build_engine(options);
  EXPECT_EQ(open_model_dir(at("engine")).build->dtype, DType::kBF16);
}

class LintTest : public TempDirectoryTest {
 protected:
  // The ids of the findings, and the worst severity through `worst`.
  std::vector<std::string> lint(const std::string& extra, std::optional<int64_t> tokens,
                                LintSeverity* worst = nullptr, bool is_tied = true) {
    fs::remove_all(at("hf"));
    write_odd_model(at("hf"), DType::kF32, is_tied);
    std::string config = file_bytes(at("hf/config.json"));
    if (!extra.empty()) {
      const size_t line = config.find("\"" + extra.substr(1, extra.find('"', 1) - 1) + "\"");
      if (line != std::string::npos) config.erase(line, config.find('\n', line) - line);
      config.insert(config.find('{') + 1, "\n  " + extra + ",");
    }
    std::ofstream(at("hf/config.json")) << config;
    const ModelDir dir = open_model_dir(at("hf"));
    const TensorSource source = TensorSource::open_directory(at("hf"));
    const ResolvedWeights weights = resolve_gpt2_weights(source, dir.config, at("hf"));
    LintInputs inputs;
    inputs.tokenizer_vocab_size = tokens;
    inputs.weights = &weights;
    inputs.chat_template_file = chat_template_file_;
    std::vector<std::string> ids;
    for (const LintFinding& finding : lint_model(dir, inputs)) {
      ids.push_back(finding.id);
      if (worst != nullptr && ids.size() == 1) *worst = finding.severity;
    }
    return ids;
  }
  static bool has(const std::vector<std::string>& ids, const char* id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  }

  std::optional<std::string> chat_template_file_;
};

TEST_F(LintTest, AChatTemplateOfTheModelsOwnIsAWarning) {
  EXPECT_FALSE(has(lint("", 101), "chat-template-not-read"));
  chat_template_file_ = "chat_template.jinja";
  LintSeverity worst{};
  EXPECT_TRUE(has(lint("", 101, &worst), "chat-template-not-read"));
  EXPECT_EQ(worst, LintSeverity::kWarning);
}

TEST_F(LintTest, ACleanModelHasNotesOnly) {
  LintSeverity worst{};
  const auto ids = lint("", 101, &worst);
  EXPECT_EQ(worst, LintSeverity::kNote);
  EXPECT_TRUE(has(ids, "exact-gelu"));
  EXPECT_TRUE(has(ids, "vocab-padding"));
  EXPECT_TRUE(has(ids, "wide-checkpoint"));
  EXPECT_EQ(ids.size(), 3u);
}

TEST_F(LintTest, EachRuleFires) {
  LintSeverity worst{};
  EXPECT_TRUE(has(lint("\"n_ctx\": 64", 101, &worst), "positions-conflict"));
  EXPECT_EQ(worst, LintSeverity::kError);
  EXPECT_TRUE(has(lint("\"pad_token_id\": 101", 101, &worst), "token-id-range"));
  EXPECT_EQ(worst, LintSeverity::kError);
  EXPECT_TRUE(has(lint("\"eos_token_id\": null", 101, &worst), "eos-missing"));
  EXPECT_EQ(worst, LintSeverity::kWarning);
  EXPECT_TRUE(has(lint("", 102, &worst), "tokenizer-too-large"));
  EXPECT_EQ(worst, LintSeverity::kError);
  EXPECT_TRUE(has(lint("", 100, &worst), "tokenizer-too-small"));
  EXPECT_EQ(worst, LintSeverity::kWarning);
  EXPECT_TRUE(has(lint("", std::nullopt, &worst), "tokenizer-missing"));
  EXPECT_EQ(worst, LintSeverity::kWarning);
  EXPECT_TRUE(has(lint("\"tie_word_embeddings\": true", 101, &worst, false), "tied-head-differs"));
  EXPECT_EQ(worst, LintSeverity::kWarning);
}

TEST_F(LintTest, StoredMasksAreNamed) {
  const std::string path = CARAVAN_SOURCE_DIR "/tests/goldens/variants/camel_form";
  const ModelDir dir = open_model_dir(path);
  const TensorSource source = TensorSource::open_directory(path);
  const ResolvedWeights weights = resolve_gpt2_weights(source, dir.config, path);
  LintInputs inputs;
  inputs.weights = &weights;
  std::vector<std::string> ids;
  for (const LintFinding& finding : lint_model(dir, inputs)) ids.push_back(finding.id);
  EXPECT_TRUE(has(ids, "stored-masks"));
}

}  // namespace
}  // namespace caravan
