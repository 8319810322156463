// The trained model on WikiText-2's raw test split: perplexity against float64, and what 16-bit
// weights and caches change. docs/accuracy.md derives the bounds.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/json.h"
#include "core/mapped_file.h"
#include "engine/model_runner.h"
#include "eval/comparison.h"
#include "eval/parity.h"
#include "eval/perplexity.h"
#include "eval/score.h"
#include "format/model_dir.h"
#include "tests/test_backends.h"
#include "tokenizer/tokenizer.h"

namespace caravan {
namespace {

const std::string kModel = CARAVAN_SOURCE_DIR "/models/camel-nano";
constexpr int64_t kWindow = 1024;

std::vector<int32_t> wikitext_ids() {
  const std::string text =
      read_text_file(CARAVAN_SOURCE_DIR "/tests/data/wikitext-2-raw/wiki.test.raw", 1 << 21);
  return Tokenizer::from_directory(kModel).encode(text);
}

ModelRunner open(DType dtype) {
  const BackendOptions options{.device = tests_run_on_gpu() ? "cuda" : "cpu"};
  return ModelRunner(open_model_dir(kModel), create_backend(options),
                     {.dtype = dtype,
                      .kv_cache_dtype = dtype,
                      .max_num_batched_tokens = 512,
                      .max_num_logits = 64,
                      .max_batch_size = 1});
}

TEST(WikitextTest, PerplexityIsThatOfFloat64) {
  const boost::json::value golden =
      parse_json_file(CARAVAN_SOURCE_DIR "/tests/goldens/camel-nano.json", 1 << 20);
  const boost::json::value& wanted = golden.at("wikitext2_raw_test");
  const std::vector<std::vector<int32_t>> documents = {wikitext_ids()};
  const auto num_tokens = static_cast<int64_t>(documents[0].size());
  ASSERT_EQ(num_tokens, wanted.at("tokens").as_int64());
  ModelRunner runner = open(DType::kF32);
  Scorer scorer(runner);
  const PerplexityReport report =
      measure_perplexity(scorer, documents, sliding_windows(0, num_tokens, kWindow, kWindow));
  EXPECT_EQ(report.num_scored, wanted.at("scored").as_int64());
  const double golden_perplexity = wanted.at("perplexity").to_number<double>();
  std::printf("float32: perplexity %.4f +/- %.4f, float64 %.4f\n", report.perplexity.value,
              report.perplexity.standard_error, golden_perplexity);
  EXPECT_NEAR(report.perplexity.value, golden_perplexity, 1e-3 * golden_perplexity);
}

// |nll - reference| / reference
double relative_nll_change(const ComparisonReport& report) {
  return std::abs(std::log(report.perplexity_ratio.value)) / report.reference_nll.value;
}

/// The model in `dtype` against itself in float32 over the first windows.
ComparisonReport change_of(DType dtype, int64_t num_windows) {
  std::vector<std::vector<int32_t>> documents = {wikitext_ids()};
  documents[0].resize(static_cast<size_t>(num_windows * kWindow));
  ModelRunner exact = open(DType::kF32);
  ModelRunner rounded = open(dtype);
  Scorer exact_scorer(exact), rounded_scorer(rounded);
  const auto vocab_size = static_cast<size_t>(exact.model().config().vocab_size);
  std::vector<float> kept(kWindow * vocab_size);
  std::vector<TokenComparison> tokens;
  ComparisonMeter meter;
  for (const TokenWindow& w :
       sliding_windows(0, static_cast<int64_t>(documents[0].size()), kWindow, kWindow)) {
    const ScoreRequest request{
        std::span(documents[0]).subspan(static_cast<size_t>(w.begin), kWindow), w.first_row(),
        w.end_row()};
    const auto kept_row = [&](int64_t row) {
      return std::span(kept).subspan(static_cast<size_t>(row) * vocab_size, vocab_size);
    };
    exact_scorer.run({&request, 1}, [&](std::span<const LogitsRow> rows) {
      for (const LogitsRow& r : rows) {
        std::copy(r.logits.begin(), r.logits.end(), kept_row(r.row).begin());
      }
    });
    rounded_scorer.run({&request, 1}, [&](std::span<const LogitsRow> rows) {
      tokens.resize(rows.size());
#pragma omp parallel for schedule(dynamic)
      for (size_t i = 0; i < rows.size(); ++i) {
        const int32_t target = request.ids[static_cast<size_t>(rows[i].row + 1)];
        tokens[i] = compare_token(kept_row(rows[i].row), rows[i].logits, target);
      }
      for (const TokenComparison& token : tokens) meter.add(token);
    });
    meter.end_block();
  }
  const ComparisonReport report = meter.report();
  std::printf("%s: KL %.3e nats, top-1 agreement %.4f, relative NLL change %.2e, %ld positions\n",
              dtype_name(dtype), report.kl_mean.value, report.top1_agreement.value,
              relative_nll_change(report), report.num_tokens);
  return report;
}

// The bounds are those of a parity certificate (docs/accuracy.md).
class SixteenBitTest : public ::testing::TestWithParam<DType> {};

TEST_P(SixteenBitTest, ChangesWhatItsRoundingExplains) {
  const ComparisonReport change = change_of(GetParam(), 4);
  const DType activations = tests_run_on_gpu() ? GetParam() : DType::kF32;
  const ParityTolerances bounds = parity_tolerances(GetParam(), activations);
  EXPECT_LT(change.kl_mean.value, bounds.kl_mean);
  EXPECT_GT(change.top1_agreement.value, bounds.top1_agreement);
  EXPECT_LT(relative_nll_change(change), 1e-2);
  EXPECT_GT(change.kl_mean.value, 0);  // 16 bits are in use
}

INSTANTIATE_TEST_SUITE_P(DTypes, SixteenBitTest, ::testing::Values(DType::kF16, DType::kBF16),
                         [](const auto& param_info) {
                           return std::string(dtype_name(param_info.param));
                         });

}  // namespace
}  // namespace caravan
