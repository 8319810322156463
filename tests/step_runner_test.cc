// ModelRunner as the engine sees it: the tokens and log probabilities that launch() and collect()
// give are those of the host's sampler on the logits of each sequence alone, whatever mixture of
// requests a step has, and whoever chooses. CARAVAN_TEST_DEVICE=cuda runs it on a GPU.

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>

#include "core/json.h"
#include "engine/model_runner.h"
#include "format/model_dir.h"
#include "sampling/sampler.h"
#include "tests/test_backends.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxLen = 48;
constexpr int64_t kMaxBatch = 6;

const std::string kModel = CARAVAN_SOURCE_DIR "/tests/goldens/variants/gpt2_form";

std::unique_ptr<ModelRunner> open(const BackendOptions& backend, const std::string& model) {
  return std::make_unique<ModelRunner>(
      open_model_dir(model), create_backend(backend),
      ModelRunnerOptions{.dtype = tests_run_on_gpu() ? DType::kF16 : DType::kF32,
                         .max_num_batched_tokens = 4 * kMaxLen,
                         .max_num_logits = kMaxBatch,
                         .max_seq_len = kMaxLen,
                         .max_batch_size = kMaxBatch,
                         .verify_weights = false});  // some models here are broken on purpose
}

std::vector<int32_t> random_ids(int64_t count, int64_t vocab_size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size));
  }
  return ids;
}

std::vector<int32_t> blocks_of(const ModelRunner& runner, int64_t slot) {
  const int64_t count = ceil_div(kMaxLen, runner.cache().block_size());
  std::vector<int32_t> blocks;
  for (int64_t i = 0; i < count; ++i) blocks.push_back(static_cast<int32_t>(slot * count + i));
  return blocks;
}

/// Logits of the last of `ids`, computed in one go by a runner of its own.
std::vector<float> last_logits(ModelRunner& runner, std::span<const int32_t> ids) {
  Batch batch(runner.cache().block_size());
  batch.add_sequence(ids.data(), static_cast<int64_t>(ids.size()), 0, blocks_of(runner, 0),
                     LogitsWanted::kLast);
  const std::span<const float> logits = runner.run(batch);
  return {logits.begin(), logits.end()};
}

struct Request {
  std::vector<int32_t> tokens;
  int64_t num_prompt_tokens = 0;
  int64_t first_step = 0;
  int64_t slot = 0;
  SamplingParams params;
  std::vector<int32_t> banned;
  int64_t num_computed = 0;
};

void expect_equal(const TokenLogprob& got, const TokenLogprob& wanted) {
  EXPECT_EQ(got.token_id, wanted.token_id);
  EXPECT_EQ(got.logprob, wanted.logprob);
  EXPECT_EQ(got.rank, wanted.rank);
}

void expect_equal(const ScoredToken& got, const ScoredToken& wanted) {
  EXPECT_EQ(got.token_id, wanted.token_id);
  ASSERT_EQ(got.logprob.has_value(), wanted.logprob.has_value());
  if (got.logprob) expect_equal(*got.logprob, *wanted.logprob);
  ASSERT_EQ(got.top_logprobs.size(), wanted.top_logprobs.size());
  for (size_t i = 0; i < got.top_logprobs.size(); ++i) {
    expect_equal(got.top_logprobs[i], wanted.top_logprobs[i]);
  }
}

class StepRunnerTest : public ::testing::TestWithParam<TestBackend> {};

std::vector<SamplingParams> settings() {
  std::vector<SamplingParams> all(13);  // the last: greedy and alone
  all[0].repetition_penalty = 5.0f;     // in slot 0, beside rows that only fill the batch
  all[1].repetition_penalty = 1.5f;
  all[2].temperature = 0.9f;
  all[2].top_k = 40;
  all[3].min_p = 0.2f;
  all[3].temperature = 1.3f;
  all[4].presence_penalty = 0.7f;
  all[5].frequency_penalty = 0.9f;
  all[5].repetition_penalty = 1.2f;
  all[5].temperature = 1.1f;
  all[6].logit_bias = {{3, 4.0f}, {11, -4.0f}, {20, 3.5f}};
  all[7].min_output_len = 5;
  all[8].num_logprobs = 0;
  all[9].num_logprobs = 4;
  all[9].temperature = 1.0f;
  all[9].top_p = 0.8f;
  all[10].num_logprobs = 2;
  all[10].repetition_penalty = 1.4f;
  all[11].num_logprobs = 3;
  all[11].frequency_penalty = 0.5f;
  for (size_t i = 0; i < all.size(); ++i) all[i].seed = i;
  return all;
}

