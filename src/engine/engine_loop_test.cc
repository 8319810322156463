#include "engine/engine_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "core/error.h"
#include "engine/test_fake_runner.h"
#include "tests/test_scale.h"

namespace caravan {
namespace {

using testing::FakeRunner;

/// What one request was told, and a way to wait for its end.
struct Told {
  void take(GenerationOutput output) {
    const std::lock_guard lock(mutex);
    EXPECT_FALSE(is_finished) << "an output after the last one";
    for (ScoredToken& token : output.tokens) tokens.push_back(token.token_id);
    is_finished = output.finish_reason != FinishReason::kNone;
    last = std::move(output);
    changed.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(changed.wait_for(lock, std::chrono::seconds(20), [&] { return is_finished; }));
  }
  void wait_for_tokens(size_t count) {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(changed.wait_for(lock, std::chrono::seconds(20),
                                 [&] { return tokens.size() >= count || is_finished; }));
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<int32_t> tokens;
  GenerationOutput last;
  bool is_finished = false;
};

struct LoopSetup {
  FakeRunner::Options device{.block_size = 4, .num_blocks = 64, .max_batch_size = 4};
  int64_t max_num_batched_tokens = 16;
  EngineLoopOptions loop = {};
  std::function<void(int64_t)> on_launch = nullptr;
  std::function<void(int64_t)> on_collect = nullptr;
};

std::unique_ptr<EngineLoop> open(const LoopSetup& setup = {}) {
  auto runner = std::make_unique<FakeRunner>(setup.device);
  runner->on_launch = setup.on_launch;
  runner->on_collect = setup.on_collect;
  const EngineLimits limits{.vocab_size = testing::kFakeVocabSize,
                            .max_seq_len = 128,
                            .scheduler = {.max_batch_size = setup.device.max_batch_size,
                                          .max_num_batched_tokens = setup.max_num_batched_tokens,
                                          .block_size = setup.device.block_size,
                                          .num_blocks = setup.device.num_blocks}};
  LlmEngineOptions options;
  options.eos_token_ids = {testing::kFakeEos};
  return std::make_unique<EngineLoop>(
      std::make_unique<LlmEngine>(std::move(runner), limits, options), setup.loop);
}

GenerationRequest request(int32_t first_token, int64_t output_len, bool ignores_eos = true) {
  GenerationRequest r;
  for (int32_t i = 0; i < 7; ++i) r.prompt_ids.push_back((first_token + i) % 63 + 1);
  r.params.max_output_len = output_len;
  r.params.ignore_eos = ignores_eos;
  r.params.seed = 1;
  return r;
}

std::vector<int32_t> expected(const GenerationRequest& r) {
  std::vector<int32_t> ids = r.prompt_ids;
  while (static_cast<int64_t>(ids.size() - r.prompt_ids.size()) < r.params.max_output_len) {
    const int32_t token =
        testing::fake_output(ids, testing::seen_of(ids), static_cast<int64_t>(r.prompt_ids.size()),
                             r.params, {})
            .token.token_id;
    ids.push_back(token);
    if (token < 0 || (token == testing::kFakeEos && !r.params.ignore_eos)) break;
  }
  return {ids.begin() + static_cast<std::ptrdiff_t>(r.prompt_ids.size()), ids.end()};
}

EngineLoop::OnOutput to(Told& told) {
  return [&told](GenerationOutput output) { told.take(std::move(output)); };
}

/// Blocks what calls pass() until open().
struct Gate {
  void pass() {
    std::unique_lock lock(mutex);
    is_waiting = true;
    changed.notify_all();
    changed.wait(lock, [&] { return is_open; });
  }
  void wait_until_reached() {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(changed.wait_for(lock, std::chrono::seconds(20), [&] { return is_waiting; }));
  }
  void open() {
    const std::lock_guard lock(mutex);
    is_open = true;
    changed.notify_all();
  }
  std::mutex mutex;
  std::condition_variable changed;
  bool is_waiting = false;
  bool is_open = false;
};

TEST(EngineLoopTest, TellsEachRequestItsTokensAndItsEnd) {
  std::atomic<int64_t> num_steps{0};
  LoopSetup setup;
  setup.loop.on_step = [&](const StepInfo& step) {
    EXPECT_GT(step.num_tokens, 0);
    EXPECT_GT(step.num_seqs, 0);
    EXPECT_GE(step.duration_ms, 0);
    ++num_steps;
  };
  const auto loop = open(setup);
  Told a, b;
  const auto id_a = loop->submit(request(1, 9), to(a));
  const auto id_b = loop->submit(request(20, 30, false), to(b));
  ASSERT_TRUE(id_a && id_b);
  EXPECT_NE(*id_a, *id_b);
  a.wait();
  b.wait();
  EXPECT_EQ(a.tokens, expected(request(1, 9)));
  EXPECT_EQ(a.last.finish_reason, FinishReason::kLength);
  EXPECT_EQ(b.tokens, expected(request(20, 30, false)));
  EXPECT_EQ(b.last.finish_reason,
            b.tokens.back() == testing::kFakeEos ? FinishReason::kStop : FinishReason::kLength);
  EXPECT_EQ(a.last.timings.num_prompt_tokens, 7);
  EXPECT_EQ(a.last.timings.num_output_tokens, 9);
  EXPECT_GE(a.last.timings.queue_ms, 0);
  EXPECT_GE(a.last.timings.decode_ms, 0);
  EXPECT_TRUE(loop->drain(20000));
  EXPECT_GT(num_steps, 8);
  const EngineStats stats = loop->stats();
  EXPECT_EQ(stats.num_running + stats.num_waiting, 0);
  EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
  EXPECT_EQ(stats.num_generated_tokens, static_cast<int64_t>(a.tokens.size() + b.tokens.size()));
  EXPECT_EQ(loop->stalled_ms(), 0);
  EXPECT_EQ(loop->failure(), "");
}

TEST(EngineLoopTest, RefusesWhatCanNeverRunAndGoesOn) {
  const auto loop = open();
  Told told;
  GenerationRequest bad = request(1, 9);
  bad.prompt_ids[3] = testing::kFakeVocabSize;
  EXPECT_THROW(loop->submit(bad, to(told)), Error);
  bad = request(1, 200);
  EXPECT_THROW(loop->submit(bad, to(told)), Error);
  bad = request(1, 9);
  bad.prompt_ids.clear();
  EXPECT_THROW(loop->submit(bad, to(told)), Error);
  bad = request(1, 9);
  bad.params.top_p = 0;
  EXPECT_THROW(loop->submit(bad, to(told)), Error);
  ASSERT_TRUE(loop->submit(request(1, 9), to(told)));
  told.wait();
  EXPECT_EQ(told.tokens, expected(request(1, 9)));
}

TEST(EngineLoopTest, ANumberThatIsNotFiniteEndsItsRequestAlone) {
  const auto loop = open();
  Told bad, good;
  GenerationRequest r = request(1, 20);
  r.params.seed = testing::kFakeNotFiniteSeed;
  ASSERT_TRUE(loop->submit(r, to(bad)));
  ASSERT_TRUE(loop->submit(request(2, 20), to(good)));
  bad.wait();
  good.wait();
  EXPECT_EQ(bad.last.finish_reason, FinishReason::kError);
  EXPECT_NE(bad.last.error.find("not finite"), std::string::npos);
  std::vector<int32_t> wanted = expected(r);
  wanted.pop_back();  // the error is no token
  EXPECT_EQ(bad.tokens, wanted);
  EXPECT_EQ(good.tokens, expected(request(2, 20)));
  EXPECT_EQ(loop->failure(), "");
}

class EngineLoopFailure : public ::testing::TestWithParam<bool> {};

TEST_P(EngineLoopFailure, OfTheDeviceEndsEveryRequestWithItsError) {
  const auto broken = [](int64_t step) {
    CARAVAN_CHECK_CODE(step < 5, kInternal, "the device fell off the bus");
  };
  LoopSetup setup;
  (GetParam() ? setup.on_launch : setup.on_collect) = broken;
  const auto loop = open(setup);
  std::vector<std::unique_ptr<Told>> all;
  for (int32_t i = 0; i < 9; ++i) {
    all.push_back(std::make_unique<Told>());
    ASSERT_TRUE(loop->submit(request(i, 50), to(*all.back())));
  }
  for (const auto& told : all) {
    told->wait();
    EXPECT_EQ(told->last.finish_reason, FinishReason::kError);
    EXPECT_EQ(told->last.error, "the device fell off the bus");
  }
  EXPECT_EQ(loop->failure(), "the device fell off the bus");
  Told late;
  ASSERT_TRUE(loop->submit(request(1, 5), to(late)));
  late.wait();
  EXPECT_EQ(late.last.finish_reason, FinishReason::kError);
  EXPECT_TRUE(loop->drain(20000));
}
INSTANTIATE_TEST_SUITE_P(When, EngineLoopFailure, ::testing::Bool(), [](const auto& param_info) {
  return param_info.param ? "launching" : "collecting";
});

TEST(EngineLoopTest, CancelsWhatRunsWhatWaitsAndWhatIsGone) {
  Gate gate;
  LoopSetup setup;
  setup.device.max_batch_size = 1;
  setup.max_num_batched_tokens = 8;
  setup.on_collect = [&](int64_t step) {
    if (step == 4) gate.pass();
  };
  const auto loop = open(setup);
  Told running, waiting, next;
  const auto id = loop->submit(request(1, 100), to(running));
  const auto id_waiting = loop->submit(request(2, 100), to(waiting));
  ASSERT_TRUE(loop->submit(request(3, 10), to(next)));
  gate.wait_until_reached();
  loop->cancel(*id);
  loop->cancel(*id_waiting);
  loop->cancel(12345);
  gate.open();
  running.wait();
  waiting.wait();
  next.wait();
  EXPECT_EQ(running.last.finish_reason, FinishReason::kAbort);
  EXPECT_EQ(waiting.last.finish_reason, FinishReason::kAbort);
  EXPECT_TRUE(waiting.tokens.empty());
  const std::vector<int32_t> whole = expected(request(1, 100));
  ASSERT_LE(running.tokens.size(), 5u);  // the step it was cancelled in is the last
  EXPECT_TRUE(std::equal(running.tokens.begin(), running.tokens.end(), whole.begin()));
  EXPECT_EQ(next.tokens, expected(request(3, 10)));
  loop->cancel(*id);
  EXPECT_TRUE(loop->drain(20000));
  EXPECT_EQ(loop->stats().num_free_blocks, loop->stats().num_blocks);
}

TEST(EngineLoopTest, AFullQueueRefusesUntilThereIsRoom) {
  Gate gate;
  LoopSetup setup;
  setup.device.max_batch_size = 1;
  setup.loop.max_waiting = 3;
  setup.on_collect = [&](int64_t step) {
    if (step == 0) gate.pass();
  };
  const auto loop = open(setup);
  Told first;
  ASSERT_TRUE(loop->submit(request(1, 5), to(first)));
  gate.wait_until_reached();
  std::vector<std::unique_ptr<Told>> all;
  int num_accepted = 0;
  for (int i = 0; i < 10; ++i) {
    all.push_back(std::make_unique<Told>());
    if (!loop->submit(request(i, 5), to(*all.back()))) break;
    ++num_accepted;
  }
  // The one that runs counts until its first step has ended.
  EXPECT_GE(num_accepted, 2);
  EXPECT_LE(num_accepted, 3);
  gate.open();
  first.wait();
  for (int i = 0; i < num_accepted; ++i) all[static_cast<size_t>(i)]->wait();
  Told again;
  ASSERT_TRUE(loop->drain(20000));
  EXPECT_FALSE(loop->submit(request(1, 5), to(again))) << "after drain()";
}

TEST(EngineLoopTest, WhoeverFindsAPlaceDoesNotWait) {
  Gate gate;
  LoopSetup setup;
  setup.device.max_batch_size = 4;
  setup.loop.max_waiting = 0;
  setup.on_collect = [&](int64_t step) {
    if (step == 1) gate.pass();
  };
  const auto loop = open(setup);
  std::vector<std::unique_ptr<Told>> all;
  for (int i = 0; i < 4; ++i) {
    all.push_back(std::make_unique<Told>());
    ASSERT_TRUE(loop->submit(request(i, 50), to(*all.back()))) << i;
  }
  gate.wait_until_reached();
  Told late;
  EXPECT_FALSE(loop->submit(request(9, 50), to(late)));
  gate.open();
  for (int i = 0; i < 4; ++i) {
    all[static_cast<size_t>(i)]->wait();
    EXPECT_EQ(all[static_cast<size_t>(i)]->tokens, expected(request(i, 50)));
  }
  EXPECT_TRUE(loop->drain(20000));
}

TEST(EngineLoopTest, AQueueFullOfTokensRefuses) {
  Gate gate;
  LoopSetup setup;
  setup.device.max_batch_size = 1;
  setup.loop.max_waiting_tokens = 20;
  setup.on_collect = [&](int64_t step) {
    if (step == 0) gate.pass();
  };
  const auto loop = open(setup);
  Told a, b, c, d;
  ASSERT_TRUE(loop->submit(request(1, 5), to(a)));
  ASSERT_TRUE(loop->submit(request(2, 5), to(b)));
  gate.wait_until_reached();
  bool is_refused = !loop->submit(request(3, 5), to(c));
  is_refused = is_refused || !loop->submit(request(4, 5), to(d));
  EXPECT_TRUE(is_refused);
  gate.open();
  EXPECT_TRUE(loop->drain(20000));
}

TEST(EngineLoopTest, KnowsWhatNoEmptyQueueCouldTake) {
  LoopSetup setup;  // 4 run at once
  setup.loop.max_waiting = 2;
  setup.loop.max_waiting_tokens = 20;
  const auto loop = open(setup);
  loop->check_queue(6, 20);
  loop->check_queue(1, 1000);  // one prompt always may wait
  EXPECT_THROW(loop->check_queue(7, 7), Error);
  EXPECT_THROW(loop->check_queue(2, 21), Error);
}

TEST(EngineLoopTest, PrefixesAreSharedWithinTheirScope) {
  const auto loop = open();
  const auto num_cached = [&](const std::string& scope) {
    Told told;
    GenerationRequest r = request(1, 1);
    r.prefix_scope = scope;
    EXPECT_TRUE(loop->submit(std::move(r), to(told)).has_value());
    told.wait();
    return told.last.num_cached_tokens;
  };
  EXPECT_EQ(num_cached("a"), 0);
  EXPECT_EQ(num_cached("b"), 0);
  EXPECT_EQ(num_cached("a"), 4);
  EXPECT_EQ(num_cached(""), 0);
}

TEST(EngineLoopTest, KnowsHowLongAStepHasStalled) {
  Gate gate;
  LoopSetup setup;
  setup.on_collect = [&](int64_t step) {
    if (step == 2) gate.pass();
  };
  const auto loop = open(setup);
  EXPECT_EQ(loop->stalled_ms(), 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(loop->stalled_ms(), 0);  // idle
  Told told;
  ASSERT_TRUE(loop->submit(request(1, 8), to(told)));
  gate.wait_until_reached();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_GE(loop->stalled_ms(), 50);
  EXPECT_FALSE(loop->drain(1));
  gate.open();
  told.wait();
  EXPECT_TRUE(loop->drain(20000));
  EXPECT_EQ(loop->stalled_ms(), 0);
}

TEST(EngineLoopTest, ItsEndIsTheEndOfItsRequests) {
  Told running, waiting;
  {
    LoopSetup setup;
    setup.device.max_batch_size = 1;
    const auto loop = open(setup);
    ASSERT_TRUE(loop->submit(request(1, 100), to(running)));
    ASSERT_TRUE(loop->submit(request(2, 100), to(waiting)));
    running.wait_for_tokens(1);
  }
  EXPECT_TRUE(running.is_finished && waiting.is_finished);
}

// Many threads submit and cancel at once, some from within callbacks; TSan reads along.
TEST(EngineLoopTest, ManyThreadsGetTheirOwnTokens) {
  LoopSetup setup;
  setup.loop.max_waiting = 100000;
  const auto loop = open(setup);
  constexpr int kNumThreads = 4;
  const int num_requests = scaled(300);
  std::atomic<int> num_whole{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < num_requests; ++i) {
        Told told;
        const GenerationRequest r =
            request(static_cast<int32_t>(random() % 60), 1 + random() % 12, random() % 2 == 0);
        const bool is_cancelled = random() % 3 == 0;
        const auto id = loop->submit(r, to(told));
        ASSERT_TRUE(id);
        if (is_cancelled) loop->cancel(*id);
        if (random() % 8 == 0) (void)loop->stats();
        told.wait();
        const std::vector<int32_t> whole = expected(r);
        ASSERT_LE(told.tokens.size(), whole.size());
        EXPECT_TRUE(std::equal(told.tokens.begin(), told.tokens.end(), whole.begin()));
        if (told.last.finish_reason == FinishReason::kAbort) {
          EXPECT_TRUE(is_cancelled);
          continue;
        }
        EXPECT_EQ(told.tokens, whole);
        ++num_whole;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(num_whole, 0);
  EXPECT_TRUE(loop->drain(20000));
  EXPECT_EQ(loop->stats().num_free_blocks, loop->stats().num_blocks);
}

}  // namespace
}  // namespace caravan
