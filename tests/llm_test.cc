// The library's front door on a real model.

#include "caravan/llm.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace caravan {
namespace {

Llm open() {
  LlmOptions options;
  options.model = CARAVAN_SOURCE_DIR "/models/camel-nano";
  options.max_batch_size = 4;
  return Llm::open(options);
}

SamplingParams greedy(int64_t max_output_len) {
  SamplingParams params;
  params.max_output_len = max_output_len;
  params.ignore_eos = true;
  return params;
}

TEST(LlmTest, ACallbackThatThrowsEndsItsCallAlone) {
  Llm llm = open();
  const std::string wanted = llm.generate("The sea was", greedy(12)).text;
  const std::vector<std::vector<int32_t>> prompts(6, llm.encode("Good morning"));
  for (const int num_calls : {1, 2, 9}) {
    int count = 0;
    const auto stop = [&](size_t, std::string_view) {
      if (++count == num_calls) throw std::logic_error("enough");
    };
    EXPECT_THROW(llm.generate(prompts, {greedy(20)}, stop), std::logic_error);
    EXPECT_EQ(count, num_calls);
    EXPECT_EQ(llm.generate("The sea was", greedy(12)).text, wanted);
  }
}

TEST(LlmTest, AStopStringCountsAfterTheLeastOutput) {
  Llm llm = open();
  const std::string whole = llm.generate("The sea was", greedy(24)).text;
  SamplingParams params = greedy(24);
  params.stop = {"e"};
  const Completion early = llm.generate("The sea was", params);
  EXPECT_EQ(early.text, whole.substr(0, whole.find('e')));
  EXPECT_EQ(early.finish_reason, FinishReason::kStop);
  params.min_output_len = 10;
  const Completion late = llm.generate("The sea was", params);
  EXPECT_GT(late.output_ids.size(), 10u);
  const std::string least = llm.decode({late.output_ids.begin(), late.output_ids.begin() + 10});
  EXPECT_EQ(late.text, whole.substr(0, whole.find('e', least.size())));
}

TEST(LlmTest, DecodesTheIdsOfTheModelOnly) {
  Llm llm = open();
  EXPECT_EQ(llm.decode(llm.encode("The sea")), "The sea");
  EXPECT_THROW(llm.decode({static_cast<int32_t>(llm.vocab_size())}), std::runtime_error);
  EXPECT_THROW(llm.decode({-1}), std::runtime_error);
}

TEST(LlmTest, RequestsOneByOneGiveWhatTheyGiveTogether) {
  Llm llm = open();
  std::vector<LlmRequest> requests(7);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<SamplingParams> params;
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = "The number " + std::to_string(i) + " is";
    requests[i].params = greedy(static_cast<int64_t>(3 + 5 * (i % 3)));
    prompts.push_back(llm.encode(requests[i].prompt));
    params.push_back(requests[i].params);
  }
  const std::vector<Completion> together = llm.generate(prompts, params);
  size_t next = 0, num_finished = 0;
  int64_t first_id = -1;
  while (next < requests.size() || llm.num_unfinished() > 0) {
    if (next < requests.size()) {
      const int64_t id = llm.submit(requests[next++]);
      if (first_id < 0) first_id = id;
      EXPECT_THROW(llm.generate("A", greedy(1)), std::runtime_error);
    }
    for (const FinishedRequest& finished : llm.step()) {
      const auto index = static_cast<size_t>(finished.id - first_id);
      EXPECT_EQ(finished.completion.output_ids, together[index].output_ids);
      EXPECT_EQ(finished.completion.text, together[index].text);
      ++num_finished;
    }
  }
  EXPECT_EQ(num_finished, requests.size());
  EXPECT_TRUE(llm.step().empty());
  EXPECT_EQ(llm.generate("The sea was", greedy(2)).output_ids.size(), 2u);
}

TEST(LlmTest, SpecialTokensOfTrustedTextAndEmptyPrompts) {
  Llm llm = open();
  LlmRequest request{.prompt = "Hi<|endoftext|>", .params = greedy(1)};
  EXPECT_GT(llm.prompt_tokens(request).size(), 2u);
  request.parse_special = true;
  EXPECT_EQ(llm.prompt_tokens(request), (std::vector<int32_t>{17250, 50256}));
  EXPECT_EQ(llm.generate(request).prompt_ids, (std::vector<int32_t>{17250, 50256}));
  EXPECT_EQ(llm.generate("", greedy(1)).prompt_ids, std::vector<int32_t>{50256});
  request.prompt_ids = {1};
  EXPECT_THROW(llm.generate(request), std::runtime_error);
}

TEST(LlmTest, WithoutATokenizerThereAreIdsAlone) {
  namespace fs = std::filesystem;
  const fs::path model = fs::path(testing::TempDir()) / "llm_test_ids_only";
  fs::remove_all(model);
  fs::create_directory(model);
  for (const char* name : {"config.json", "model.safetensors"}) {
    fs::create_symlink(fs::path(CARAVAN_SOURCE_DIR "/models/camel-nano") / name, model / name);
  }
  LlmOptions options;
  options.model = model.string();
  Llm llm = Llm::open(options);
  EXPECT_FALSE(llm.has_tokenizer());
  EXPECT_THROW(llm.generate("The sea", greedy(1)), std::runtime_error);
  const LlmRequest request{.prompt_ids = {464, 5417, 373}, .params = greedy(3)};
  const Completion completion = llm.generate(request);
  EXPECT_EQ(completion.text, "");
  EXPECT_EQ(completion.output_ids, open().generate(request).output_ids);
  fs::remove_all(model);
}

}  // namespace
}  // namespace caravan
