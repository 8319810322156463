#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "core/error.h"
#include "engine/block_hash.h"
#include "engine/block_manager.h"
#include "engine/prompt_template.h"
#include "engine/scheduler.h"

namespace caravan {
namespace {

TEST(BlockManagerTest, GivesEachBlockOnceAndTakesItBackOnce) {
  BlockManager blocks(5, 16);
  std::vector<int32_t> a, b;
  blocks.allocate(3, a);
  blocks.allocate(2, b);
  std::set<int32_t> all(a.begin(), a.end());
  all.insert(b.begin(), b.end());
  EXPECT_EQ(all, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_THROW(blocks.allocate(1, b), Error);
  std::vector<int32_t> copy = a;
  blocks.release(a);
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(blocks.num_free(), 3);
  EXPECT_THROW(blocks.release(copy), Error);
}

TEST(BlockManagerTest, ChainsOfDifferentScopesHaveNothingInCommon) {
  const HashKey key{1, 2};
  const BlockManager blocks(4, 2, key), again(4, 2, key), other(4, 2, HashKey{3, 4});
  EXPECT_EQ(blocks.root(""), BlockHash{});
  EXPECT_EQ(blocks.root("a"), again.root("a"));
  EXPECT_FALSE(blocks.root("a") == blocks.root("b"));
  EXPECT_FALSE(blocks.root("a") == other.root("a"));  // nobody outside the process can make one
  const std::vector<int32_t> tokens{1, 2};
  EXPECT_FALSE(blocks.hash(blocks.root("a"), tokens) == blocks.hash(blocks.root("b"), tokens));
  EXPECT_FALSE(blocks.hash(blocks.root("a"), tokens) == blocks.hash({}, tokens));
}

// The hash of a message 00 01 02 ... under the key 00 01 ... 0f, from the reference code's table.
TEST(BlockHashTest, IsSipHash) {
  const HashKey key{0x0706050403020100u, 0x0f0e0d0c0b0a0908u};
  std::vector<std::byte> message;
  EXPECT_EQ(siphash128(key, message), (BlockHash{0xe6a825ba047f81a3u, 0x930255c71472f66du}));
  message.push_back(std::byte{0});
  EXPECT_EQ(siphash128(key, message), (BlockHash{0x44af996bd8c187dau, 0x45fc229b11597634u}));
  // A block's hash is that of its parent's bytes and its tokens'.
  const std::vector<int32_t> tokens{7, -1, 1 << 30};
  const BlockHash parent{1, 2};
  std::vector<std::byte> bytes(16 + 12);
  std::memcpy(bytes.data(), &parent, 16);
  std::memcpy(bytes.data() + 16, tokens.data(), 12);
  EXPECT_EQ(hash_block(key, parent, tokens), siphash128(key, bytes));
}

TEST(BlockManagerTest, FindsWhatABlockHoldsUntilItIsGivenOutAgain) {
  BlockManager blocks(4, 2);
  const std::vector<int32_t> x{1, 2}, y{3, 4};
  const BlockHash hx = blocks.hash({}, x), hy = blocks.hash(hx, y);
  std::vector<int32_t> table;
  blocks.allocate(2, table);
  blocks.remember(table[0], hx, {}, x);
  blocks.remember(table[1], hy, hx, y);
  EXPECT_EQ(blocks.find(hx, {}, x), table[0]);
  EXPECT_EQ(blocks.find(hy, hx, y), table[1]);
  // An equal hash is not enough.
  EXPECT_FALSE(blocks.find(hx, {}, y));
  EXPECT_FALSE(blocks.find(hy, {}, y));
  const int32_t first = table[0], second = table[1];
  blocks.share(first);
  blocks.release(table);
  EXPECT_EQ(blocks.num_free(), 3);
  EXPECT_EQ(blocks.num_cached(), 2);
  std::vector<int32_t> others;
  blocks.allocate(2, others);  // the empty ones first
  EXPECT_EQ(blocks.num_cached(), 2);
  blocks.share(second);
  table = {first, second};
  blocks.release(table);  // the end of a chain is given out before its beginning
  blocks.allocate(1, others);
  EXPECT_EQ(others.back(), second);
  EXPECT_EQ(blocks.num_cached(), 1);
  EXPECT_EQ(blocks.find(hx, {}, x), first);
  blocks.forget(first);
  EXPECT_FALSE(blocks.find(hx, {}, x));
  EXPECT_EQ(blocks.num_free(), 1);
  EXPECT_THROW(blocks.share(first), Error);
}

std::unique_ptr<Sequence> sequence(int64_t id, int64_t prompt, int64_t output) {
  auto s = std::make_unique<Sequence>();
  s->id = id;
  s->token_ids.assign(static_cast<size_t>(prompt), 1);
  s->num_prompt_tokens = prompt;
  s->params.max_output_len = output;
  return s;
}

SchedulerLimits limits(int64_t batch, int64_t tokens, int64_t num_blocks) {
  return {.max_batch_size = batch,
          .max_num_batched_tokens = tokens,
          .block_size = 16,
          .num_blocks = num_blocks};
}

// One step, with every token that comes out of it; returns the ids of those that took part.
std::set<int64_t> run_step(Scheduler& scheduler, Batch& batch) {
  std::set<int64_t> ids;
  for (const Sequence* s : scheduler.running()) ids.insert(s->id);
  for (const ScheduledRow& row : scheduler.schedule(batch)) {
    row.sequence->token_ids.push_back(1);
    if (row.sequence->num_output_tokens() == row.sequence->params.max_output_len) {
      scheduler.remove(row.sequence);
    }
  }
  return ids;
}

TEST(SchedulerTest, CutsAPromptIntoChunksOfTheBudget) {
  Scheduler scheduler(limits(4, 8, 10));
  scheduler.add(sequence(0, 20, 3));
  Batch batch(16);
  EXPECT_TRUE(scheduler.schedule(batch).empty());
  EXPECT_EQ(batch.num_tokens(), 8);
  EXPECT_TRUE(scheduler.schedule(batch).empty());
  EXPECT_EQ(scheduler.schedule(batch).size(), 1u);
  EXPECT_EQ(batch.num_tokens(), 4);
  EXPECT_EQ(batch.num_logits(), 1);
}

TEST(SchedulerTest, RefusesWhatCouldNeverFit) {
  Scheduler scheduler(limits(1, 8, 2));
  EXPECT_THROW(scheduler.add(sequence(0, 30, 3)), Error);
  scheduler.add(sequence(1, 30, 2));
}

TEST(SchedulerTest, AShortPromptDoesNotWaitForALongOne) {
  Scheduler scheduler(limits(4, 32, 100));
  scheduler.add(sequence(0, 1000, 1));
  Batch batch(16);
  EXPECT_TRUE(scheduler.schedule(batch).empty());
  scheduler.add(sequence(1, 12, 5));
  const auto& rows = scheduler.schedule(batch);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].sequence->id, 1);
  EXPECT_EQ(batch.num_tokens(), 32);  // the long one has the rest
}

TEST(SchedulerTest, TakesBlocksAsTheyAreNeeded) {
  Scheduler scheduler(limits(4, 32, 10));
  scheduler.add(sequence(0, 16, 100));
  Batch batch(16);
  run_step(scheduler, batch);
  EXPECT_EQ(scheduler.num_free_blocks(), 9);
  run_step(scheduler, batch);
  EXPECT_EQ(scheduler.num_free_blocks(), 8);
}

TEST(SchedulerTest, AFullCacheIsUsedToTheLastBlock) {
  Scheduler scheduler(limits(4, 96, 4));
  Batch batch(16);
  for (int64_t id = 0; id < 4; ++id) scheduler.add(sequence(id, 10, 6));
  run_step(scheduler, batch);
  EXPECT_EQ(scheduler.num_running(), 4);
  EXPECT_EQ(scheduler.num_free_blocks(), 0);
}

TEST(SchedulerTest, TheLastOfTheOrderGivesWay) {
  Scheduler scheduler(limits(3, 96, 7));
  Batch batch(16);
  for (int64_t id = 0; id < 3; ++id) scheduler.add(sequence(id, 16, 64));
  run_step(scheduler, batch);
  EXPECT_EQ(scheduler.num_running(), 3);
  while (scheduler.counters().num_preemptions == 0) run_step(scheduler, batch);
  EXPECT_EQ(scheduler.find(2)->slot, -1);
  EXPECT_EQ(scheduler.num_running(), 2);
  EXPECT_GT(scheduler.find(2)->num_output_tokens(), 0);  // its tokens are kept
  for (int i = 0; i < 400 && !scheduler.is_empty(); ++i) run_step(scheduler, batch);
  EXPECT_TRUE(scheduler.is_empty());
  EXPECT_EQ(scheduler.num_free_blocks(), 7);
}

TEST(SchedulerTest, TheSameBeginningIsComputedOnce) {
  Scheduler scheduler(limits(4, 64, 20));
  Batch batch(16);
  scheduler.add(sequence(0, 40, 30));
  run_step(scheduler, batch);
  EXPECT_EQ(batch.num_tokens(), 40);
  scheduler.add(sequence(1, 40, 30));
  run_step(scheduler, batch);
  EXPECT_EQ(batch.num_tokens(), 1 + 8);
  EXPECT_EQ(scheduler.find(1)->num_cached_tokens, 32);
  EXPECT_EQ(scheduler.counters().prefix_hits, 32);
  EXPECT_EQ(scheduler.counters().prefix_queries, 80);
  // Of a prompt that is there as a whole the last block is computed again.
  scheduler.add(sequence(2, 32, 1));
  run_step(scheduler, batch);
  EXPECT_EQ(batch.num_tokens(), 1 + 1 + 16);
  // Scoring a prompt needs all its rows.
  auto scored = sequence(3, 40, 1);
  scored->params.num_prompt_logprobs = 0;
  scored->prompt_scored.resize(1);
  scheduler.add(std::move(scored));
  scheduler.schedule(batch);
  EXPECT_EQ(batch.num_tokens(), 1 + 1 + 40);
  EXPECT_EQ(batch.scored_rows().size(), 1u);
}

TEST(SchedulerTest, CopiesThatComeTogetherComputeTheirPromptOnce) {
  Scheduler scheduler(limits(8, 256, 100));
  Batch batch(16);
  for (int64_t id = 0; id < 5; ++id) scheduler.add(sequence(id, 60, 10));
  run_step(scheduler, batch);
  EXPECT_EQ(batch.num_tokens(), 60);
  run_step(scheduler, batch);
  EXPECT_EQ(batch.num_tokens(), 1 + 4 * (60 - 48));
  EXPECT_EQ(scheduler.num_running(), 5);
}

TEST(SchedulerTest, CopiesOfALongPromptComputeItOnce) {
  Scheduler scheduler(limits(8, 64, 200));
  Batch batch(16);
  for (int64_t id = 0; id < 5; ++id) scheduler.add(sequence(id, 600, 4));
  int64_t num_tokens = 0, num_steps = 0;
  for (; !scheduler.is_empty() && num_steps < 100; ++num_steps) {
    run_step(scheduler, batch);
    num_tokens += batch.num_tokens();
  }
  EXPECT_TRUE(scheduler.is_empty());
  // The last block, which is not full, is each one's own; so are the tokens but the last.
  EXPECT_EQ(num_tokens, 592 + 5 * (8 + 3));
  EXPECT_EQ(scheduler.counters().prefix_hits, 4 * 592);
}

TEST(TimingsTest, EndWhereTheSequenceEnded) {
  using Clock = Sequence::Clock;
  Sequence s;
  s.num_prompt_tokens = 3;
  s.arrival = Clock::now() - std::chrono::milliseconds(100);
  s.first_step = s.arrival + std::chrono::milliseconds(10);
  s.last_token = s.arrival + std::chrono::milliseconds(30);
  const RequestTimings without_token = timings_of(s);  // its first was not a number
  EXPECT_EQ(without_token.queue_ms, 10);
  EXPECT_GE(without_token.prefill_ms, 90);
  EXPECT_LT(without_token.prefill_ms, 1e6);
  EXPECT_EQ(without_token.decode_ms, 0);
  s.first_token = s.arrival + std::chrono::milliseconds(15);
  EXPECT_EQ(timings_of(s).prefill_ms, 5);
  EXPECT_EQ(timings_of(s).decode_ms, 15);
}

// A stream of requests that fills the engine for ever, and one of lower priority.
TEST(SchedulerTest, APriorityIsAHeadStartNotAWall) {
  for (const int32_t priority : {1, 3}) {
    Scheduler scheduler(limits(2, 64, 20));
    Batch batch(16);
    auto late = sequence(0, 8, 2);
    late->priority = priority;
    scheduler.add(std::move(late));
    int64_t next = 1;
    int64_t num_steps = 0;
    for (int i = 0; i < 8; ++i) scheduler.add(sequence(next++, 8, 4));
    for (; scheduler.find(0) != nullptr && num_steps < 5000; ++num_steps) {
      while (scheduler.num_waiting() < 8) scheduler.add(sequence(next++, 8, 4));
      run_step(scheduler, batch);
    }
    EXPECT_GT(num_steps, Scheduler::kStepsPerPriority * priority);
    EXPECT_LT(num_steps, Scheduler::kStepsPerPriority * priority + 40);
  }
}

// The same with the highest priority that there is against the lowest, as far as numbers go.
TEST(SchedulerTest, NobodyWaitsForEverBehindAnyPriority) {
  Scheduler scheduler(limits(2, 64, 20));
  Batch batch(16);
  const auto hurried = [](int64_t id) {
    auto s = sequence(id, 8, 4);
    s->priority = INT32_MIN;
    return s;
  };
  auto late = sequence(0, 8, 2);
  late->priority = INT32_MAX;
  scheduler.add(std::move(late));
  int64_t next = 1;
  int64_t num_steps = 0;
  for (; scheduler.find(0) != nullptr && num_steps < 100'000; ++num_steps) {
    while (scheduler.num_waiting() < 8) scheduler.add(hurried(next++));
    run_step(scheduler, batch);
  }
  const int64_t longest = Scheduler::kStepsPerPriority * 2 * Scheduler::kMaxPriority;
  EXPECT_GT(num_steps, longest - 40);
  EXPECT_LT(num_steps, longest + 40);
}

TEST(SchedulerTest, APrefixIsFoundInItsScopeAlone) {
  Scheduler scheduler(limits(4, 64, 40));
  Batch batch(16);
  const auto num_cached = [&](int64_t id, std::string_view scope) {
    auto s = sequence(id, 40, 2);
    s->root = scheduler.root(scope);
    Sequence* added = s.get();
    scheduler.add(std::move(s));
    run_step(scheduler, batch);
    const int64_t count = added->num_cached_tokens;
    run_step(scheduler, batch);
    EXPECT_TRUE(scheduler.is_empty());
    return count;
  };
  EXPECT_EQ(num_cached(0, "a"), 0);
  EXPECT_EQ(num_cached(1, "b"), 0);
  EXPECT_EQ(num_cached(2, ""), 0);
  EXPECT_EQ(num_cached(3, "a"), 32);
  EXPECT_EQ(num_cached(4, "b"), 32);
  EXPECT_EQ(num_cached(5, ""), 32);
  EXPECT_EQ(num_cached(6, "ab"), 0);
}

TEST(SchedulerTest, CopiesInDifferentScopesDoNotWaitForEachOther) {
  Scheduler scheduler(limits(8, 256, 100));
  Batch batch(16);
  for (int64_t id = 0; id < 2; ++id) {
    auto s = sequence(id, 60, 10);
    s->root = scheduler.root(id == 0 ? "a" : "b");
    scheduler.add(std::move(s));
  }
  run_step(scheduler, batch);
  EXPECT_EQ(batch.num_tokens(), 120);
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
