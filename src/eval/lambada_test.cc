#include "eval/lambada.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backend/create_backend.h"
#include "core/error.h"
#include "eval/distributions.h"
#include "sampling/sampler.h"
#include "tokenizer/tiny_tokenizer.h"

namespace caravan {
namespace {

using testing::tiny_tokenizer_json;

TEST(SplitLambada, TheTargetIsTheLastWordAndTheSpaceBeforeIt) {
  const auto split = [](std::string_view text) {
    const auto [context, target] = split_lambada(text);
    return std::string(context) + "|" + std::string(target);
  };
  EXPECT_EQ(split("the old man and the sea"), "the old man and the| sea");
  EXPECT_EQ(split("he said \"no\""), "he said| \"no\"");
  EXPECT_EQ(split("end.\n\n Next"), "end.|\n\n Next");  // the harness moves blanks to the target
  EXPECT_EQ(split("two  spaces"), "two|  spaces");
  EXPECT_EQ(split("trailing "), "trailing| ");
  EXPECT_EQ(split(" word"), "| word");
  EXPECT_EQ(split("word"), "|word");
  EXPECT_EQ(split(""), "|");
}

TEST(MakeLambadaItem, EndsWithTheTokensAfterTheContext) {
  const Tokenizer tokenizer = Tokenizer::from_files(tiny_tokenizer_json());
  // "b" " a" "b" "c": " a" is one token, and "ab" does not form across it.
  const LambadaItem item = make_lambada_item(tokenizer, "b abc", -1, 100, "here");
  EXPECT_EQ(item.ids, tokenizer.encode("b abc"));
  EXPECT_EQ(item.num_target, static_cast<int64_t>(item.ids.size()) - 1);
  const LambadaItem cut = make_lambada_item(tokenizer, "bbbbbbbb xyz", -1, 5, "here");
  EXPECT_EQ(cut.num_target, 4);
  EXPECT_EQ(cut.ids.size(), 6u);  // 5 are fed
  EXPECT_EQ(cut.ids.back(), 'z');
  EXPECT_EQ(cut.ids.front(), 'b');
}

TEST(MakeLambadaItem, AnEmptyContextIsTheEndOfText) {
  const Tokenizer tokenizer = Tokenizer::from_files(tiny_tokenizer_json());
  const LambadaItem item = make_lambada_item(tokenizer, "xy", 259, 100, "here");
  EXPECT_EQ(item.ids, (std::vector<int32_t>{259, ' ', 'x', 'y'}));
  EXPECT_EQ(item.num_target, 3);
  EXPECT_THROW(make_lambada_item(tokenizer, "xy", -1, 100, "here"), Error);
  EXPECT_THROW(make_lambada_item(tokenizer, "", 259, 100, "here"), Error);
  EXPECT_THROW(make_lambada_item(tokenizer, "b xyz", 259, 3, "here"), Error);
}

std::vector<LambadaItem> random_items(size_t count) {
  std::vector<LambadaItem> items;
  std::mt19937_64 random(5);
  const auto next = [&](uint64_t below) { return random() % below; };
  for (size_t i = 0; i < count; ++i) {
    LambadaItem item;
    item.num_target = static_cast<int64_t>(1 + next(3));
    const uint64_t length = 4 + next(60);
    for (uint64_t t = 0; t < length; ++t) item.ids.push_back(static_cast<int32_t>(next(258)));
    items.push_back(item);
  }
  return items;
}

ModelRunner open_runner(int64_t max_tokens, int64_t batch_size, int64_t max_logits) {
  return ModelRunner(open_model_dir(CARAVAN_SOURCE_DIR "/tests/goldens/variants/camel_form"),
                     create_backend({.num_threads = 1}),
                     {.dtype = DType::kF32,
                      .kv_cache_dtype = DType::kF32,
                      .max_num_batched_tokens = max_tokens,
                      .max_num_logits = max_logits,
                      .max_batch_size = batch_size});
}

TEST(MeasureLambada, IsWhatEachPassageGivesAlone) {
  std::vector<LambadaItem> items = random_items(40);
  ModelRunner alone = open_runner(64, 1, 64);
  Scorer single(alone);
  // Some passages end as the model would end them, so that there is something correct.
  for (size_t i = 0; i < items.size(); i += 3) {
    items[i].num_target = 1;
    const auto fed = std::span(items[i].ids).first(items[i].ids.size() - 1);
    items[i].ids.back() = single.score(fed, 1).last_top[0].first;
  }
  double sum = 0, squares = 0;
  int64_t num_correct = 0;
  std::vector<LambadaResult> wanted;
  for (const LambadaItem& item : items) {
    LambadaResult result{.log_prob = 0, .is_correct = true};
    const auto num_context = static_cast<int64_t>(item.ids.size()) - item.num_target;
    single.score(item.ids, 1, [&](int64_t position, std::span<const float> logits) {
      if (position + 1 < num_context || position + 1 == static_cast<int64_t>(item.ids.size())) {
        return;
      }
      const int32_t target = item.ids[static_cast<size_t>(position + 1)];
      result.log_prob += logits[static_cast<size_t>(target)] - logsumexp(logits);
      result.is_correct = result.is_correct && argmax(logits) == target;
    });
    sum += result.log_prob;
    squares += result.log_prob * result.log_prob;
    num_correct += result.is_correct ? 1 : 0;
    wanted.push_back(result);
  }
  const auto n = static_cast<double>(items.size());
  ASSERT_GE(num_correct, 14);
  ASSERT_LT(num_correct, 40);
  for (const auto& [tokens, batch, rows] :
       std::vector<std::array<int64_t, 3>>{{512, 8, 64}, {64, 1, 2}, {50, 3, 1}}) {
    ModelRunner runner = open_runner(tokens, batch, rows);
    Scorer scorer(runner);
    std::vector<LambadaResult> results;
    int64_t progress = 0;
    const LambadaReport report = measure_lambada(
        scorer, items, [&](int64_t done) { progress += done; }, &results);
    EXPECT_EQ(progress, 40);
    EXPECT_EQ(report.num_items, 40);
    EXPECT_EQ(report.num_correct, num_correct);
    for (size_t i = 0; i < items.size(); ++i) {
      EXPECT_EQ(results[i].is_correct, wanted[i].is_correct) << i;
      EXPECT_NEAR(results[i].log_prob, wanted[i].log_prob, 1e-12) << i;
    }
    const double accuracy = static_cast<double>(num_correct) / n;
    EXPECT_DOUBLE_EQ(report.accuracy.value, accuracy);
    EXPECT_NEAR(report.accuracy.standard_error, std::sqrt(accuracy * (1 - accuracy) / (n - 1)),
                1e-12);
    EXPECT_NEAR(report.log_prob.value, sum / n, 1e-12);
    const double deviation = std::sqrt((squares - sum * sum / n) / (n - 1));
    EXPECT_NEAR(report.log_prob.standard_error, deviation / std::sqrt(n), 1e-10);
    EXPECT_NEAR(report.perplexity.value, std::exp(-sum / n), 1e-9);
    EXPECT_NEAR(report.perplexity.standard_error,
                report.perplexity.value * report.log_prob.standard_error, 1e-9);
  }
  EXPECT_THROW(measure_lambada(single, {}), Error);
}

}  // namespace
}  // namespace caravan
