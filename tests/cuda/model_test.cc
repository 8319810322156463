// Whole models on the GPU: bits that do not depend on the batch where kernels change with its size,
// the same bits every time, and the pipelined step against the synchronous one.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "backend/create_backend.h"
#include "engine/llm_engine.h"
#include "engine/model_runner.h"
#include "sampling/sampler.h"

namespace caravan {
namespace {

constexpr int64_t kMaxLen = 320;
constexpr int64_t kMaxBatch = 80;

/// camel-5b's proportions at a size that runs a thousand mixtures: heads of 128, ffn 4x.
ModelDir small_camel() {
  ModelDir dir;
  dir.config.hidden_size = 512;
  dir.config.num_layers = 3;
  dir.config.num_heads = 4;
  dir.config.ffn_size = 2048;
  dir.config.vocab_size = 1258;
  dir.config.max_seq_len = kMaxLen;
  dir.config.activation = Activation::kGelu;
  return dir;
}

struct DTypes {
  DType weights;
  DType kv_cache;
};

ModelRunner open(const DTypes& dtypes, const std::string& kernels = "auto") {
  return ModelRunner::random(small_camel(),
                             create_backend({.device = "cuda", .cuda_kernels = kernels}),
                             {.dtype = dtypes.weights,
                              .kv_cache_dtype = dtypes.kv_cache,
                              .max_num_batched_tokens = 4096,
                              .max_num_logits = kMaxBatch,
                              .max_seq_len = kMaxLen,
                              .max_batch_size = kMaxBatch});
}

std::vector<int32_t> random_ids(size_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(engine() % 1258);
  return ids;
}

std::vector<int32_t> blocks_of(int64_t first, int64_t block_size) {
  std::vector<int32_t> blocks(static_cast<size_t>(ceil_div(kMaxLen, block_size)));
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] =
        static_cast<int32_t>(first * static_cast<int64_t>(blocks.size()) + static_cast<int64_t>(i));
  }
  return blocks;
}

using Rows = std::vector<std::vector<float>>;

/// Logits of every token, decoded one by one, alone.
Rows decoded_alone(ModelRunner& runner, const std::vector<int32_t>& ids) {
  Rows rows;
  Batch batch(runner.cache().block_size());
  const std::vector<int32_t> blocks = blocks_of(3, runner.cache().block_size());
  for (size_t t = 0; t < ids.size(); ++t) {
    batch.clear();
    batch.add_sequence(&ids[t], 1, static_cast<int64_t>(t), blocks, LogitsWanted::kLast);
    const auto logits = runner.run(batch);
    rows.emplace_back(logits.begin(), logits.end());
  }
  return rows;
}

class CudaModelTest : public ::testing::TestWithParam<DTypes> {};

