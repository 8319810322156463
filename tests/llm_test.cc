// The library's front door on a real model.

#include "caravan/llm.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace caravan
