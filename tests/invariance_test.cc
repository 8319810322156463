// Promise 3: a request's logits do not depend on what else is in the batch, on how its prefill is
// cut into chunks, on its place in the cache or on the number of threads. Bits are compared, not
// values.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <random>

#include "caravan/llm.h"
#include "engine/model_runner.h"
#include "format/model_dir.h"
#include "tests/test_backends.h"
#include "tests/test_scale.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

const std::string kVariants = CARAVAN_SOURCE_DIR "/tests/goldens/variants/";

constexpr int64_t kMaxLen = 33;  // positions of the smallest model here
constexpr int64_t kMaxBatch = 8;

struct Case {
  const char* model;  // odd_sizes_relu: 5 heads of 16, hidden 80, vocabulary 1001
  const char* backend;
  DType dtype;
  std::optional<DType> kv_dtype = std::nullopt;  // unset: the weights'
};

std::string case_name(const ::testing::TestParamInfo<Case>& param_info) {
  return std::string(param_info.param.model) + "_" + param_info.param.backend + "_" +
         dtype_name(param_info.param.dtype) +
         (param_info.param.kv_dtype ? std::string("_") + dtype_name(*param_info.param.kv_dtype)
                                    : "");
}

// Scales that differ from head to head; some values saturate.
KvScales varied_scales(const ModelConfig& config, DType dtype) {
  KvScales scales = random_model_kv_scales(config, dtype);
  for (size_t i = 0; i < scales.k.size(); ++i) {
    scales.k[i] *= 0.05f * static_cast<float>(i % 7 + 1);
    scales.v[i] *= 0.04f * static_cast<float>(i % 5 + 1);
  }
  return scales;
}

class InvarianceTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::vector<TestBackend> all = test_backends();
    const auto found = std::find_if(
        all.begin(), all.end(), [](const TestBackend& b) { return b.name == GetParam().backend; });
    if (found == all.end()) GTEST_SKIP() << "this machine does not have " << GetParam().backend;
    options_ = found->options;
  }
  std::unique_ptr<ModelRunner> open(int num_threads) const {
    BackendOptions options = options_;
    options.num_threads = num_threads;
    const ModelDir dir = open_model_dir(kVariants + GetParam().model);
    const DType kv_dtype = GetParam().kv_dtype.value_or(GetParam().dtype);
    return std::make_unique<ModelRunner>(
        dir, create_backend(options),
        ModelRunnerOptions{.dtype = GetParam().dtype,
                           .kv_cache_dtype = kv_dtype,
                           .kv_scales = varied_scales(dir.config, kv_dtype),
                           .max_num_batched_tokens = kMaxBatch * kMaxLen,
                           .max_num_logits = kMaxBatch,
                           .max_seq_len = kMaxLen,
                           .max_batch_size = kMaxBatch});
  }

  BackendOptions options_;
};

using Logits = std::vector<std::vector<float>>;  // of every token of a sequence

// One token at a time, alone: the plainest way to compute a sequence.
Logits alone(ModelRunner& runner, const std::vector<int32_t>& ids) {
  Logits logits;
  Batch batch(runner.cache().block_size());
  for (size_t t = 0; t < ids.size(); ++t) {
    batch.clear();
    batch.add_sequence(&ids[t], 1, static_cast<int64_t>(t), {0, 1, 2}, LogitsWanted::kLast);
    const auto row = runner.run(batch);
    logits.emplace_back(row.begin(), row.end());
  }
  return logits;
}