// 1,000 mixtures of 1 to 80 sequences, decoding or prefilling in chunks: the linear layers cross
// from one kernel to the other at 64 rows, attention from decode to prefill.
TEST_P(CudaModelTest, BitsAreTheSameInAThousandMixtures) {
  ModelRunner runner = open(GetParam());
  const int64_t block_size = runner.cache().block_size();
  std::mt19937 random(5);
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  std::vector<std::vector<int32_t>> ids;
  std::vector<Rows> wanted;
  for (uint32_t s = 0; s < 10; ++s) {
    ids.push_back(random_ids(static_cast<size_t>(draw(1, kMaxLen)), s));
    wanted.push_back(decoded_alone(runner, ids.back()));
  }
  struct Running {
    size_t sequence;
    int64_t done;
    std::vector<int32_t> blocks;
  };
  int64_t num_compared = 0;
  Batch batch(block_size);
  for (int num_steps = 0; num_steps < 1000;) {
    std::vector<Running> running;
    const int64_t batch_size = draw(0, 1) == 0 ? draw(1, 8) : draw(1, kMaxBatch);
    for (int64_t s = 0; s < batch_size; ++s) {
      running.push_back({static_cast<size_t>(draw(0, 9)), 0, blocks_of(s, block_size)});
    }
    while (!running.empty() && num_steps < 1000) {
      batch.clear();
      std::vector<size_t> in_batch;
      const bool is_decode = draw(0, 1) == 0;
      int64_t budget = 4096;
      for (size_t r = 0; r < running.size(); ++r) {
        if (draw(0, 4) == 0 && running.size() > 1) continue;
        const auto& sequence = ids[running[r].sequence];
        const int64_t left = static_cast<int64_t>(sequence.size()) - running[r].done;
        const int64_t count = std::min(budget, is_decode ? 1 : draw(1, left));
        if (count == 0) continue;
        budget -= count;
        batch.add_sequence(sequence.data() + running[r].done, count, running[r].done,
                           running[r].blocks, LogitsWanted::kLast);
        running[r].done += count;
        in_batch.push_back(r);
      }
      if (in_batch.empty()) continue;
      ++num_steps;
      const auto logits = runner.run(batch);
      for (size_t i = 0; i < in_batch.size(); ++i) {
        const Running& r = running[in_batch[i]];
        const auto& row = wanted[r.sequence][static_cast<size_t>(r.done - 1)];
        ++num_compared;
        ASSERT_EQ(
            0, std::memcmp(row.data(), logits.data() + i * row.size(), row.size() * sizeof(float)))
            << "step " << num_steps << " of " << batch.num_tokens() << " tokens, "
            << batch.num_seqs() << " sequences; sequence " << r.sequence << ", token "
            << r.done - 1;
      }
      std::erase_if(running, [&](const Running& r) {
        return r.done == static_cast<int64_t>(ids[r.sequence].size());
      });
    }
  }
  EXPECT_GT(num_compared, 5000);
}

TEST_P(CudaModelTest, AHundredRunsGiveTheSameBits) {
  ModelRunner runner = open(GetParam());
  const std::vector<int32_t> ids = random_ids(300, 9);
  const std::vector<int32_t> blocks = blocks_of(0, runner.cache().block_size());
  Batch batch(runner.cache().block_size());
  std::vector<float> first;
  for (int i = 0; i < 100; ++i) {
    batch.clear();
    batch.add_sequence(ids.data(), 299, 0, blocks, LogitsWanted::kLast);
    const auto prefill = runner.run(batch);
    std::vector<float> got(prefill.begin(), prefill.end());
    batch.clear();
    batch.add_sequence(&ids[299], 1, 299, blocks, LogitsWanted::kLast);
    const auto decode = runner.run(batch);
    got.insert(got.end(), decode.begin(), decode.end());
    if (i == 0) first = got;
    ASSERT_EQ(0, std::memcmp(got.data(), first.data(), got.size() * sizeof(float))) << i;
  }
}

/// Tokens of each prompt from the engine, all at once.
std::vector<std::vector<int32_t>> generate(const std::vector<std::vector<int32_t>>& prompts,
                                           const std::vector<SamplingParams>& params,
                                           const DTypes& dtypes, int64_t max_batch_size) {
  ModelDir dir = small_camel();
  ModelRunnerOptions options{.dtype = dtypes.weights,
                             .kv_cache_dtype = dtypes.kv_cache,
                             .max_num_batched_tokens = 512,
                             .max_num_logits = max_batch_size,
                             .max_seq_len = kMaxLen,
                             .max_batch_size = max_batch_size};
  LlmEngine engine(ModelRunner::random(dir, create_backend({.device = "cuda"}), options),
                   {.runner = options, .eos_token_ids = {7}});
  std::map<int64_t, size_t> index;
  for (size_t i = 0; i < prompts.size(); ++i) {
    index[engine.add_request(prompts[i], params[i])] = i;
  }
  std::vector<std::vector<int32_t>> outputs(prompts.size());
  while (engine.has_unfinished()) {
    for (const auto& sequence : engine.step(nullptr)) {
      outputs[index.at(sequence->id)].assign(
          sequence->token_ids.begin() + sequence->num_prompt_tokens, sequence->token_ids.end());
    }
  }
  return outputs;
}

