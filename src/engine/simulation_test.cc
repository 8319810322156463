// Serving in small: thousands of engines over a fake device, everything a function of a seed.
// CARAVAN_SIMULATION_SEED=N runs seed N alone, as a failure's message says.

#include <gtest/gtest.h>

#include <cstdlib>

#include "engine/test_simulation.h"
#include "tests/test_scale.h"

namespace caravan {
namespace {

using testing::Planted;
using testing::Simulation;
using testing::SimulationResult;

constexpr int kNumSeeds = 4000;

TEST(SimulationTest, EveryRequestGetsTheTokensItHasAlone) {
  const char* only = std::getenv("CARAVAN_SIMULATION_SEED");
  const uint64_t first = only == nullptr ? 0 : std::strtoull(only, nullptr, 10);
  const uint64_t end = only == nullptr ? static_cast<uint64_t>(scaled(kNumSeeds)) : first + 1;
  SimulationResult total;
  for (uint64_t seed = first; seed < end; ++seed) {
    const SimulationResult one = Simulation(seed).run();
    ASSERT_EQ(one.failure, "") << "again: CARAVAN_SIMULATION_SEED=" << seed
                               << " engine_test --gtest_filter=SimulationTest.Every*";
    total.trace = testing::mix(total.trace, one.trace);
    total.num_requests += one.num_requests;
    total.num_whole += one.num_whole;
    total.num_tokens += one.num_tokens;
    total.num_cancelled += one.num_cancelled;
    total.num_refused += one.num_refused;
    total.num_not_finite += one.num_not_finite;
    total.num_device_failures += one.num_device_failures;
    total.num_preemptions += one.num_preemptions;
    total.max_preemptions = std::max(total.max_preemptions, one.max_preemptions);
    total.num_prefix_hits += one.num_prefix_hits;
    total.num_steps += one.num_steps;
  }
  printf(
      "%lld requests, %lld of them whole, %lld tokens in %lld steps; %lld cancelled, "
      "%lld refused, %lld not finite, %lld device failures; %lld preemptions (at most %lld of "
      "one request), %lld prompt tokens from the prefix cache; trace %016llx\n",
      static_cast<long long>(total.num_requests), static_cast<long long>(total.num_whole),
      static_cast<long long>(total.num_tokens), static_cast<long long>(total.num_steps),
      static_cast<long long>(total.num_cancelled), static_cast<long long>(total.num_refused),
      static_cast<long long>(total.num_not_finite),
      static_cast<long long>(total.num_device_failures),
      static_cast<long long>(total.num_preemptions), static_cast<long long>(total.max_preemptions),
      static_cast<long long>(total.num_prefix_hits), static_cast<unsigned long long>(total.trace));
  if (only != nullptr) return;
  // The seeds reach what they are there for.
  const int64_t num_seeds = scaled(kNumSeeds);
  EXPECT_GE(total.num_requests, 100 * num_seeds);
  EXPECT_GT(total.num_whole, 50 * num_seeds);
  if (num_seeds < 100) return;
  EXPECT_GT(total.num_preemptions, 5 * num_seeds);
  EXPECT_EQ(total.max_preemptions, Scheduler::kMaxPreemptions);
  EXPECT_GT(total.num_prefix_hits, 100 * num_seeds);
  EXPECT_GT(total.num_cancelled, num_seeds);
  EXPECT_GT(total.num_refused, num_seeds);
  EXPECT_GT(total.num_not_finite, num_seeds / 10);
  EXPECT_GT(total.num_device_failures, num_seeds / 20);
}

TEST(SimulationTest, ASeedIsReplayedExactly) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    EXPECT_EQ(Simulation(seed).run().trace, Simulation(seed).run().trace);
  }
}

/// Of so many seeds, how many notice the fault.
int num_noticed(Planted planted, int num_seeds) {
  int count = 0;
  for (int seed = 0; seed < num_seeds; ++seed) {
    const SimulationResult result = Simulation(static_cast<uint64_t>(seed), planted).run();
    if (!result.failure.empty() && count++ == 0) printf("%s\n", result.failure.c_str());
  }
  return count;
}

TEST(SimulationTest, ALeakedBlockIsNoticed) { EXPECT_GE(num_noticed(Planted::kLeak, 20), 10); }
TEST(SimulationTest, ABlockReusedTooEarlyIsNoticed) {
  EXPECT_GE(num_noticed(Planted::kEarlyReuse, 20), 5);
}
TEST(SimulationTest, AWrongPrefixIsNoticed) {
  EXPECT_GE(num_noticed(Planted::kWrongPrefix, 20), 5);
}
TEST(SimulationTest, AWrongScopeIsNoticed) { EXPECT_GE(num_noticed(Planted::kWrongScope, 20), 5); }
TEST(SimulationTest, AnAlteredPromptIsNoticed) {
  EXPECT_GE(num_noticed(Planted::kAlteredPrompt, 20), 10);
}

}  // namespace
}  // namespace caravan
