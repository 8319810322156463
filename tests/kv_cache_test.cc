// Quantized KV caches of the trained model: calibrated, stored, loaded and scored on text that the
// calibration has not seen. docs/accuracy.md derives the bounds.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "backend/create_backend.h"
#include "convert/engine_builder.h"
#include "convert/hf_converter.h"
#include "core/error.h"
#include "core/mapped_file.h"
#include "engine/model_runner.h"
#include "eval/distributions.h"
#include "eval/parity.h"
#include "eval/score.h"
#include "quantize/kv_calibrator.h"
#include "sampling/sampler.h"
#include "tests/test_backends.h"
#include "tokenizer/tokenizer.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

const std::string kModel = CARAVAN_SOURCE_DIR "/models/camel-nano";
const std::string kText = CARAVAN_SOURCE_DIR "/tests/data/wikitext-2-raw/wiki.test.raw";
constexpr size_t kWindow = 1024;
constexpr size_t kNumWindows = 3;
// KL of every position would take longer than the model.
constexpr int64_t kKlStride = 8;

BackendOptions device() { return {.device = tests_run_on_gpu() ? "cuda" : "cpu"}; }

class KvCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() /
                 ("caravan_kv_cache_" +
                  std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    text_ = read_text_file(kText, 1 << 21);
  }
  void TearDown() override { fs::remove_all(directory_); }
  std::string at(const std::string& name) const { return directory_ / name; }

  // The last 120 kB: other articles than those that are scored.
  CalibrationText calibration_text() const {
    const std::string path = at("calibration.txt");
    std::ofstream(path, std::ios::binary) << text_.substr(text_.size() - 120'000);
    const Tokenizer tokenizer = Tokenizer::from_directory(kModel);
    return read_calibration_text(path, tokenizer, tokenizer.vocab_size(), 12, 1024);
  }
  // A checkpoint of the model with scales.
  ModelDir convert(const KvCalibrationOptions& options, const std::string& name) const {
    ConvertOptions convert;
    convert.input = kModel;
    convert.output = at(name);
    convert.kv_calibration = calibrate_kv_cache(open_model_dir(kModel), create_backend(device()),
                                                calibration_text(), options);
    convert_checkpoint(convert);
    return open_model_dir(convert.output);
  }

  fs::path directory_;
  std::string text_;
};

ModelRunner open(const ModelDir& dir, DType kv_dtype) {
  return ModelRunner(dir, create_backend(device()),
                     {.dtype = DType::kF16,
                      .kv_cache_dtype = kv_dtype,
                      .max_num_batched_tokens = 1024,
                      .max_num_logits = 64,
                      .max_batch_size = 1});
}

struct Change {
  double perplexity = 0;  // relative, signed
  double kl = 0;          // mean, nats
};