TEST_P(StepRunnerTest, TokensAreThoseOfTheHostsSamplerInEveryMixture) {
  const std::unique_ptr<ModelRunner> runner = open(GetParam().options, kModel);
  const std::unique_ptr<ModelRunner> alone = open(GetParam().options, kModel);
  const int64_t vocab_size = runner->model().config().vocab_size;
  constexpr int64_t kNumOutput = 10;
  std::vector<Request> requests;
  for (const SamplingParams& params : settings()) {
    const auto index = static_cast<int64_t>(requests.size());
    Request r;
    r.num_prompt_tokens = 1 + index * 5 % 17;
    r.tokens = random_ids(r.num_prompt_tokens, vocab_size, static_cast<uint32_t>(index));
    r.params = params;
    // Six at a time, then the last; places are used again; no two begin together.
    r.slot = index % kMaxBatch;
    r.first_step = index / kMaxBatch * (kNumOutput + kMaxBatch) + index % kMaxBatch;
    requests.push_back(r);
  }
  Sampler sampler;
  Batch batch(runner->cache().block_size());
  int64_t num_tokens = 0;
  for (int64_t step = 0; step < 3 * (kNumOutput + kMaxBatch); ++step) {
    batch.clear();
    std::vector<SampleRequest> rows;
    std::vector<Request*> running;
    for (Request& r : requests) {
      const auto length = static_cast<int64_t>(r.tokens.size());
      if (step < r.first_step || length == r.num_prompt_tokens + kNumOutput) continue;
      batch.add_sequence(r.tokens.data() + r.num_computed, length - r.num_computed, r.num_computed,
                         blocks_of(*runner, r.slot), LogitsWanted::kLast);
      r.num_computed = length;
      // What would be chosen next without it.
      if (length - r.num_prompt_tokens < r.params.min_output_len) {
        r.banned = {argmax(last_logits(*alone, r.tokens))};
      } else {
        r.banned.clear();
      }
      rows.push_back({.params = &r.params,
                      .num_tokens = length,
                      .history = r.tokens,
                      .num_prompt_tokens = r.num_prompt_tokens,
                      .slot = r.slot,
                      .is_first_output = length == r.num_prompt_tokens,
                      .banned = r.banned});
      running.push_back(&r);
    }
    if (running.empty()) continue;
    runner->launch(batch, rows);
    const std::span<const StepOutput> outputs = runner->collect();
    ASSERT_EQ(outputs.size(), running.size());
    for (size_t i = 0; i < running.size(); ++i) {
      Request& r = *running[i];
      SCOPED_TRACE("settings " + std::to_string(&r - requests.data()) + ", output " +
                   std::to_string(static_cast<int64_t>(r.tokens.size()) - r.num_prompt_tokens));
      const std::vector<float> logits = last_logits(*alone, r.tokens);
      const int32_t wanted =
          sampler.sample(logits, r.params, r.tokens, r.num_prompt_tokens, r.banned);
      expect_equal(outputs[i].token, r.params.num_logprobs < 0
                                         ? ScoredToken{wanted, {}, {}}
                                         : score_token(logits, wanted, r.params.num_logprobs));
      EXPECT_TRUE(outputs[i].prompt_tokens.empty());
      r.tokens.push_back(wanted);
      ++num_tokens;
    }
  }
  EXPECT_EQ(num_tokens, static_cast<int64_t>(requests.size()) * kNumOutput);
}

