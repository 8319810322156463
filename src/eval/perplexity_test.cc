#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <optional>
#include <random>

#include "backend/create_backend.h"
#include "convert/test_models.h"
#include "core/error.h"
#include "eval/distributions.h"

namespace caravan {
namespace {

constexpr int64_t kMaxSeqLen = 33;

ModelRunner open_variant(const std::string& name, int64_t max_tokens, int64_t batch_size,
                         int64_t max_logits) {
  return ModelRunner(open_model_dir(CARAVAN_SOURCE_DIR "/tests/goldens/variants/" + name),
                     create_backend({.num_threads = 1}),
                     {.dtype = DType::kF32,
                      .kv_cache_dtype = DType::kF32,
                      .max_num_batched_tokens = max_tokens,
                      .max_num_logits = max_logits,
                      .max_seq_len = kMaxSeqLen,
                      .max_batch_size = batch_size});
}

std::vector<int32_t> random_ids(size_t count, uint64_t seed) {
  std::vector<int32_t> ids;
  std::mt19937_64 random(seed);
  for (size_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random() % 258));
  return ids;
}

const std::vector<std::vector<int32_t>>& documents() {
  static const std::vector<std::vector<int32_t>> kDocuments = {
      random_ids(101, 1), random_ids(2, 2), random_ids(33, 3), random_ids(64, 4)};
  return kDocuments;
}

std::vector<TokenWindow> all_windows(int64_t window, int64_t stride) {
  std::vector<TokenWindow> windows;
  for (size_t d = 0; d < documents().size(); ++d) {
    const auto num_tokens = static_cast<int64_t>(documents()[d].size());
    const auto more = stride == 0
                          ? rolling_windows(static_cast<int64_t>(d), num_tokens, window)
                          : sliding_windows(static_cast<int64_t>(d), num_tokens, window, stride);
    windows.insert(windows.end(), more.begin(), more.end());
  }
  return windows;
}

/// -log p of one token after exactly the context [begin, target), read on its own.
double nll_alone(Scorer& scorer, const std::vector<int32_t>& ids, int64_t begin, int64_t target) {
  double nll = std::nan("");
  const auto context =
      std::span(ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(target - begin));
  scorer.score(context, 1, [&](int64_t position, std::span<const float> logits) {
    if (position + 1 != static_cast<int64_t>(context.size())) return;
    nll = logsumexp(logits) - logits[static_cast<size_t>(ids[static_cast<size_t>(target)])];
  });
  return nll;
}

TEST(Perplexity, IsTheSumOfTokensReadOneByOne) {
  ModelRunner runner = open_variant("camel_form", 50, 4, 7);
  ModelRunner single = open_variant("camel_form", 64, 1, 64);
  Scorer scorer(runner);
  Scorer alone(single);
  for (const auto& [window, stride] : std::vector<std::pair<int64_t, int64_t>>{
           {33, 33}, {33, 7}, {16, 15}, {5, 1}, {32, 0}, {2, 2}, {1, 0}}) {
    SCOPED_TRACE(testing::Message() << "window " << window << ", stride " << stride);
    const std::vector<TokenWindow> windows = all_windows(window, stride);
    BlockMean wanted;
    int64_t num_fed = 0;
    for (const TokenWindow& w : windows) {
      double sum = 0;
      for (int64_t t = w.target_begin; t < w.target_end; ++t) {
        sum += nll_alone(alone, documents()[static_cast<size_t>(w.document)], w.begin, t);
      }
      wanted.add(sum, static_cast<double>(w.num_targets()));
      num_fed += w.num_tokens();
    }
    int64_t progress = 0;
    const PerplexityReport report = measure_perplexity(
        scorer, documents(), windows, {.on_progress = [&](int64_t n) { progress += n; }});
    EXPECT_EQ(report.num_windows, static_cast<int64_t>(windows.size()));
    EXPECT_EQ(report.num_fed, num_fed);
    EXPECT_EQ(progress, num_fed);
    EXPECT_EQ(static_cast<double>(report.num_scored), wanted.count());
    // The logits are the same bits; only the order of the sums differs.
    EXPECT_NEAR(report.nll.value, wanted.mean().value, 1e-13 * wanted.mean().value);
    EXPECT_NEAR(report.nll.standard_error, wanted.mean().standard_error, 1e-12);
    EXPECT_NEAR(report.perplexity.value, std::exp(wanted.mean().value),
                1e-12 * report.perplexity.value);
    EXPECT_NEAR(report.perplexity.standard_error,
                report.perplexity.value * report.nll.standard_error, 1e-12);
    EXPECT_GT(report.nll.standard_error, 0);
  }
}

// Steps of any size, any number of sequences at once, any number of rows at a time: the same bits.
TEST(Perplexity, DoesNotDependOnTheBatch) {
  const std::vector<TokenWindow> windows = all_windows(33, 20);
  std::optional<PerplexityReport> first;
  for (const auto& [tokens, batch, rows] : std::vector<std::array<int64_t, 3>>{
           {33, 1, 33}, {512, 16, 64}, {7, 3, 5}, {40, 2, 1}, {1, 1, 1}}) {
    ModelRunner runner = open_variant("camel_form", tokens, batch, rows);
    Scorer scorer(runner);
    const PerplexityReport report = measure_perplexity(scorer, documents(), windows);
    if (!first) first = report;
    EXPECT_EQ(report.nll.value, first->nll.value) << tokens << " " << batch << " " << rows;
    EXPECT_EQ(report.nll.standard_error, first->nll.standard_error);
  }
}

TEST(Perplexity, RefusesNothingToScore) {
  ModelRunner runner = open_variant("camel_form", 33, 1, 33);
  Scorer scorer(runner);
  EXPECT_THROW(measure_perplexity(scorer, {{1}}, {}), Error);
  const std::vector<std::vector<int32_t>> outside = {{1, 258}};
  EXPECT_THROW(measure_perplexity(scorer, outside, sliding_windows(0, 2, 4, 4)), Error);
}

TEST(Scorer, GivesEveryWantedRowOnceInOrder) {
  ModelRunner runner = open_variant("camel_form", 40, 3, 4);
  Scorer scorer(runner);
  std::vector<ScoreRequest> requests;
  for (const std::vector<int32_t>& ids : documents()) {
    const auto fed = std::span(ids).first(std::min<size_t>(ids.size(), 33));
    const auto count = static_cast<int64_t>(fed.size());
    requests.push_back({fed, count / 3, count});
    requests.push_back({fed, count, count});  // none
    requests.push_back({fed, 0, 1});
  }
  std::vector<std::pair<int64_t, int64_t>> wanted, got;
  for (size_t r = 0; r < requests.size(); ++r) {
    for (int64_t row = requests[r].first_row; row < requests[r].end_row; ++row) {
      wanted.emplace_back(static_cast<int64_t>(r), row);
    }
  }
  scorer.run(requests, [&](std::span<const LogitsRow> rows) {
    EXPECT_LE(rows.size(), 4u);
    for (const LogitsRow& row : rows) {
      got.emplace_back(row.request, row.row);
      EXPECT_EQ(row.logits.size(), 258u);
    }
  });
  EXPECT_EQ(got, wanted);
  const auto ids = std::span(documents()[0]);
  for (const ScoreRequest& bad : std::vector<ScoreRequest>{{ids.first(0), 0, 0},
                                                           {ids.first(34), 0, 1},
                                                           {ids.first(3), -1, 2},
                                                           {ids.first(3), 2, 1},
                                                           {ids.first(3), 0, 4}}) {
    EXPECT_THROW(scorer.run({&bad, 1}, [](auto) {}), Error);
  }
}

class DumpTest : public TempDirectoryTest {
 protected:
  PerplexityReport write(const std::string& variant, const std::vector<TokenWindow>& windows,
                         DType dtype = DType::kF32) {
    ModelRunner runner = open_variant(variant, 50, 3, 16);
    Scorer scorer(runner);
    LogitsDumpWriter dump(path(), dump_contents(documents(), windows, 258, dtype));
    const PerplexityReport report =
        measure_perplexity(scorer, documents(), windows, {.dump = &dump});
    dump.finish();
    return report;
  }
  PerplexityReport compare(const std::string& variant, const std::vector<TokenWindow>& windows) {
    ModelRunner runner = open_variant(variant, 37, 2, 9);
    Scorer scorer(runner);
    LogitsDump dump = LogitsDump::open(path());
    check_same_input(dump, documents(), windows, 258);
    return measure_perplexity(scorer, documents(), windows, {.against = &dump});
  }
  std::string path() const { return at("dump.safetensors"); }

