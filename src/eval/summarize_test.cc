#include "eval/summarize.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/mapped_file.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

const std::string kModel = CARAVAN_SOURCE_DIR "/models/camel-nano";

template <typename Call>
std::string refusal(const Call& call) {
  try {
    call();
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
    return error.what();
  }
}

TEST(SummaryInputLimitTest, TheModelAndTheOutputLeaveIt) {
  EXPECT_EQ(summary_input_limit(0, 1024, 1024, 100, false), 923);
  EXPECT_EQ(summary_input_limit(0, 1024, 1024, 200, false), 824);
  EXPECT_EQ(summary_input_limit(0, 2048, 2048, 100, false), 1948);
  EXPECT_EQ(summary_input_limit(0, 2048, 712, 100, false), 612) << "an engine's limits";
  EXPECT_EQ(summary_input_limit(300, 2048, 2048, 100, false), 300);
  EXPECT_EQ(summary_input_limit(3000, 2048, 2048, 100, false), 1948);
  EXPECT_EQ(summary_input_limit(0, 2048, 2048, 100, true), 923);
  EXPECT_NE(refusal([] { summary_input_limit(0, 1024, 1024, 1024, false); }).find("no room"),
            std::string::npos);
  EXPECT_NE(refusal([] { summary_input_limit(0, 1024, 1024, 102, true); }).find("at most 922"),
            std::string::npos);
  EXPECT_NE(refusal([] { summary_input_limit(512, 2048, 2048, 100, true); }).find("which is 923"),
            std::string::npos);
}

std::vector<DatasetRow> rows(int count) {
  std::vector<DatasetRow> out;
  for (int i = 0; i < count; ++i) {
    std::string article;
    for (int w = 0; w < 40; ++w) article += fmt::format("dune {} ", w * (i + 1));
    out.push_back({fmt::format("a{}", i), article, "A dune."});
  }
  return out;
}

class SummarizeTest : public ::testing::Test {
 protected:
  SummarizeTest()
      : tokenizer_(Tokenizer::from_directory(kModel)),
        path_((fs::temp_directory_path() / fmt::format("caravan_summarize_{}", ::getpid()))
                  .string()) {
    settings_.max_input_len = 40;
    settings_.sampling.max_output_len = 4;
    items_ = make_summary_items(rows(5), tokenizer_, settings_, -1);
    LlmOptions options;
    options.model = kModel;
    options.dtype = "float32";
    options.max_batch_size = 2;
    options.max_seq_len = 64;
    llm_.emplace(Llm::open(options));
  }
  ~SummarizeTest() override { fs::remove(path_); }

  SummarizeRun run(PredictionLog::Mode mode, int64_t batch_size, const std::string& digest = "d") {
    PredictionLog log(path_, mode, ResultSettings({{"--digest", digest}}), items_);
    return run_summaries(*llm_, items_, batch_size, settings_, log, nullptr);
  }
  std::string file() const { return read_text_file(path_, 1 << 20); }
  void write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }

  Tokenizer tokenizer_;
  std::string path_;
  SummarizeSettings settings_;
  std::vector<SummaryItem> items_;
  std::optional<Llm> llm_;
};

TEST_F(SummarizeTest, ItemsSayWhatWasDropped) {
  ASSERT_EQ(items_.size(), 5u);
  for (const SummaryItem& item : items_) {
    EXPECT_EQ(item.prompt_ids.size(), 40u);
    EXPECT_GT(item.num_dropped_tokens, 0);
    EXPECT_TRUE(tokenizer_.decode(item.prompt_ids).ends_with(" TL;DR:"));
    EXPECT_TRUE(item.hf_prompt_ids.empty());
  }
  std::vector<DatasetRow> twins = rows(3);
  twins[2].id = twins[0].id;
  EXPECT_EQ(make_summary_items(twins, tokenizer_, settings_, -1)[2].id, "2");
  twins[2].id = "";
  EXPECT_EQ(make_summary_items(twins, tokenizer_, settings_, -1)[0].id, "0");
  settings_.is_trtllm_2023 = true;
  const auto compat = make_summary_items(rows(1), tokenizer_, settings_, 1024);
  EXPECT_EQ(compat[0].num_dropped_tokens, 0) << "923 tokens are more than it has";
  EXPECT_EQ(compat[0].hf_prompt_ids, compat[0].prompt_ids);
}

