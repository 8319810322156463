#include "engine/kv_cache_size.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace caravan {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kGiB = int64_t{1} << 30;

/// camel-5b with a float16 cache: 393,216 bytes a token, blocks of 16 tokens are 6 MiB.
KvCacheBudget camel() {
  KvCacheBudget budget;
  budget.block_bytes = 6 * kMiB;
  budget.block_size = 16;
  budget.max_batch_size = 128;
  budget.max_seq_len = 2048;
  return budget;
}

TEST(KvCacheSizeTest, AWishDecidesAloneAndIsRoundedDownToBlocks) {
  KvCacheBudget budget = camel();
  budget.wanted_bytes = 2 * kGiB + 5 * kMiB;
  budget.device_total_bytes = kGiB;
  const KvCacheSize size = choose_kv_cache_size(budget);
  EXPECT_EQ(size.num_blocks, 342);  // 2053 / 6
  EXPECT_EQ(size.num_bytes, 342 * 6 * kMiB);
  budget.scale_bytes = 8 * kMiB;  // more than the MiB that rounding left
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, 340);
  EXPECT_EQ(choose_kv_cache_size(budget).num_bytes, 340 * 6 * kMiB + 8 * kMiB);
}

TEST(KvCacheSizeTest, AWishMustHoldOneSequence) {
  KvCacheBudget budget = camel();
  budget.wanted_bytes = 128 * 6 * kMiB;
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, 128);
  budget.wanted_bytes = 128 * 6 * kMiB - 1;
  try {
    choose_kv_cache_size(budget);
    FAIL() << "a sequence of 2048 tokens fits into 127 blocks";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("holds 2032 tokens"), std::string::npos)
        << error.what();
  }
  for (const int64_t nothing : {int64_t{0}, int64_t{1}, int64_t{-5}}) {
    budget.wanted_bytes = nothing;
    EXPECT_THROW(choose_kv_cache_size(budget), Error) << nothing;
  }
}

TEST(KvCacheSizeTest, ADeviceIsFilledUpToItsShare) {
  KvCacheBudget budget = camel();
  budget.device_total_bytes = 80 * kGiB;
  budget.weight_bytes = 10 * kGiB;
  budget.workspace_bytes = 512 * kMiB;
  // 72 GiB - 10.5 GiB = 62976 MiB
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, 10496);
  budget.memory_utilization = 0.5;
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, (40 * 1024 - 10 * 1024 - 512) / 6);
  // Others have memory there.
  budget.available_bytes = 20 * kGiB;
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, (20 * 1024 - 10 * 1024 - 512) / 6);
}

TEST(KvCacheSizeTest, ADeviceThatIsTooSmallIsRefusedWithTheFigures) {
  KvCacheBudget budget = camel();
  budget.device_total_bytes = 12 * kGiB;
  budget.weight_bytes = 10 * kGiB;
  budget.workspace_bytes = 512 * kMiB;
  try {
    choose_kv_cache_size(budget);
    FAIL() << "300 MiB hold a sequence of 768 MiB";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    for (const char* figure : {"11059 MiB", "12288 MiB", "10240 MiB", "512 MiB", "768 MiB"}) {
      EXPECT_NE(std::string(error.what()).find(figure), std::string::npos)
          << figure << ": " << error.what();
    }
  }
  budget.weight_bytes = 20 * kGiB;  // nothing is left at all
  EXPECT_THROW(choose_kv_cache_size(budget), Error);
}

TEST(KvCacheSizeTest, OnTheHostItTakesWhatIsNeededWithinLimits) {
  KvCacheBudget budget = camel();
  budget.max_batch_size = 2;
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, 256);
  budget.max_batch_size = 128;
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, 4096 / 6);  // 4 GiB
  budget.available_bytes = 8 * kGiB;
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, 2048 / 6);  // a quarter
  budget.available_bytes = kGiB;
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, 128);  // one sequence
  budget.max_seq_len = 2049;                                // a block that is begun counts
  EXPECT_EQ(choose_kv_cache_size(budget).num_blocks, 129);
}

TEST(KvCacheSizeTest, RefusesAUtilizationThatIsNone) {
  for (const double utilization : {0.0, -0.5, 1.01, 0.0 / 0.0}) {
    KvCacheBudget budget = camel();
    budget.memory_utilization = utilization;
    EXPECT_THROW(choose_kv_cache_size(budget), Error) << utilization;
  }
}

}  // namespace
}  // namespace caravan