  void refuses(const std::vector<std::vector<int32_t>>& others,
               const std::vector<TokenWindow>& windows, const std::string& text,
               int64_t vocab_size = 258) {
    const LogitsDump dump = LogitsDump::open(path());
    try {
      check_same_input(dump, others, windows, vocab_size);
      ADD_FAILURE() << "accepted; wanted: " << text;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  }
};

TEST_F(DumpTest, AgainstItselfNothingDiffers) {
  for (const auto& [window, stride] :
       std::vector<std::pair<int64_t, int64_t>>{{33, 33}, {20, 7}, {16, 0}}) {
    const std::vector<TokenWindow> windows = all_windows(window, stride);
    const PerplexityReport written = write("camel_form", windows);
    EXPECT_FALSE(written.comparison);
    const PerplexityReport report = compare("camel_form", windows);
    EXPECT_EQ(report.nll.value, written.nll.value);
    ASSERT_TRUE(report.comparison);
    const ComparisonReport& c = *report.comparison;
    EXPECT_EQ(c.num_tokens, report.num_scored);
    EXPECT_EQ(c.kl_mean.value, 0);
    EXPECT_EQ(c.kl_max, 0);
    EXPECT_EQ(c.kl_p99, 0);
    EXPECT_EQ(c.top1_agreement.value, 1);
    EXPECT_EQ(c.log_prob_change.value, 0);
    EXPECT_EQ(c.reference_nll.value, report.nll.value);
    EXPECT_EQ(c.perplexity_change.value, 0);
    EXPECT_EQ(c.perplexity_change.standard_error, 0);
    EXPECT_EQ(c.perplexity_ratio.value, 1);
  }
}

TEST_F(DumpTest, Float16ChangesWhatItsRoundingExplains) {
  const std::vector<TokenWindow> windows = all_windows(33, 33);
  write("camel_form", windows, DType::kF16);
  const PerplexityReport report = compare("camel_form", windows);
  // Logits of a few units, rounded to 11 bits: an error e of each costs about e^2 / 2.
  EXPECT_GT(report.comparison->kl_mean.value, 0);
  EXPECT_LT(report.comparison->kl_max, 1e-5);
  EXPECT_LT(report.comparison->log_prob_change.value, 2e-3);
}

TEST_F(DumpTest, AnotherModelIsSeen) {
  const std::vector<TokenWindow> windows = all_windows(33, 33);
  const PerplexityReport written = write("camel_form", windows);
  // The dump's model with the logits of one row changed by hand: that row, and no other.
  const TokenWindow& w = windows[1];
  const int64_t dump_row = windows[0].num_tokens() + w.first_row();
  std::vector<float> row(258);
  uint64_t offset = 0;
  {
    const LogitsDump dump = LogitsDump::open(path());
    dump.read_row(dump_row, row);
    offset = dump.tensors().find("logits")->offset;
  }
  const std::vector<float> before = row;
  const auto target = static_cast<size_t>(documents()[0][static_cast<size_t>(w.target_begin)]);
  row[target] += 2.5f;
  std::fstream file(path(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(offset + static_cast<uint64_t>(dump_row) * 258 * 4));
  file.write(reinterpret_cast<const char*>(row.data()), 258 * 4);
  file.close();
  const PerplexityReport report = compare("camel_form", windows);
  const ComparisonReport& c = *report.comparison;
  const double kl = kl_divergence(row, before);
  ASSERT_GT(kl, 0);
  const auto count = static_cast<double>(c.num_tokens);
  EXPECT_EQ(c.kl_max, kl);
  EXPECT_EQ(c.kl_median, 0);
  EXPECT_NEAR(c.kl_mean.value, kl / count, 1e-15);
  const double gain = 2.5 - (logsumexp(row) - logsumexp(before));
  EXPECT_NEAR(c.log_prob_change.value, gain / count, 1e-12);
  EXPECT_NEAR(c.reference_nll.value, written.nll.value - gain / count, 1e-12);
  EXPECT_NEAR(c.perplexity_ratio.value, std::exp(gain / count), 1e-12);
  EXPECT_NEAR(c.perplexity_change.value, written.perplexity.value * (1 - std::exp(-gain / count)),
              1e-9);
  EXPECT_GT(c.perplexity_change.standard_error, 0);
  EXPECT_GE(c.top1_agreement.value, 1 - 1 / count - 1e-12);
}

TEST_F(DumpTest, RefusesADumpOfSomethingElse) {
  const std::vector<TokenWindow> windows = all_windows(33, 33);
  write("camel_form", windows);
  refuses(documents(), windows, "the model's vocabulary has 300", 300);
  auto others = documents();
  others[0][40] = (others[0][40] + 1) % 258;
  refuses(others, windows, "input_ids[40] (window 1, token 7) is ");
  refuses(documents(), all_windows(20, 20), "window 0 has 33 tokens, here 20");
  std::vector<TokenWindow> fewer(windows.begin(), windows.end() - 1);
  refuses(documents(), fewer, "give the --max-tokens of the dump");
  write("camel_form", fewer);
  refuses(documents(), windows, "limit it with --max-tokens");
}

TEST_F(DumpTest, ALastTokenAloneMayBeInTheDump) {
  const std::vector<std::vector<int32_t>> ids = {random_ids(34, 9)};
  LogitsDumpWriter writer(path(),
                          {.input_ids = ids[0], .window_start = {0, 33}, .vocab_size = 258});
  for (size_t i = 0; i < 34; ++i) writer.write_row(std::vector<float>(258));
  writer.finish();
  const std::vector<TokenWindow> windows = sliding_windows(0, 34, 33, 33);
  ASSERT_EQ(windows.size(), 1u);
  const LogitsDump dump = LogitsDump::open(path());
  EXPECT_NO_THROW(check_same_input(dump, ids, windows, 258));
}

TEST(CountWords, IsWhatTheHarnessCounts) {
  // len(re.split(r"\s+", text)) in Python.
  EXPECT_EQ(count_words("one"), 1);
  EXPECT_EQ(count_words("one two\n\n three"), 3);
  EXPECT_EQ(count_words(" one two "), 4);
  EXPECT_EQ(count_words(""), 1);
  EXPECT_EQ(count_words("a\u00a0b\u3000c\u2028d\x1c"
                        "e"),
            5);
  EXPECT_EQ(count_words("a\u200bb"), 1);  // a zero width space is none
}

TEST(TextFigures, FollowFromNatsAToken) {
  PerplexityReport report;
  report.nll = {2.0, 0.1};
  const TextSize text{.num_tokens = 10, .num_bytes = 40, .num_words = 8};
  EXPECT_DOUBLE_EQ(report.bits_per_byte(text), 0.5 / std::log(2.0));
  EXPECT_DOUBLE_EQ(report.byte_perplexity(text), std::exp(0.5));
  EXPECT_DOUBLE_EQ(report.word_perplexity(text), std::exp(2.5));
}

}  // namespace
}  // namespace caravan