/// Every runner against the model with a 16-bit cache.
std::vector<Change> changes(const std::string& text, std::vector<ModelRunner>& runners) {
  const std::vector<int32_t> ids = Tokenizer::from_directory(kModel).encode(text.substr(0, 60'000));
  ModelRunner exact = open(open_model_dir(kModel), DType::kF16);
  const auto vocab_size = static_cast<size_t>(exact.model().config().vocab_size);
  std::vector<float> kept(kWindow * vocab_size);
  double exact_nll = 0;
  std::vector<double> nll(runners.size());
  std::vector<Change> result(runners.size());
  int64_t num_scored = 0;
  int64_t num_compared = 0;
  for (size_t w = 0; w < kNumWindows; ++w) {
    const auto window = std::span(ids).subspan(w * kWindow, kWindow);
    const Score score =
        Scorer(exact).score(window, 1, [&](int64_t position, std::span<const float> logits) {
          std::copy(logits.begin(), logits.end(),
                    kept.begin() + position * static_cast<int64_t>(vocab_size));
        });
    exact_nll += score.nll;
    num_scored += score.num_scored;
    num_compared += static_cast<int64_t>(kWindow) / kKlStride;
    for (size_t i = 0; i < runners.size(); ++i) {
      nll[i] +=
          Scorer(runners[i])
              .score(window, 1,
                     [&](int64_t position, std::span<const float> logits) {
                       if (position % kKlStride != 0) return;
                       const std::span<const float> p(
                           kept.data() + static_cast<size_t>(position) * vocab_size, vocab_size);
                       result[i].kl += kl_divergence(p, logits);
                     })
              .nll;
    }
  }
  for (size_t i = 0; i < runners.size(); ++i) {
    result[i].perplexity = std::exp((nll[i] - exact_nll) / static_cast<double>(num_scored)) - 1;
    result[i].kl /= static_cast<double>(num_compared);
    std::printf("runner %zu: perplexity %+.3f %%, KL %.3e nats\n", i, 100 * result[i].perplexity,
                result[i].kl);
  }
  return result;
}

TEST_F(KvCacheTest, AccuracyIsThatOfEightBits) {
  KvCalibrationOptions head{.dtype = DType::kI8};
  KvCalibrationOptions layer{.dtype = DType::kI8, .granularity = KvScaleGranularity::kLayer2023};
  KvCalibrationOptions uncentered{.dtype = DType::kI8, .is_centered = false};
  const ModelDir head_dir = convert(head, "head");
  std::vector<ModelRunner> runners;
  runners.push_back(open(head_dir, DType::kI8));
  runners.push_back(open(convert(uncentered, "uncentered"), DType::kI8));
  runners.push_back(open(convert(layer, "layer"), DType::kI8));
  runners.push_back(open(head_dir, DType::kF8E4M3));  // the same clipping values
  const std::vector<Change> got = changes(text_, runners);
  EXPECT_LT(std::fabs(got[0].perplexity), 0.003);
  EXPECT_GT(got[0].kl, 0);  // eight bits are in use
  EXPECT_LT(got[0].kl, parity_tolerances(DType::kI8).kl_mean);
  EXPECT_LT(got[3].kl, parity_tolerances(DType::kF8E4M3).kl_mean);
  // Each step towards the 2023 recipe costs.
  EXPECT_LT(got[0].kl, got[1].kl);
  EXPECT_LT(got[1].kl, got[2].kl);
  EXPECT_LT(std::fabs(got[0].perplexity), std::fabs(got[2].perplexity));
  EXPECT_LT(got[0].kl, got[3].kl);
}

// With a float32 cache the centered model is the same one.
TEST_F(KvCacheTest, CenteringChangesNothingElse) {
  const ModelDir dir = convert({.dtype = DType::kI8}, "head");
  std::vector<ModelRunner> runners;
  runners.push_back(open(dir, DType::kF32));
  const std::vector<Change> got = changes(text_, runners);
  EXPECT_LT(got[0].kl, parity_tolerances(DType::kF16).kl_mean);
  EXPECT_LT(std::fabs(got[0].perplexity), 1e-3);
}

// What the plan says is what is allocated: half the bytes, and the scales.
TEST_F(KvCacheTest, PlanIsWhatIsAllocated) {
  const ModelDir dir = convert({.dtype = DType::kI8}, "head");
  int64_t wide_bytes = 0;
  for (const DType dtype : {DType::kF16, DType::kI8, DType::kF8E4M3}) {
    const ModelRunner runner = open(dir, dtype);
    BuildConfig build;
    build.kv_cache_dtype = dtype;
    build.max_batch_size = 1;
    build.max_input_len = dir.config.max_seq_len - 1;
    build.max_output_len = 1;
    const MemoryPlan plan = make_memory_plan(
        dir.config, false, build,
        {.kv_block_size = runner.backend().kv_block_size(), .workspace_bytes = nullptr});
    EXPECT_EQ(static_cast<int64_t>(runner.cache().num_bytes()), plan.kv_bytes);
    if (dtype == DType::kF16) {
      wide_bytes = plan.kv_bytes;
    } else {
      EXPECT_EQ(plan.kv_bytes, wide_bytes / 2 + 2 * 8 * 3 * 4);
    }
  }
}

TEST_F(KvCacheTest, TheScalesOfTheDirectoryAreUsed) {
  const ModelDir plain = open_model_dir(kModel);
  try {
    open(plain, DType::kI8);
    FAIL() << "an int8 cache without scales";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(e.what()).find("--calibrate-kv-cache FILE"), std::string::npos);
  }
  EXPECT_NO_THROW(open(plain, DType::kF8E4M3));  // scale 1, with a warning
  const ModelDir dir = convert({.dtype = DType::kI8}, "head");
  const auto calibration = load_kv_calibration(dir);
  ASSERT_TRUE(calibration.has_value());
  ModelRunner runner = open(dir, DType::kI8);
  std::vector<float> got(3);
  for (int64_t layer = 0; layer < 8; ++layer) {
    const KvLayer kv = runner.cache().layer(layer);
    runner.backend().copy_to_host(kv.k_scale, got.data(), 12);
    EXPECT_TRUE(std::equal(got.begin(), got.end(), calibration->scales.k.begin() + layer * 3));
    runner.backend().copy_to_host(kv.v_scale, got.data(), 12);
    EXPECT_TRUE(std::equal(got.begin(), got.end(), calibration->scales.v.begin() + layer * 3));
  }
}

// Streaming one layer at a time sees what the whole model sees.
TEST_F(KvCacheTest, CalibrationIsThatOfTheWholeModel) {
  const CalibrationText text = calibration_text();
  const ModelDir dir = open_model_dir(kModel);
  const KvCalibrationOptions options{.dtype = DType::kI8};
  const KvCalibration got = calibrate_kv_cache(dir, create_backend(device()), text, options);
  const ModelConfig& config = dir.config;
  std::vector<KvLayerStatistics> statistics(
      static_cast<size_t>(config.num_layers),
      KvLayerStatistics(config.num_heads, config.head_dim(), options));
  ModelRunner runner = open(dir, DType::kF16);
  Batch batch(runner.cache().block_size());
  std::vector<int32_t> table(static_cast<size_t>(runner.cache().num_blocks()));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  for (const std::vector<int32_t>& sample : text.samples) {
    batch.clear();
    batch.add_sequence(sample.data(), static_cast<int64_t>(sample.size()), 0, table,
                       LogitsWanted::kNone);
    runner.forward(batch, [&](std::string_view name, const Tensor& value) {
      if (!name.ends_with(".attn.c_attn")) return;
      statistics[static_cast<size_t>(name[2] - '0')].add(value);
    });
  }
  KvCalibration want;
  for (const KvLayerStatistics& layer : statistics) layer.append_to(want);
  EXPECT_EQ(got.scales.k, want.scales.k);
  EXPECT_EQ(got.scales.v, want.scales.v);
  EXPECT_EQ(got.key_offsets, want.key_offsets);
  EXPECT_EQ(got.value_offsets, want.value_offsets);
  EXPECT_EQ(got.record.at("num_samples").to_number<int64_t>(),
            static_cast<int64_t>(text.samples.size()));
}

}  // namespace
}  // namespace caravan
