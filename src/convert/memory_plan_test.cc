#include "convert/memory_plan.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "convert/byte_size.h"
#include "convert/synth.h"
#include "core/error.h"

namespace caravan {
namespace {

BuildConfig limits(int64_t batch, int64_t input, int64_t output, DType dtype = DType::kF16) {
  BuildConfig build;
  build.dtype = dtype;
  build.kv_cache_dtype = dtype;
  build.max_batch_size = batch;
  build.max_input_len = input;
  build.max_output_len = output;
  return build;
}

int64_t weight_bytes(const MemoryPlan& plan, const std::string& name) {
  for (const MemoryPlan::Item& item : plan.weights) {
    if (item.name == name) return item.num_bytes;
  }
  return -1;
}

// Known answers, from the shapes of Writer/camel-5b-hf: 201,379,840 parameters a layer, 50258 x
// 4096 in wte; panels of 32 columns pad 50258 to 50272.
TEST(MemoryPlan, Camel5b) {
  const MemoryPlan plan =
      make_memory_plan(*synth_shape("camel-5b"), false, limits(32, 512, 200), PlanInputs{});
  EXPECT_EQ(plan.num_parameters, 5'047'369'728);
  EXPECT_EQ(plan.kv_bytes_per_token, 393'216);
  EXPECT_EQ(plan.kv_num_blocks, 32 * 45);  // 712 tokens are 44.5 blocks of 16
  EXPECT_EQ(plan.kv_bytes, 32 * 45 * 16 * int64_t{393'216});
  const MemoryPlan given = make_memory_plan(*synth_shape("camel-5b"), false, limits(32, 512, 200),
                                            {.workspace_bytes = nullptr, .kv_num_blocks = 77});
  EXPECT_EQ(given.kv_num_blocks, 77);
  EXPECT_EQ(given.kv_bytes, 77 * 16 * int64_t{393'216});
  EXPECT_EQ(given.weights_bytes, plan.weights_bytes);
  EXPECT_EQ(weight_bytes(plan, "wte"), int64_t{50'272} * 4096 * 2);
  EXPECT_EQ(weight_bytes(plan, "wpe"), int64_t{2048} * 4096 * 2);
  // 12 h^2 elements of matrices in float16 and 13 h of vectors in float32 a layer.
  const int64_t h = 4096;
  EXPECT_EQ(weight_bytes(plan, "layers"), 24 * (12 * h * h * 2 + 13 * h * 4));
  EXPECT_EQ(weight_bytes(plan, "ln_f"), 2 * h * 4);
  EXPECT_EQ(plan.padding_bytes, int64_t{50'272 - 50'258} * 4096 * 2);
  EXPECT_EQ(plan.weights_bytes,
            int64_t{5'047'369'728} * 2 + plan.padding_bytes + (24 * 13 * h + 2 * h) * 2);
  EXPECT_EQ(plan.total_bytes(), plan.weights_bytes + plan.kv_bytes);
}

// One byte an element instead of two, and two floats for each of 24 x 32 heads.
TEST(MemoryPlan, QuantizedKvCacheTakesHalfTheBytes) {
  const ModelConfig config = *synth_shape("camel-5b");
  BuildConfig build = limits(32, 512, 200);
  const MemoryPlan wide = make_memory_plan(config, false, build, PlanInputs{});
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    build.kv_cache_dtype = dtype;
    const MemoryPlan plan = make_memory_plan(config, false, build, PlanInputs{});
    EXPECT_EQ(plan.kv_bytes_per_token, 196'608);
    EXPECT_EQ(plan.kv_scale_bytes, 2 * 24 * 32 * 4);
    EXPECT_EQ(plan.kv_bytes, wide.kv_bytes / 2 + plan.kv_scale_bytes);
    EXPECT_EQ(plan.weights_bytes, wide.weights_bytes);
    EXPECT_NE(plan_text(plan).find("6,144 B scales"), std::string::npos) << plan_text(plan);
    // The largest batch is the edge here too, scales counted.
    const int64_t available = plan.total_bytes() + 10 * 45 * 16 * int64_t{196'608};
    EXPECT_EQ(largest_limits(config, false, build, PlanInputs{}, available).max_batch_size, 42);
    EXPECT_EQ(largest_limits(config, false, build, PlanInputs{}, available - 1).max_batch_size, 41);
  }
}

TEST(MemoryPlan, Gpt2Small) {
  const ModelConfig config = *synth_shape("gpt2");
  const MemoryPlan plan = make_memory_plan(config, false, limits(1, 1000, 24), PlanInputs{});
  EXPECT_EQ(plan.num_parameters, 124'439'808);
  EXPECT_EQ(plan.kv_bytes_per_token, 2 * 12 * 768 * 2);
  EXPECT_EQ(plan.kv_num_blocks, 64);
  const MemoryPlan wide =
      make_memory_plan(config, false, limits(1, 1000, 24, DType::kF32), PlanInputs{});
  EXPECT_EQ(wide.kv_bytes_per_token, 2 * 12 * 768 * 4);
  EXPECT_EQ(wide.weights_bytes, 124'439'808 * 4 + wide.padding_bytes);
}

TEST(MemoryPlan, AnOwnHeadCountsTwice) {
  const ModelConfig config = *synth_shape("gpt2");
  const MemoryPlan tied = make_memory_plan(config, false, limits(1, 16, 16), PlanInputs{});
  const MemoryPlan own = make_memory_plan(config, true, limits(1, 16, 16), PlanInputs{});
  EXPECT_EQ(own.weights_bytes - tied.weights_bytes, int64_t{50'272} * 768 * 2);
  EXPECT_EQ(weight_bytes(tied, "lm_head"), -1);
}

// bfloat16 pairs are padded to 32 input features and 32 columns.
TEST(MemoryPlan, OddSizesArePaddedToTheLayout) {
  WeightSpec spec;
  spec.role = WeightRole::kLinear;
  spec.shape = Shape{33, 65};
  spec.in_features = 33;
  spec.out_features = 65;
  EXPECT_EQ(engine_weight(spec, limits(1, 1, 1, DType::kF16)).num_bytes(), 96 * 33 * 2);
  EXPECT_EQ(engine_weight(spec, limits(1, 1, 1, DType::kBF16)).num_bytes(), 96 * 64 * 2);
  EXPECT_EQ(engine_weight(spec, limits(1, 1, 1, DType::kF32)).num_bytes(), 96 * 33 * 4);
}

TEST(MemoryPlan, LimitsBeyondTheModelAreRefused) {
  const ModelConfig config = *synth_shape("gpt2");
  const auto plan = [&](int64_t batch, int64_t input, int64_t output) {
    return make_memory_plan(config, false, limits(batch, input, output), PlanInputs{});
  };
  EXPECT_NO_THROW(plan(1, 1023, 1));
  EXPECT_THROW(plan(1, 1023, 2), Error);
  EXPECT_THROW(plan(0, 1, 1), Error);
  EXPECT_THROW(plan(-1, 1, 1), Error);
  EXPECT_THROW(plan(65'537, 1, 1), Error);
  EXPECT_THROW(plan(1, 0, 1), Error);
  EXPECT_THROW(plan(1, 1, std::numeric_limits<int64_t>::max()), Error);
}

TEST(MemoryPlan, OtherTargetsAreNamed) {
  BuildConfig build = limits(1, 1, 1);
  build.target = "sm_70";
  try {
    engine_weight({}, build);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(e.what()).find("sm_70"), std::string::npos);
  }
}

TEST(MemoryPlan, CheckFitsIsExactToTheByteAndNamesTheFlags) {
  PlanInputs inputs;
  inputs.workspace_bytes = [](const BuildConfig&) { return 1000; };
  const MemoryPlan plan =
      make_memory_plan(*synth_shape("gpt2"), false, limits(8, 512, 200), inputs);
  EXPECT_NO_THROW(check_fits(plan, plan.total_bytes()));
  try {
    check_fits(plan, plan.total_bytes() - 1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kOutOfMemory);
    const std::string message = e.what();
    EXPECT_NE(message.find(group_digits(plan.total_bytes())), std::string::npos) << message;
    EXPECT_NE(message.find("--max-batch-size (8)"), std::string::npos) << message;
  }
}

TEST(MemoryPlan, TheAdviceNamesWhatHelps) {
  const ModelConfig config = *synth_shape("gpt2");
  PlanInputs inputs;  // a workspace larger than the machine still shrinks with the batch
  inputs.workspace_bytes = [](const BuildConfig& b) { return b.max_batch_size << 20; };
  const auto advice = [&](const BuildConfig& build, int64_t available) {
    try {
      check_fits(make_memory_plan(config, false, build, inputs), available);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("fits");
  };
  EXPECT_NE(advice(limits(4096, 512, 200), int64_t{1} << 30).find("--max-batch-size (4096)"),
            std::string::npos);
  EXPECT_NE(advice(limits(1, 16, 16, DType::kF32), 300 << 20).find("--dtype float16"),
            std::string::npos);
  EXPECT_NE(advice(limits(1, 16, 16), 100 << 20).find("more memory"), std::string::npos);
}

TEST(MemoryPlan, LargestLimitsAreTheEdge) {
  const ModelConfig config = *synth_shape("gpt2");
  PlanInputs inputs;
  inputs.workspace_bytes = [](const BuildConfig& b) { return b.max_batch_size * 1'000'003; };
  const BuildConfig build = limits(4, 512, 200);
  const int64_t available = 2'000'000'000;
  const PlanLimits largest = largest_limits(config, false, build, inputs, available);
  const auto total = [&](int64_t batch, int64_t input, int64_t output) {
    return make_memory_plan(config, false, limits(batch, input, output), inputs).total_bytes();
  };
  ASSERT_GT(largest.max_batch_size, 1);
  EXPECT_LE(total(largest.max_batch_size, 512, 200), available);
  EXPECT_GT(total(largest.max_batch_size + 1, 512, 200), available);
  EXPECT_EQ(largest.max_seq_len, 1024);  // the model's positions come first

  const int64_t tight = total(4, 300, 200) + 1;
  const int64_t longest = largest_limits(config, false, build, inputs, tight).max_seq_len;
  EXPECT_EQ(longest, 512);  // 500 tokens fill 32 blocks: 512 cost the same
  EXPECT_EQ(largest_limits(config, false, build, inputs, 1000).max_batch_size, 0);
}

TEST(MemoryPlan, AvailableMemoryIsPlausible) {
  const auto bytes = available_memory_bytes();
  ASSERT_TRUE(bytes.has_value());
  EXPECT_GT(*bytes, 1 << 20);
}

TEST(ByteSize, UnitsAndErrors) {
  EXPECT_EQ(parse_byte_size("10GB", "--x"), 10'000'000'000);
  EXPECT_EQ(parse_byte_size("24GiB", "--x"), int64_t{24} << 30);
  EXPECT_EQ(parse_byte_size("512 mib", "--x"), 512 << 20);
  EXPECT_EQ(parse_byte_size("4096", "--x"), 4096);
  EXPECT_EQ(parse_byte_size("1.5e9", "--x"), 1'500'000'000);
  for (const char* bad :
       {"", "GB", "10 GBs", "-1GB", "0", "nan", "inf", "1e300", "10GB\n", "1 2"}) {
    EXPECT_THROW(parse_byte_size(bad, "--x"), Error) << bad;
  }
  EXPECT_EQ(group_digits(5'047'369'728), "5,047,369,728");
  EXPECT_EQ(group_digits(-1'000), "-1,000");
  EXPECT_EQ(group_digits(999), "999");
}

}  // namespace
}  // namespace caravan
