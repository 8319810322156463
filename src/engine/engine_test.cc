#include <gtest/gtest.h>

#include <random>
#include <set>

#include "core/error.h"
#include "engine/block_manager.h"
#include "engine/prompt_template.h"
#include "engine/scheduler.h"

namespace caravan {
namespace {

TEST(BlockManagerTest, GivesEachBlockOnceAndTakesItBackOnce) {
  BlockManager blocks(5);
  std::vector<int32_t> a = blocks.allocate(3);
  std::vector<int32_t> b = blocks.allocate(2);
  std::set<int32_t> all(a.begin(), a.end());
  all.insert(b.begin(), b.end());
  EXPECT_EQ(all, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_THROW(blocks.allocate(1), Error);
  std::vector<int32_t> copy = a;
  blocks.release(a);
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(blocks.num_free(), 3);
  EXPECT_THROW(blocks.release(copy), Error);
}

std::unique_ptr<Sequence> sequence(int64_t id, int64_t prompt, int64_t output) {
  auto s = std::make_unique<Sequence>();
  s->id = id;
  s->token_ids.assign(static_cast<size_t>(prompt), 1);
  s->num_prompt_tokens = prompt;
  s->params.max_output_len = output;
  return s;
}

TEST(SchedulerTest, CutsAPromptIntoChunksOfTheBudget) {
  Scheduler scheduler(
      {.max_batch_size = 4, .max_num_batched_tokens = 8, .block_size = 16, .num_blocks = 10});
  scheduler.add(sequence(0, 20, 3));
  Batch batch(16);
  EXPECT_TRUE(scheduler.schedule(batch).empty());
  EXPECT_EQ(batch.num_tokens(), 8);
  EXPECT_TRUE(scheduler.schedule(batch).empty());
  const std::vector<Sequence*> yields = scheduler.schedule(batch);
  ASSERT_EQ(yields.size(), 1u);
  EXPECT_EQ(batch.num_tokens(), 4);
  EXPECT_EQ(batch.num_logits(), 1);
}

TEST(SchedulerTest, RefusesWhatCouldNeverFit) {
  Scheduler scheduler(
      {.max_batch_size = 1, .max_num_batched_tokens = 8, .block_size = 16, .num_blocks = 2});
  EXPECT_THROW(scheduler.add(sequence(0, 30, 3)), Error);
  scheduler.add(sequence(1, 30, 2));
}

// Random arrivals and lengths: every sequence ends, in the order of arrival for equal work, the
// limits hold in every step, and every block comes back.
TEST(SchedulerTest, EverySequenceEndsWithinTheLimits) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const auto draw = [&](int64_t low, int64_t high) {
      return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
    };
    const SchedulerLimits limits{.max_batch_size = draw(1, 6),
                                 .max_num_batched_tokens = draw(6, 40),
                                 .block_size = 16,
                                 .num_blocks = draw(6, 30)};
    Scheduler scheduler(limits);
    Batch batch(limits.block_size);
    const int64_t total = draw(1, 30);
    int64_t added = 0, finished = 0;
    for (int step = 0; finished < total; ++step) {
      ASSERT_LT(step, 20000) << "seed " << seed;
      while (added < total && draw(0, 2) > 0) {
        scheduler.add(sequence(added++, draw(1, 60), draw(1, 30)));
      }
      if (scheduler.is_empty()) continue;
      const std::vector<Sequence*> yields = scheduler.schedule(batch);
      ASSERT_GT(batch.num_tokens(), 0);
      ASSERT_LE(batch.num_tokens(), limits.max_num_batched_tokens);
      ASSERT_LE(scheduler.num_running(), limits.max_batch_size);
      ASSERT_EQ(batch.num_logits(), static_cast<int64_t>(yields.size()));
      batch.validate(2, 1000, limits.num_blocks);
      for (Sequence* s : yields) {
        s->token_ids.push_back(1);
        if (s->num_output_tokens() == s->params.max_output_len) {
          scheduler.remove(s);
          ++finished;
        }
      }
    }
    EXPECT_EQ(scheduler.num_free_blocks(), limits.num_blocks);
  }
}

TEST(PromptTemplateTest, AreByteForByteThoseOfTheModelCard) {
  EXPECT_EQ(camel_prompt("Do it.", ""),
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nDo it.\n\n### Response:");
  EXPECT_EQ(camel_prompt("Do it.", "With {this}."),
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request\n\n"
            "### Instruction:\nDo it.\n\n### Input:\nWith {this}.\n\n### Response:");
}

}  // namespace
}  // namespace caravan