TEST_P(InvarianceTest, BitsAreTheSameInAThousandMixtures) {
  const std::unique_ptr<ModelRunner> one_thread = open(1);
  const std::unique_ptr<ModelRunner> three_threads = open(3);
  const int64_t vocab_size = one_thread->model().config().vocab_size;
  std::mt19937 random(17);
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  constexpr size_t kNumSequences = 24;
  std::vector<std::vector<int32_t>> ids(kNumSequences);
  std::vector<Logits> wanted;
  for (auto& sequence : ids) {
    sequence.resize(static_cast<size_t>(draw(1, kMaxLen)));
    for (int32_t& id : sequence) id = static_cast<int32_t>(draw(0, vocab_size - 1));
    wanted.push_back(alone(*one_thread, sequence));
  }
  int64_t num_compared = 0;
  for (int mixture = 0; mixture < scaled(1000); ++mixture) {
    ModelRunner& runner = mixture % 2 == 0 ? *one_thread : *three_threads;
    const int64_t blocks_each = ceil_div(kMaxLen, runner.cache().block_size());
    std::vector<int32_t> all_blocks(static_cast<size_t>(kMaxBatch * blocks_each));
    for (size_t i = 0; i < all_blocks.size(); ++i) all_blocks[i] = static_cast<int32_t>(i);
    std::shuffle(all_blocks.begin(), all_blocks.end(), random);
    struct Running {
      size_t sequence;
      int64_t done;
      std::vector<int32_t> blocks;
    };
    std::vector<Running> running;
    const int64_t batch_size = draw(1, kMaxBatch);
    for (int64_t s = 0; s < batch_size; ++s) {
      const auto first = all_blocks.begin() + s * blocks_each;
      running.push_back(
          {static_cast<size_t>(draw(0, kNumSequences - 1)), 0, {first, first + blocks_each}});
    }
    Batch batch(runner.cache().block_size());
    while (!running.empty()) {
      batch.clear();
      std::vector<size_t> in_batch;
      for (size_t r = 0; r < running.size(); ++r) {
        if (draw(0, 4) == 0 && running.size() > 1) continue;  // waits this step
        const auto& sequence = ids[running[r].sequence];
        const int64_t left = static_cast<int64_t>(sequence.size()) - running[r].done;
        const int64_t count = draw(0, 2) == 0 ? 1 : draw(1, left);
        batch.add_sequence(sequence.data() + running[r].done, count, running[r].done,
                           running[r].blocks, LogitsWanted::kLast);
        running[r].done += count;
        in_batch.push_back(r);
      }
      if (in_batch.empty()) continue;
      const auto logits = runner.run(batch);
      for (size_t i = 0; i < in_batch.size(); ++i) {
        const Running& r = running[in_batch[i]];
        const auto& row = wanted[r.sequence][static_cast<size_t>(r.done - 1)];
        ++num_compared;
        ASSERT_EQ(
            0, std::memcmp(row.data(), logits.data() + i * row.size(), row.size() * sizeof(float)))
            << "mixture " << mixture << ", sequence " << r.sequence << ", token " << r.done - 1;
      }
      std::erase_if(running, [&](const Running& r) {
        return r.done == static_cast<int64_t>(ids[r.sequence].size());
      });
    }
  }
  EXPECT_GT(num_compared, scaled(1000));
}

std::vector<Case> cases() {
  if (tests_run_on_gpu()) {
    return {{"odd_sizes_relu", "cuda", DType::kF32},
            {"odd_sizes_relu", "cuda", DType::kF16},
            {"odd_sizes_relu", "cuda", DType::kBF16},
            {"camel_form", "cuda", DType::kF16},
            {"camel_form", "cuda_generic", DType::kF16}};  // quantized caches: tests/cuda
  }
  return {{"odd_sizes_relu", "avx2", DType::kF16},
          {"odd_sizes_relu", "avx512", DType::kF32},
          {"odd_sizes_relu", "avx512", DType::kF16},
          {"odd_sizes_relu", "avx512", DType::kBF16},
          {"odd_sizes_relu", "amx", DType::kBF16},
          {"camel_form", "avx512", DType::kF16},
          {"odd_sizes_relu", "avx2", DType::kF16, DType::kI8},
          {"odd_sizes_relu", "avx512", DType::kF16, DType::kI8},
          {"odd_sizes_relu", "avx512", DType::kBF16, DType::kF8E4M3},
          {"odd_sizes_relu", "amx", DType::kBF16, DType::kI8},
          {"camel_form", "avx512", DType::kF16, DType::kI8}};
}

INSTANTIATE_TEST_SUITE_P(Kernels, InvarianceTest, ::testing::ValuesIn(cases()), case_name);

// The same through the public API: greedy and sampled completions alone and among others, with
// small and large steps.
TEST(LlmInvarianceTest, CompletionsDoNotDependOnTheBatch) {
  const std::string model = CARAVAN_SOURCE_DIR "/models/camel-nano";
  const std::vector<std::string> texts{"The caravan", "Below is an instruction",
                                       "In the year of the comet, when the river froze,", "A",
                                       "She said that"};
  SamplingParams params;
  params.max_output_len = 12;
  params.temperature = 0.8f;
  params.top_p = 0.9f;
  params.seed = 7;
  params.ignore_eos = true;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<SamplingParams> each;
  std::vector<std::vector<int32_t>> wanted;
  const std::string device = tests_run_on_gpu() ? "cuda" : "cpu";
  Llm one = Llm::open({.model = model, .device = device, .max_batch_size = 1, .max_seq_len = 64});
  for (const std::string& text : texts) {
    prompts.push_back(one.encode(text));
    each.push_back(params);
    each.back().seed += prompts.size();
    wanted.push_back(one.generate({prompts.back()}, {each.back()}).front().output_ids);
  }
  for (const int64_t step : {3, 8, 512}) {
    Llm many = Llm::open({.model = model,
                          .device = device,
                          .num_threads = 2,
                          .max_batch_size = 3,
                          .max_seq_len = 64,
                          .max_num_batched_tokens = step});
    const std::vector<Completion> got = many.generate(prompts, each);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i].output_ids, wanted[i]) << i;
  }
}

}  // namespace
}  // namespace caravan