TEST_P(StepRunnerTest, APromptIsScoredInAnyChunks) {
  const std::unique_ptr<ModelRunner> runner = open(GetParam().options, kModel);
  const std::unique_ptr<ModelRunner> alone = open(GetParam().options, kModel);
  const int64_t vocab_size = runner->model().config().vocab_size;
  const std::vector<int32_t> prompt = random_ids(23, vocab_size, 7);
  std::vector<int32_t> other = random_ids(4, vocab_size, 8);
  SamplingParams params;
  params.num_prompt_logprobs = 3;
  params.num_logprobs = 1;
  EXPECT_TRUE(runner->needs_host(params));
  const SamplingParams greedy;
  for (const std::vector<int64_t>& chunks :
       {std::vector<int64_t>{23}, {1, 22}, {22, 1}, {7, 1, 15}, {6, 6, 6, 5}}) {
    std::vector<ScoredToken> scored;
    int64_t done = 0;
    Batch batch(runner->cache().block_size());
    for (const int64_t chunk : chunks) {
      batch.clear();
      // Beside it a sequence that has nothing to do with it, as a prompt each time.
      batch.add_sequence(other.data(), static_cast<int64_t>(other.size()), 0, blocks_of(*runner, 1),
                         LogitsWanted::kLast);
      batch.add_sequence(prompt.data() + done, chunk, done, blocks_of(*runner, 3),
                         LogitsWanted::kAll);
      done += chunk;
      const std::vector<SampleRequest> rows{
          {.params = &greedy,
           .num_tokens = static_cast<int64_t>(other.size()),
           .history = other,
           .num_prompt_tokens = static_cast<int64_t>(other.size()),
           .slot = 1,
           .is_first_output = true},
          {.params = &params,
           .num_tokens = static_cast<int64_t>(prompt.size()),
           .history = prompt,
           .num_prompt_tokens = static_cast<int64_t>(prompt.size()),
           .slot = 3,
           .is_first_output = true,
           .banned = {},
           .wants_prompt_logprobs = true}};
      runner->launch(batch, rows);
      const std::span<const StepOutput> outputs = runner->collect();
      ASSERT_EQ(outputs.size(), 2u);
      EXPECT_EQ(outputs[0].token.token_id, argmax(last_logits(*alone, other)));
      EXPECT_TRUE(outputs[0].prompt_tokens.empty());
      scored.insert(scored.end(), outputs[1].prompt_tokens.begin(), outputs[1].prompt_tokens.end());
      if (done < static_cast<int64_t>(prompt.size())) continue;
      const std::vector<float> logits = last_logits(*alone, prompt);
      expect_equal(outputs[1].token, score_token(logits, argmax(logits), 1));
    }
    ASSERT_EQ(scored.size(), prompt.size() - 1);
    for (size_t i = 1; i < prompt.size(); ++i) {
      SCOPED_TRACE("prompt token " + std::to_string(i));
      const std::vector<float> logits = last_logits(*alone, {prompt.data(), i});
      expect_equal(scored[i - 1], score_token(logits, prompt[i], 3));
    }
  }
}

/// A copy of the model whose position `position` is NaN: every sequence that comes so far breaks.
class BrokenModel {
 public:
  explicit BrokenModel(int64_t position)
      : path_(fs::temp_directory_path() / ("caravan_broken_" + std::to_string(::getpid()))) {
    fs::remove_all(path_);
    fs::copy(kModel, path_, fs::copy_options::recursive);
    const fs::path file = path_ / "model.safetensors";
    std::ifstream in(file, std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    in.close();
    uint64_t header_size = 0;
    std::memcpy(&header_size, bytes.data(), sizeof(header_size));
    const boost::json::value header = parse_json(bytes.substr(8, header_size), "header");
    for (const auto& [name, tensor] : header.as_object()) {
      if (!name.ends_with("wpe.weight")) continue;
      EXPECT_EQ(tensor.at("dtype").as_string(), "F32");
      const int64_t hidden = tensor.at("shape").at(1).as_int64();
      const int64_t begin = tensor.at("data_offsets").at(0).as_int64();
      const float nan = std::numeric_limits<float>::quiet_NaN();
      const size_t at = 8 + header_size + static_cast<size_t>(begin + position * hidden * 4);
      std::memcpy(bytes.data() + at, &nan, sizeof(nan));
      is_broken_ = true;
    }
    std::ofstream(file, std::ios::binary) << bytes;
  }
  ~BrokenModel() { fs::remove_all(path_); }
  std::string path() const { return path_.string(); }
  bool is_broken() const { return is_broken_; }

 private:
  fs::path path_;
  bool is_broken_ = false;
};

TEST_P(StepRunnerTest, APromptThatIsNotFiniteTakesNoScoresFromOthers) {
  const BrokenModel broken(9);
  const std::unique_ptr<ModelRunner> runner = open(GetParam().options, broken.path());
  const std::unique_ptr<ModelRunner> whole = open(GetParam().options, kModel);
  const int64_t vocab_size = runner->model().config().vocab_size;
  SamplingParams params;
  params.num_prompt_logprobs = 2;
  const std::vector<std::vector<int32_t>> prompts{
      random_ids(6, vocab_size, 1), random_ids(20, vocab_size, 2), random_ids(8, vocab_size, 3)};
  Batch batch(runner->cache().block_size());
  std::vector<SampleRequest> rows;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto slot = static_cast<int64_t>(i);
    const auto length = static_cast<int64_t>(prompts[i].size());
    batch.add_sequence(prompts[i].data(), length, 0, blocks_of(*runner, slot), LogitsWanted::kAll);
    rows.push_back({.params = &params,
                    .num_tokens = length,
                    .history = prompts[i],
                    .num_prompt_tokens = length,
                    .slot = slot,
                    .is_first_output = true,
                    .banned = {},
                    .wants_prompt_logprobs = true});
  }
  runner->launch(batch, rows);
  const std::span<const StepOutput> outputs = runner->collect();
  EXPECT_EQ(outputs[1].token.token_id, StepOutput::kNotFinite);
  EXPECT_TRUE(outputs[1].prompt_tokens.empty());
  for (const size_t i : {size_t{0}, size_t{2}}) {
    ASSERT_EQ(outputs[i].prompt_tokens.size(), prompts[i].size() - 1);
    for (size_t k = 1; k < prompts[i].size(); ++k) {
      const std::vector<float> logits = last_logits(*whole, {prompts[i].data(), k});
      expect_equal(outputs[i].prompt_tokens[k - 1], score_token(logits, prompts[i][k], 2));
    }
  }
}