// Greedy, sampled and penalized requests, several of which end early: alone, and all at once in
// recorded steps whose tokens are fed back on the device.
TEST_P(CudaModelTest, PipelinedTokensAreThoseOfOneRequestAlone) {
  std::vector<std::vector<int32_t>> prompts;
  std::vector<SamplingParams> params;
  for (uint32_t i = 0; i < 24; ++i) {
    prompts.push_back(random_ids(1 + i * 11, 100 + i));
    SamplingParams p;
    p.max_output_len = 8 + i;
    p.ignore_eos = i % 3 == 0;
    if (i % 4 == 1) p.temperature = 0.9f;
    if (i % 8 == 5) p.top_k = 40;
    if (i % 4 == 2) p.repetition_penalty = 1.3f;
    p.seed = i;
    params.push_back(p);
  }
  const auto together = generate(prompts, params, GetParam(), 16);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto alone = generate({prompts[i]}, {params[i]}, GetParam(), 1);
    EXPECT_EQ(together[i], alone[0]) << i;
    EXPECT_LE(static_cast<int64_t>(together[i].size()), params[i].max_output_len);
    EXPECT_FALSE(together[i].empty());
  }
}

// What the device samples is what the host's sampler picks from the logits it reads back.
TEST_P(CudaModelTest, GreedyTokensAreTheHostsArgmax) {
  ModelRunner runner = open(GetParam());
  const std::vector<int32_t> prompt = random_ids(70, 3);
  SamplingParams params;
  params.max_output_len = 40;
  params.ignore_eos = true;
  const std::vector<int32_t> got = generate({prompt}, {params}, GetParam(), 1)[0];
  std::vector<int32_t> ids = prompt;
  const std::vector<int32_t> blocks = blocks_of(0, runner.cache().block_size());
  Batch batch(runner.cache().block_size());
  int64_t done = 0;
  for (int i = 0; i < 40; ++i) {
    batch.clear();
    batch.add_sequence(ids.data() + done, static_cast<int64_t>(ids.size()) - done, done, blocks,
                       LogitsWanted::kLast);
    done = static_cast<int64_t>(ids.size());
    ids.push_back(argmax(runner.run(batch)));
    ASSERT_EQ(got[static_cast<size_t>(i)], ids.back()) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    DTypes, CudaModelTest,
    ::testing::Values(DTypes{DType::kF16, DType::kF16}, DTypes{DType::kBF16, DType::kBF16},
                      DTypes{DType::kF32, DType::kF32}, DTypes{DType::kF16, DType::kI8},
                      DTypes{DType::kBF16, DType::kI8}, DTypes{DType::kF32, DType::kI8},
                      DTypes{DType::kF16, DType::kF8E4M3}, DTypes{DType::kBF16, DType::kF8E4M3}),
    [](const auto& param_info) {
      const DTypes& dtypes = param_info.param;
      std::string name = dtype_name(dtypes.weights);
      if (dtypes.kv_cache == dtypes.weights) return name;
      return name + "_" + dtype_name(dtypes.kv_cache);
    });

// The kernels for other GPUs add in the same order, so on one device they give the same bits.
TEST(CudaGenericKernels, GiveTheBitsOfHoppersOwn) {
  for (const DType kv_cache : {DType::kF16, DType::kI8, DType::kF8E4M3}) {
    ModelRunner own = open({DType::kF16, kv_cache});
    ModelRunner generic = open({DType::kF16, kv_cache}, "generic");
    const std::vector<int32_t> ids = random_ids(200, 21);
    const std::vector<int32_t> blocks = blocks_of(0, own.cache().block_size());
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 199}, {199, 1}}) {
      Batch batch(own.cache().block_size());
      batch.add_sequence(ids.data() + first, count, first, blocks, LogitsWanted::kLast);
      const auto a = own.run(batch);
      const auto b = generic.run(batch);
      EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size_bytes()))
          << dtype_name(kv_cache) << ", " << count << " tokens";
    }
  }
}

}  // namespace
}  // namespace caravan
