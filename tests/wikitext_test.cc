// The trained model on WikiText-2's raw test split: perplexity against float64, and what 16-bit
// weights and caches change. docs/accuracy.md derives the bounds.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/json.h"
#include "core/mapped_file.h"
#include "engine/model_runner.h"
#include "eval/parity.h"
#include "eval/score.h"
#include "format/model_dir.h"
#include "sampling/sampler.h"
#include "tests/test_backends.h"
#include "tokenizer/tokenizer.h"

namespace caravan {
namespace {

const std::string kModel = CARAVAN_SOURCE_DIR "/models/camel-nano";
constexpr size_t kWindow = 1024;

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
  const std::vector<int32_t> ids = wikitext_ids();
  ASSERT_EQ(static_cast<int64_t>(ids.size()), wanted.at("tokens").as_int64());
  ModelRunner runner = open(DType::kF32);
  Scorer scorer(runner);
  double nll = 0;
  int64_t num_scored = 0;
  for (size_t begin = 0; begin < ids.size(); begin += kWindow) {
    const Score score =
        scorer.score(std::span(ids).subspan(begin, std::min(kWindow, ids.size() - begin)));
    nll += score.nll;
    num_scored += score.num_scored;
  }
  EXPECT_EQ(num_scored, wanted.at("scored").as_int64());
  const double perplexity = std::exp(nll / static_cast<double>(num_scored));
  const double golden_perplexity = wanted.at("perplexity").to_number<double>();
  std::printf("float32: perplexity %.4f, float64 %.4f\n", perplexity, golden_perplexity);
  EXPECT_NEAR(perplexity, golden_perplexity, 1e-3 * golden_perplexity);
}

struct Change {
  double kl = 0;            // mean KL(float32 || dtype) a token, nats
  double agreement = 0;     // share of positions with the same most likely token
  double relative_nll = 0;  // |nll - nll32| / nll32
};

Change change_of(DType dtype, size_t num_windows) {
  const std::vector<int32_t> ids = wikitext_ids();
  ModelRunner exact = open(DType::kF32);
  ModelRunner rounded = open(dtype);
  Scorer exact_scorer(exact), rounded_scorer(rounded);
  const auto vocab_size = static_cast<size_t>(exact.model().config().vocab_size);
  std::vector<float> kept(kWindow * vocab_size);
  Change change;
  double nll = 0, exact_nll = 0;
  size_t count = 0;
  for (size_t w = 0; w < num_windows; ++w) {
    const auto window = std::span(ids).subspan(w * kWindow, kWindow);
    exact_nll += exact_scorer
                     .score(window, 1,
                            [&](int64_t position, std::span<const float> logits) {
                              std::copy(logits.begin(), logits.end(),
                                        kept.begin() + position * static_cast<int64_t>(vocab_size));
                            })
                     .nll;
    nll += rounded_scorer
               .score(window, 1,
                      [&](int64_t position, std::span<const float> logits) {
                        const std::span<const float> p(
                            kept.data() + static_cast<size_t>(position) * vocab_size, vocab_size);
                        change.kl += kl_divergence(p, logits);
                        change.agreement += argmax(p) == argmax(logits) ? 1 : 0;
                        ++count;
                      })
               .nll;
  }
  change.kl /= static_cast<double>(count);
  change.agreement /= static_cast<double>(count);
  change.relative_nll = std::abs(nll - exact_nll) / exact_nll;
  std::printf("%s: KL %.3e nats, top-1 agreement %.4f, relative NLL change %.2e, %zu positions\n",
              dtype_name(dtype), change.kl, change.agreement, change.relative_nll, count);
  return change;
}

// The bounds are those of a parity certificate (docs/accuracy.md).
class SixteenBitTest : public ::testing::TestWithParam<DType> {};

TEST_P(SixteenBitTest, ChangesWhatItsRoundingExplains) {
  const Change change = change_of(GetParam(), 4);
  const DType activations = tests_run_on_gpu() ? GetParam() : DType::kF32;
  const ParityTolerances bounds = parity_tolerances(GetParam(), activations);
  EXPECT_LT(change.kl, bounds.kl_mean);
  EXPECT_GT(change.agreement, bounds.top1_agreement);
  EXPECT_LT(change.relative_nll, 1e-2);
  EXPECT_GT(change.kl, 0);  // 16 bits are in use
}

INSTANTIATE_TEST_SUITE_P(DTypes, SixteenBitTest, ::testing::Values(DType::kF16, DType::kBF16),
                         [](const auto& param_info) {
                           return std::string(dtype_name(param_info.param));
                         });

}  // namespace
}  // namespace caravan