TEST_F(SummarizeTest, BatchesAndResumingChangeNothing) {
  const SummarizeRun whole = run(PredictionLog::Mode::kNew, 1);
  EXPECT_EQ(whole.batch_seconds.size(), 5u);
  EXPECT_EQ(whole.num_output_tokens, 20);
  const std::string expected = file();
  EXPECT_NE(refusal([&] { run(PredictionLog::Mode::kNew, 1); }).find("exists already"),
            std::string::npos);
  EXPECT_EQ(run(PredictionLog::Mode::kReplace, 2).batch_seconds.size(), 3u);
  EXPECT_EQ(file(), expected);

  // Cut after every line and in the middle of one.
  for (const size_t num_bytes :
       {size_t{0}, size_t{10}, expected.find('\n') + 1, expected.find('\n') + 30,
        expected.rfind('\n', expected.size() - 2), expected.size()}) {
    write(expected.substr(0, num_bytes));
    const SummarizeRun rest = run(PredictionLog::Mode::kResume, 2);
    EXPECT_EQ(file(), expected) << "cut to " << num_bytes;
    EXPECT_EQ(rest.predictions.size(), 5u);
    EXPECT_EQ(rest.predictions[4].text, whole.predictions[4].text);
    EXPECT_EQ(rest.predictions[0].output_ids, whole.predictions[0].output_ids);
  }
  fs::remove(path_);
  EXPECT_EQ(run(PredictionLog::Mode::kResume, 4).num_resumed, 0);
  EXPECT_EQ(file(), expected) << "nothing there to continue";

  EXPECT_NE(refusal([&] {
              run(PredictionLog::Mode::kResume, 1, "e");
            }).find("made with other settings (--digest changed)"),
            std::string::npos);
  std::swap(items_[0], items_[1]);
  EXPECT_NE(refusal([&] { run(PredictionLog::Mode::kResume, 1); }).find("the data set is another"),
            std::string::npos);
}

TEST_F(SummarizeTest, TheOtherSideMustHaveHadTheSameTokens) {
  const SummarizeRun ours = run(PredictionLog::Mode::kNew, 5);
  std::vector<Prediction> theirs = read_predictions(path_);
  std::swap(theirs[1], theirs[3]);
  std::vector<Prediction> matched = match_reference(items_, theirs, "HF");
  EXPECT_EQ(matched[3].id, "a3");
  auto agreement = compare_outputs(ours.predictions, matched);
  ASSERT_TRUE(agreement.has_value());
  EXPECT_EQ(agreement->num_equal, 5);
  EXPECT_DOUBLE_EQ(agreement->mean_common_prefix, 4);
  (*matched[2].output_ids)[1] ^= 1;
  agreement = compare_outputs(ours.predictions, matched);
  EXPECT_EQ(agreement->num_equal, 4);
  EXPECT_DOUBLE_EQ(agreement->mean_common_prefix, (4 * 4 + 1) / 5.0);
  matched[0].output_ids.reset();
  EXPECT_FALSE(compare_outputs(ours.predictions, matched).has_value());

  theirs = read_predictions(path_);
  theirs.pop_back();
  EXPECT_NE(
      refusal([&] { match_reference(items_, theirs, "HF"); }).find("no prediction for article 4"),
      std::string::npos);
  theirs = read_predictions(path_);
  (*theirs[2].prompt_ids)[7] = 11;
  EXPECT_NE(
      refusal([&] { match_reference(items_, theirs, "HF"); })
          .find("HF:3: other prompt_ids than this run's for article 2 (\"a2\"): token 7 of 40 is "
                "11, expected"),
      std::string::npos);
  theirs[2].prompt_ids.reset();
  EXPECT_NE(refusal([&] { match_reference(items_, theirs, "HF"); }).find("no \"prompt_ids\""),
            std::string::npos);
}

TEST_F(SummarizeTest, TheSettingsFollowWhatChangesAPrediction) {
  const ModelDir dir = open_model_dir(kModel);
  const LlmOptions options;
  const std::string digest = summary_settings(dir, options, settings_).text();
  LlmOptions other = options;
  other.max_batch_size = 7;
  other.num_threads = 3;
  EXPECT_EQ(summary_settings(dir, other, settings_).text(), digest);
  other.dtype = "bfloat16";
  EXPECT_NE(summary_settings(dir, other, settings_).text(), digest);
  SummarizeSettings changed = settings_;
  changed.sampling.seed = 1;
  EXPECT_EQ(summary_settings(dir, options, changed).changed(digest), "--seed");
  changed = settings_;
  changed.instruction += " Briefly.";
  changed.sampling.temperature = 0.5f;
  EXPECT_EQ(summary_settings(dir, options, changed).changed(digest),
            "--instruction, --temperature");
}

}  // namespace
}  // namespace caravan
