#include "eval/parity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "backend/create_backend.h"
#include "core/error.h"

namespace caravan {
namespace {

constexpr int64_t kGreedyLen = 8;

ModelRunner open_variant(const std::string& name, const char* isa, DType dtype) {
  ModelRunnerOptions options;
  options.dtype = dtype;
  options.kv_cache_dtype = dtype;
  options.max_batch_size = 1;
  options.max_num_logits = 1;
  return ModelRunner(open_model_dir(CARAVAN_SOURCE_DIR "/tests/goldens/variants/" + name),
                     create_backend({.cpu_isa = isa, .num_threads = 1}), options);
}

ParityReport compare(ModelRunner& oracle, ModelRunner& engine) {
  const auto prompts = parity_prompts(oracle.model().config().vocab_size,
                                      oracle.max_seq_len() - kGreedyLen, nullptr);
  return measure_parity(oracle, engine, prompts, kGreedyLen);
}

TEST(Parity, TheOracleAgreesWithItself) {
  ModelRunner a = open_variant("camel_form", "reference", DType::kF32);
  ModelRunner b = open_variant("camel_form", "reference", DType::kF32);
  const ParityReport report = compare(a, b);
  EXPECT_EQ(report.num_prompts, 4);
  EXPECT_EQ(report.num_positions, 1 + 7 + 8 + 8);
  ASSERT_EQ(report.layer_errors.size(), 4u);  // embedding, h.0, h.1, ln_f
  for (const auto& [name, error] : report.layer_errors) EXPECT_EQ(error, 0) << name;
  EXPECT_EQ(report.kl_max, 0);
  EXPECT_EQ(report.top1_agreement, 1);
  EXPECT_EQ(report.greedy_prefix_min, kGreedyLen);
  EXPECT_NO_THROW(check_parity(report, parity_tolerances(DType::kF32)));
}

TEST(Parity, EachDtypeIsWithinItsTolerances) {
  for (const char* variant : {"camel_form", "gpt2_form", "odd_sizes_relu"}) {
    ModelRunner oracle = open_variant(variant, "reference", DType::kF32);
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      SCOPED_TRACE(fmt::format("{} {}", variant, dtype_name(dtype)));
      ModelRunner engine = open_variant(variant, "auto", dtype);
      const ParityReport report = compare(oracle, engine);
      EXPECT_NO_THROW(check_parity(report, parity_tolerances(dtype)));
      EXPECT_GT(report.logits_error, 0);
      if (dtype == DType::kBF16) {  // the tolerances tell dtypes apart
        EXPECT_THROW(check_parity(report, parity_tolerances(DType::kF32)), Error);
      }
    }
  }
}

TEST(Parity, AnotherModelFails) {
  ModelRunner oracle = open_variant("act_tanh", "reference", DType::kF32);
  ModelRunner engine = open_variant("act_silu", "auto", DType::kF32);
  const ParityReport report = compare(oracle, engine);
  EXPECT_THROW(check_parity(report, parity_tolerances(DType::kBF16)), Error);
}

TEST(ParityPrompts, DependOnTheVocabularyOnlyAndFitTheLimit) {
  const auto prompts = parity_prompts(50258, 20, nullptr);
  ASSERT_EQ(prompts.size(), 4u);
  EXPECT_EQ(prompts, parity_prompts(50258, 20, nullptr));
  for (const auto& prompt : prompts) {
    EXPECT_LE(prompt.size(), 20u);
    for (const int32_t id : prompt) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, 50258);
    }
  }
}

TEST(CheckParity, NanFails) {
  ParityReport report;
  report.top1_agreement = 1;
  report.kl_mean = std::nan("");
  EXPECT_THROW(check_parity(report, parity_tolerances(DType::kBF16)), Error);
}

TEST(CheckParity, TopTokensMayDifferAsOftenAsChanceExplains) {
  const ParityTolerances tolerances = parity_tolerances(DType::kF16);  // a rate of 0.05
  ParityReport report;
  const auto differing = [&](int64_t count, int64_t positions) -> const ParityReport& {
    report.num_positions = positions;
    report.top1_agreement = 1 - static_cast<double>(count) / static_cast<double>(positions);
    return report;
  };
  EXPECT_NO_THROW(check_parity(differing(6, 48), tolerances));  // 2.4 + 3 * 1.51 = 6.9
  EXPECT_THROW(check_parity(differing(7, 48), tolerances), Error);
  EXPECT_NO_THROW(check_parity(differing(225, 4096), tolerances));  // 204.8 + 3 * 13.9 = 246.6
  EXPECT_THROW(check_parity(differing(247, 4096), tolerances), Error);
}

}  // namespace
}  // namespace caravan
