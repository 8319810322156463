// A model streamed one layer at a time computes what Gpt2Model::forward does, bit by bit: every
// operator's values and the logits, whatever the chunks.

#include "models/layer_stream.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <numeric>
#include <random>

#include "convert/engine_builder.h"
#include "convert/test_models.h"
#include "engine/model_runner.h"
#include "format/model_dir.h"
#include "tests/test_backends.h"

namespace caravan {
namespace {

const std::string kVariants = CARAVAN_SOURCE_DIR "/tests/goldens/variants/";
const std::string kCamelNano = CARAVAN_SOURCE_DIR "/models/camel-nano";

using Values = std::map<std::string, std::vector<float>>;  // of all tokens, by operator

constexpr int64_t kMaxStep = 16;

/// Sequences of these lengths, one after the other: chunks of one, several in a step, one alone.
struct Text {
  std::vector<int64_t> lengths = {33, 5, 7, 1, 16, 20};
  std::vector<int32_t> ids;

  explicit Text(int64_t vocab_size) {
    std::mt19937 random(7);
    ids.resize(static_cast<size_t>(std::accumulate(lengths.begin(), lengths.end(), int64_t{0})));
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size));
  }
};

void append(Values& values, std::string_view name, const Tensor& value) {
  auto& all = values[std::string(name)];
  all.insert(all.end(), value.as<float>(), value.as<float>() + value.shape.num_elements());
}

Values whole_model(const std::string& path, const BackendOptions& backend, DType dtype,
                   const Text& text) {
  ModelRunner runner(open_model_dir(path), create_backend(backend),
                     {.dtype = dtype,
                      .kv_cache_dtype = dtype,
                      .max_num_batched_tokens = 64,
                      .max_num_logits = 64,
                      .max_seq_len = 33,
                      .max_batch_size = 1});
  Values values;
  size_t start = 0;
  for (const int64_t length : text.lengths) {
    std::vector<int32_t> blocks(static_cast<size_t>(runner.cache().num_blocks()));
    std::iota(blocks.begin(), blocks.end(), 0);
    Batch batch(runner.cache().block_size());
    batch.add_sequence(text.ids.data() + start, length, 0, blocks, LogitsWanted::kNone);
    runner.forward(
        batch, [&](std::string_view name, const Tensor& value) { append(values, name, value); });
    const std::span<const float> logits = runner.logits(0, length);
    auto& all = values["logits"];
    all.insert(all.end(), logits.begin(), logits.end());
    start += static_cast<size_t>(length);
  }
  return values;
}

Values streamed(const std::string& path, const BackendOptions& backend, DType dtype,
                const Text& text, const LayerStream::Hook& change = nullptr) {
  LayerStream stream(open_model_dir(path), create_backend(backend),
                     {.dtype = dtype,
                      .kv_cache_dtype = dtype,
                      .max_num_batched_tokens = kMaxStep,
                      .max_num_seqs = 3,
                      .max_num_logits = 5,
                      .max_seq_len = 33});
  Values values;
  const LayerStream::Hook hook = [&](std::string_view name, int64_t first, const Tensor& value) {
    EXPECT_EQ(static_cast<int64_t>(values[std::string(name)].size()), first * value.shape[1]);
    EXPECT_LE(value.shape[0], kMaxStep);
    append(values, name, value);
    return change && change(name, first, value);
  };
  std::vector<float> states(text.ids.size() * static_cast<size_t>(stream.config().hidden_size));
  stream.load_embedding();
  stream.embed(text.ids, text.lengths, states, hook);
  for (int64_t i = 0; i < stream.config().num_layers; ++i) {
    stream.load_layer(i);
    stream.run_layer(text.lengths, states, hook);
  }
  stream.load_head();
  stream.run_head(
      states,
      [&](int64_t first, const Tensor& logits) {
        EXPECT_EQ(static_cast<int64_t>(values["logits"].size()), first * logits.shape[1]);
        append(values, "logits", logits);
      },
      hook);
  return values;
}