TEST_P(StepRunnerTest, ASequenceThatIsNotFiniteIsToldAndTheOthersGoOn) {
  constexpr int64_t kPosition = 9;
  const BrokenModel broken(kPosition);
  ASSERT_TRUE(broken.is_broken());
  const std::unique_ptr<ModelRunner> runner = open(GetParam().options, broken.path());
  const std::unique_ptr<ModelRunner> whole = open(GetParam().options, kModel);
  const int64_t vocab_size = runner->model().config().vocab_size;
  std::vector<SamplingParams> params(6);
  params[1].temperature = 1.0f;
  params[2].repetition_penalty = 1.3f;
  params[3].min_p = 0.1f;
  params[3].temperature = 1.0f;
  params[4].num_logprobs = 2;
  params[5].num_prompt_logprobs = 1;
  for (size_t bad = 0; bad < params.size(); ++bad) {
    // Sequence `bad` is long enough to reach the position, the others are not.
    Batch batch(runner->cache().block_size());
    std::vector<std::vector<int32_t>> ids;
    std::vector<SampleRequest> rows;
    for (size_t i = 0; i < params.size(); ++i) {
      const int64_t length = i == bad ? kPosition + 3 : kPosition - static_cast<int64_t>(i);
      ids.push_back(random_ids(length, vocab_size, static_cast<uint32_t>(i + 20)));
    }
    for (size_t i = 0; i < params.size(); ++i) {
      const auto length = static_cast<int64_t>(ids[i].size());
      const bool scores_prompt = params[i].num_prompt_logprobs >= 0;
      batch.add_sequence(ids[i].data(), length, 0, blocks_of(*runner, static_cast<int64_t>(i)),
                         scores_prompt ? LogitsWanted::kAll : LogitsWanted::kLast);
      rows.push_back({.params = &params[i],
                      .num_tokens = length,
                      .history = ids[i],
                      .num_prompt_tokens = length,
                      .slot = static_cast<int64_t>(i),
                      .is_first_output = true,
                      .banned = {},
                      .wants_prompt_logprobs = scores_prompt});
    }
    runner->launch(batch, rows);
    const std::span<const StepOutput> outputs = runner->collect();
    Sampler sampler;
    for (size_t i = 0; i < params.size(); ++i) {
      SCOPED_TRACE("broken " + std::to_string(bad) + ", row " + std::to_string(i));
      if (i == bad) {
        EXPECT_EQ(outputs[i].token.token_id, StepOutput::kNotFinite);
        EXPECT_FALSE(outputs[i].token.logprob.has_value());
        EXPECT_TRUE(outputs[i].prompt_tokens.empty());
        continue;
      }
      const std::vector<float> logits = last_logits(*whole, ids[i]);
      EXPECT_EQ(outputs[i].token.token_id, sampler.sample(logits, params[i], ids[i]));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, StepRunnerTest, ::testing::ValuesIn(test_backends()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace caravan