void expect_same_bits(const Values& got, const Values& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (const auto& [name, values] : wanted) {
    const auto found = got.find(name);
    ASSERT_NE(found, got.end()) << name;
    ASSERT_EQ(found->second.size(), values.size()) << name;
    EXPECT_EQ(std::memcmp(found->second.data(), values.data(), values.size() * sizeof(float)), 0)
        << name;
  }
}

class LayerStreamTest : public ::testing::TestWithParam<std::string> {};

TEST_P(LayerStreamTest, SameBitsAsTheWholeModel) {
  const std::string path = GetParam() == "camel_nano" ? kCamelNano : kVariants + GetParam();
  const ModelDir dir = open_model_dir(path);
  const Text text(dir.config.vocab_size);
  for (const TestBackend& backend : test_backends()) {
    if (GetParam() == "camel_nano" && backend.name == "reference") continue;  // a minute
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      SCOPED_TRACE(backend.name + " " + dtype_name(dtype));
      const Values wanted = whole_model(path, backend.options, dtype, text);
      EXPECT_EQ(wanted.size(), static_cast<size_t>(7 * dir.config.num_layers + 3));
      expect_same_bits(streamed(path, backend.options, dtype, text), wanted);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, LayerStreamTest,
                         ::testing::Values("camel_nano", "camel_form", "odd_sizes_relu",
                                           "inverse_layer_idx", "untied_head", "bf16_sharded"),
                         [](const auto& param_info) { return param_info.param; });

class LayerStreamFilesTest : public TempDirectoryTest {
 protected:
  ModelDir build(DType dtype) const {
    EngineBuildOptions options;
    options.input = kVariants + "odd_sizes_relu";
    options.output = at("engine");
    options.build.dtype = options.build.kv_cache_dtype = dtype;
    options.build.max_input_len = 30;
    options.build.max_output_len = 3;
    options.plan = {.kv_block_size = 16, .workspace_bytes = [](const BuildConfig&) { return 0; }};
    build_engine(options);
    return open_model_dir(options.output);
  }
};

TEST_F(LayerStreamFilesTest, AnEngineGivesTheSameBits) {
  if (tests_run_on_gpu()) GTEST_SKIP() << "the engine here is packed for processors";
  const Text text(1001);
  const std::string engine = build(DType::kF16).path;
  const BackendOptions backend{.cpu_isa = "auto", .num_threads = 2};
  const Values wanted = whole_model(kVariants + "odd_sizes_relu", backend, DType::kF16, text);
  expect_same_bits(streamed(engine, backend, DType::kF16, text), wanted);
}

// What a hook changes is what the next operator reads, in place (float32) or through a copy.
TEST(LayerStreamHook, ChangesWhatComesNext) {
  const std::string path = kVariants + "camel_form";
  const Text text(open_model_dir(path).config.vocab_size);
  for (const TestBackend& backend : test_backends()) {
    const Values plain = streamed(path, backend.options, DType::kBF16, text);
    for (const char* changed : {"h.0.ln_1", "h.0.attn.c_attn", "h.0.attn", "h.0.attn.residual",
                                "h.0.ln_2", "h.0.mlp.act", "h.0", "ln_f"}) {
      SCOPED_TRACE(backend.name + " " + changed);
      const Values other = streamed(path, backend.options, DType::kBF16, text,
                                    [&](std::string_view name, int64_t, const Tensor& value) {
                                      if (name != changed) return false;
                                      auto* data = value.as<float>();
                                      for (int64_t i = 0; i < value.shape.num_elements(); ++i)
                                        data[i] *= 1.5f;
                                      return true;
                                    });
      EXPECT_NE(plain.at("logits"), other.at("logits"));
      EXPECT_EQ(plain.at("embedding"), other.at("embedding"));
      EXPECT_EQ(plain.at(changed), other.at(changed));  // recorded before the change
    }
  }
}

TEST(LayerStreamBytesTest, ThePartsOfCamel5b) {
  const ModelConfig config = *synth_shape("camel-5b");
  const auto backend =
      create_backend({.device = "cpu", .cpu_isa = "avx2", .num_threads = 1, .is_plan_only = true});
  const LayerStreamBytes bytes =
      LayerStream::num_bytes(config, *backend, DType::kF16, {.max_num_batched_tokens = 512});
  // wte, its 50258 rows padded to whole panels of 32, and wpe; a layer has 201,379,840 parameters.
  EXPECT_EQ(bytes.weights, (50272 + 2048) * int64_t{4096} * 2);
  EXPECT_GT(bytes.weights, 201'379'840 * int64_t{2});
  EXPECT_EQ(bytes.source, 50258 * int64_t{4096} * 4);
  EXPECT_EQ(bytes.kv_cache, 2 * int64_t{4096} * 2 * 2048);  // one layer, 2048 positions
  EXPECT_GT(bytes.workspace, 512 * (4096 * 4 + 16384) * int64_t{4});
  EXPECT_EQ(bytes.total(), bytes.weights + bytes.source + bytes.kv_cache + bytes.workspace);
}

TEST(LayerStreamErrors, SaysWhatIsWrong) {
  LayerStream stream(open_model_dir(kVariants + "camel_form"),
                     create_backend({.cpu_isa = "avx2", .num_threads = 1}), {.max_seq_len = 16});
  std::vector<float> states(4 * static_cast<size_t>(stream.config().hidden_size));
  const std::vector<int32_t> ids = {1, 2, 3, 4};
  const std::vector<int64_t> lengths = {4};
  EXPECT_EQ(error_of([&] { stream.run_layer(lengths, states); }).second,
            "layer stream: the layer is not loaded");
  EXPECT_EQ(error_of([&] { stream.load_layer(99); }).first, ErrorCode::kInvalidArgument);
  stream.load_embedding();
  EXPECT_EQ(error_of([&] { stream.embed(ids, std::vector<int64_t>{3}, states); }).second,
            fmt::format("layer stream: sequences of 3 tokens in all, states of {} values, expected "
                        "{}",
                        states.size(), states.size() / 4 * 3));
  EXPECT_EQ(error_of([&] {
              stream.embed(std::vector<int32_t>{1, 2, 3, -4}, lengths, states);
            }).first,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([&] {
              std::vector<float> many(17 * static_cast<size_t>(stream.config().hidden_size));
              stream.embed(std::vector<int32_t>(17, 1), std::vector<int64_t>{17}, many);
            }).second,
            "layer stream: a sequence of 17 tokens, expected 1 to 16");
}

// A matrix unpacked from an engine's panels is the stored one, rounded to the engine's dtype.
TEST_F(LayerStreamFilesTest, WeightsComeBackFromEveryForm) {
  const ModelDir stored = open_model_dir(kVariants + "odd_sizes_relu");
  const ModelDir engine = build(DType::kF16);
  const auto backend = create_backend({.cpu_isa = "avx2", .num_threads = 1});
  const Gpt2Weights from_store = Gpt2Weights::open(stored, *backend, DType::kF32);
  const Gpt2Weights from_engine = Gpt2Weights::open(engine, *backend, std::nullopt);
  for (const WeightSpec& spec : gpt2_weight_specs(stored.config, false)) {
    std::vector<float> wanted = from_store.to_host(spec.name);
    ASSERT_EQ(static_cast<int64_t>(wanted.size()), spec.shape.num_elements()) << spec.name;
    if (spec.role != WeightRole::kVector) {
      for (float& w : wanted) w = f16_to_f32(f32_to_f16(w));
    }
    EXPECT_EQ(from_engine.to_host(spec.name), wanted) << spec.name;
    if (spec.shape.rank() != 2) continue;
    const auto width = static_cast<std::ptrdiff_t>(spec.shape[1]);
    const int64_t row = spec.shape[0] - 1;
    EXPECT_EQ(from_engine.row_to_host(spec.name, row),
              std::vector<float>(wanted.end() - width, wanted.end()))
        << spec.name;
  }
  EXPECT_THROW(from_store.to_host("h.99.ln_1.weight"), Error);
  EXPECT_THROW(from_store.row_to_host("wte.weight", stored.config.vocab_size), Error);
}

}  // namespace
}  // namespace caravan
