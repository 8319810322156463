// Promise 3 through the engine: tokens and log probabilities of a request are the same alone and
// under any load, chunking, preemption, prefix hit and cancellation of others, whatever the cache
// held before. Bits are compared. CARAVAN_TEST_MIXTURES sets the number of mixtures (10,000 is the
// whole test).

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>

#include "engine/llm_engine.h"
#include "format/model_dir.h"
#include "tests/test_backends.h"
#include "tests/test_scale.h"

namespace caravan {
namespace {

constexpr int64_t kMaxBatch = 12;
constexpr int64_t kMaxStepTokens = 256;
constexpr size_t kNumRequests = 48;

struct Case {
  const char* backend;
  DType dtype;
  DType kv_dtype;
  const char* model;  // of the goldens, or "random": random weights, more positions
};

std::string case_name(const ::testing::TestParamInfo<Case>& param_info) {
  const Case& c = param_info.param;
  return std::string(c.model) + "_" + c.backend + "_" + dtype_name(c.dtype) + "_" +
         dtype_name(c.kv_dtype);
}

/// A device that outlives the engines around it.
class SharedRunner : public StepRunner {
 public:
  explicit SharedRunner(ModelRunner& runner) : runner_(&runner) {}
  // A request that ends early leaves the step behind it in flight.
  ~SharedRunner() override {
    for (; num_in_flight_ > 0; --num_in_flight_) runner_->collect();
  }
  int max_steps_in_flight() const override { return runner_->max_steps_in_flight(); }
  bool needs_host(const SamplingParams& params) const override {
    return runner_->needs_host(params);
  }
  void launch(const Batch& batch, std::span<const SampleRequest> requests) override {
    runner_->launch(batch, requests);
    ++num_in_flight_;
  }
  std::span<const StepOutput> collect() override {
    --num_in_flight_;
    return runner_->collect();
  }

 private:
  ModelRunner* runner_;
  int num_in_flight_ = 0;
};

struct Request {
  std::vector<int32_t> prompt;
  SamplingParams params;
};

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<ScoredToken> scored;
  std::vector<ScoredToken> prompt_scored;
  FinishReason reason = FinishReason::kNone;
};

Answer answer_of(const Sequence& s) {
  return {{s.token_ids.begin() + s.num_prompt_tokens, s.token_ids.end()},
          s.scored,
          s.prompt_scored,
          s.finish_reason};
}

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(float)) == 0; }

bool same(const TokenLogprob& a, const TokenLogprob& b) {
  return a.token_id == b.token_id && same_bits(a.logprob, b.logprob) && a.rank == b.rank;
}

bool same(const std::vector<ScoredToken>& a, const std::vector<ScoredToken>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.token_id == y.token_id && x.logprob.has_value() == y.logprob.has_value() &&
           (!x.logprob || same(*x.logprob, *y.logprob)) &&
           std::equal(x.top_logprobs.begin(), x.top_logprobs.end(), y.top_logprobs.begin(),
                      y.top_logprobs.end(),
                      [](const auto& s, const auto& t) { return same(s, t); });
  });
}

/// Small on the CPU; on a GPU heads of 128, for its own kernels.
ModelDir random_model() {
  const bool is_gpu = tests_run_on_gpu();
  ModelDir dir;
  dir.config.hidden_size = is_gpu ? 512 : 48;
  dir.config.num_layers = 2;
  dir.config.num_heads = is_gpu ? 4 : 3;
  dir.config.ffn_size = is_gpu ? 2048 : 96;
  dir.config.vocab_size = is_gpu ? 1258 : 211;
  dir.config.max_seq_len = is_gpu ? 320 : 112;
  dir.config.activation = Activation::kGelu;
  return dir;
}

class EngineInvarianceTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::vector<TestBackend> all = test_backends();
    const auto found = std::find_if(
        all.begin(), all.end(), [](const TestBackend& b) { return b.name == GetParam().backend; });
    if (found == all.end()) GTEST_SKIP() << "this machine does not have " << GetParam().backend;
    const bool is_random = std::string(GetParam().model) == "random";
    const ModelDir dir =
        is_random ? random_model()
                  : open_model_dir(std::string(CARAVAN_SOURCE_DIR "/tests/goldens/variants/") +
                                   GetParam().model);
    const ModelRunnerOptions options{
        .dtype = GetParam().dtype,
        .kv_cache_dtype = GetParam().kv_dtype,
        .kv_scales = random_model_kv_scales(dir.config, GetParam().kv_dtype),
        .max_num_batched_tokens = kMaxStepTokens,
        .max_num_logits = kMaxBatch,
        .max_batch_size = kMaxBatch};
    BackendOptions backend = found->options;
    if (!tests_run_on_gpu()) backend.num_threads = 1;
    if (is_random) {
      runner_.emplace(ModelRunner::random(dir, create_backend(backend), options));
    } else {
      runner_.emplace(dir, create_backend(backend), options);
    }
    make_requests();
  }

  int64_t draw(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
  }

  void make_requests() {
    const int64_t vocab_size = runner_->model().config().vocab_size;
    const int64_t max_len = runner_->max_seq_len();
    std::vector<std::vector<int32_t>> families(3);
    for (auto& family : families) {
      family.resize(static_cast<size_t>(max_len));
      for (int32_t& id : family) id = static_cast<int32_t>(draw(0, vocab_size - 1));
    }
    for (size_t i = 0; i < kNumRequests; ++i) {
      Request r;
      r.prompt = families[i % families.size()];
      r.prompt.resize(static_cast<size_t>(draw(1, draw(0, 1) == 0 ? max_len - 4 : max_len / 4)));
      if (draw(0, 1) == 0) r.prompt.back() = static_cast<int32_t>(draw(0, vocab_size - 1));
      const int64_t room = max_len - static_cast<int64_t>(r.prompt.size());
      SamplingParams& p = r.params;
      p.max_output_len = draw(1, std::min<int64_t>(room, 60));
      p.seed = i;
      p.ignore_eos = i % 2 == 0;
      if (i % 3 != 0) p.temperature = 0.9f;
      if (i % 5 == 1) p.top_p = 0.9f;
      if (i % 7 == 1) p.top_k = 20;
      if (i % 4 == 1) p.repetition_penalty = i % 8 == 1 ? 5.0f : 1.3f;
      // Those of the second half need the host on every device.
      if (i >= kNumRequests / 2) {
        if (i % 2 == 0) p.num_logprobs = static_cast<int32_t>(i % 3);
        if (i % 3 == 0) p.num_prompt_logprobs = static_cast<int32_t>(i % 2);
        if (i % 5 == 0) p.presence_penalty = 0.5f;
        if (i % 7 == 0) p.logit_bias = {{static_cast<int32_t>(i), 3.0f}};
        if (i % 9 == 0) p.min_p = 0.05f;
        if (i % 11 == 0) p.min_output_len = p.max_output_len / 2;
      }
      requests_.push_back(std::move(r));
    }
  }

  LlmEngine engine(int64_t batch, int64_t step_tokens, int64_t num_blocks, bool has_prefix_cache) {
    const EngineLimits limits{.vocab_size = runner_->model().config().vocab_size,
                              .max_seq_len = runner_->max_seq_len(),
                              .scheduler = {.max_batch_size = batch,
                                            .max_num_batched_tokens = step_tokens,
                                            .block_size = runner_->cache().block_size(),
                                            .num_blocks = num_blocks,
                                            .enable_prefix_caching = has_prefix_cache}};
    LlmEngineOptions options;
    options.eos_token_ids = {7};
    return LlmEngine(std::make_unique<SharedRunner>(*runner_), limits, options);
  }

  /// Every element of the cache becomes a NaN (int8: -128): nothing of it may be read before it is
  /// written. A request that ended with numbers that are not finite leaves such blocks behind.
  void spoil_cache() {
    const KvCache& cache = runner_->cache();
    const std::vector<uint8_t> nan(
        static_cast<size_t>(cache.num_blocks() * KvCache::block_bytes(runner_->model().config(),
                                                                      cache.dtype(),
                                                                      cache.block_size())),
        cache.dtype() == DType::kI8 ? 0x80 : 0xff);
    runner_->backend().copy_from_host(nan.data(), cache.layer(0).k, nan.size());
  }

  Answer alone(const Request& r) {
    LlmEngine one = engine(1, kMaxStepTokens, runner_->cache().num_blocks(), false);
    one.add_request(r.prompt, r.params);
    for (;;) {
      for (const auto& sequence : one.step(nullptr)) return answer_of(*sequence);
    }
  }

  std::mt19937 random_{23};
  std::optional<ModelRunner> runner_;
  std::vector<Request> requests_;
};

int num_mixtures() {
  if (const char* text = std::getenv("CARAVAN_TEST_MIXTURES")) return std::atoi(text);
  return scaled(tests_run_on_gpu() ? 200 : 300);
}

TEST_P(EngineInvarianceTest, AnswersAreThoseAloneUnderAnyLoad) {
  std::vector<Answer> wanted;
  for (const Request& r : requests_) wanted.push_back(alone(r));
  const int64_t blocks_of_one = ceil_div(runner_->max_seq_len(), runner_->cache().block_size());
  int64_t num_whole = 0, num_cut = 0;
  EngineStats total;
  for (int mixture = 0; mixture < num_mixtures(); ++mixture) {
    const int64_t batch = draw(1, kMaxBatch);
    const int64_t step_tokens = draw(0, 2) == 0 ? kMaxStepTokens : batch + draw(0, 40);
    // Mostly too few blocks for the batch, down to those of one sequence.
    const int64_t num_blocks =
        std::min(runner_->cache().num_blocks(),
                 std::max(blocks_of_one, draw(1, 4) * batch * blocks_of_one / 8));
    if (mixture % 4 == 0) spoil_cache();
    LlmEngine many = engine(batch, step_tokens, num_blocks, draw(0, 5) != 0);
    // On a device that chooses tokens itself half of the mixtures leave that to it.
    const size_t num_kinds = mixture % 2 == 0 ? kNumRequests / 2 : kNumRequests;
    std::map<int64_t, size_t> index;
    int64_t num_left = draw(4, 20);
    while (num_left > 0 || many.has_unfinished()) {
      while (num_left > 0 && draw(0, 2) != 0) {
        const auto i = static_cast<size_t>(draw(0, static_cast<int64_t>(num_kinds) - 1));
        const auto priority = static_cast<int32_t>(draw(-1, 1));
        index[many.add_request(requests_[i].prompt, requests_[i].params, priority)] = i;
        --num_left;
      }
      if (!index.empty() && draw(0, 60) == 0) {
        auto victim = index.begin();
        std::advance(victim, draw(0, static_cast<int64_t>(index.size()) - 1));
        const auto sequence = many.cancel(victim->first);
        ASSERT_NE(sequence, nullptr);
        const Answer got = answer_of(*sequence);
        const std::vector<int32_t>& tokens = wanted[victim->second].tokens;
        ASSERT_LE(got.tokens.size(), tokens.size());
        ASSERT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), tokens.begin()));
        index.erase(victim);
        ++num_cut;
      }
      for (const auto& sequence : many.step(nullptr)) {
        const size_t i = index.at(sequence->id);
        index.erase(sequence->id);
        const Answer got = answer_of(*sequence);
        ASSERT_EQ(got.tokens, wanted[i].tokens)
            << "mixture " << mixture << ", request " << i << ", preempted "
            << sequence->num_preemptions << " times, " << sequence->num_cached_tokens << " of "
            << sequence->num_prompt_tokens << " tokens from the prefix cache";
        ASSERT_TRUE(same(got.scored, wanted[i].scored)) << "mixture " << mixture << ", " << i;
        ASSERT_TRUE(same(got.prompt_scored, wanted[i].prompt_scored))
            << "mixture " << mixture << ", request " << i;
        ASSERT_EQ(got.reason, wanted[i].reason);
        ++num_whole;
      }
    }
    const EngineStats stats = many.stats();
    ASSERT_EQ(stats.num_free_blocks, num_blocks);
    total.num_preemptions += stats.num_preemptions;
    total.prefix_hits += stats.prefix_hits;
    total.num_steps += stats.num_steps;
  }
  printf(
      "%d mixtures: %lld answers compared whole, %lld cancelled, %lld steps, %lld preemptions, "
      "%lld tokens from the prefix cache\n",
      num_mixtures(), static_cast<long long>(num_whole), static_cast<long long>(num_cut),
      static_cast<long long>(total.num_steps), static_cast<long long>(total.num_preemptions),
      static_cast<long long>(total.prefix_hits));
  EXPECT_GE(num_whole, 5 * num_mixtures());
  if (num_mixtures() < 100) return;
  EXPECT_GT(total.num_preemptions, num_mixtures() / 10);
  EXPECT_GT(total.prefix_hits, 2 * num_mixtures());
}

std::vector<Case> cases() {
  if (tests_run_on_gpu()) {
    return {{"cuda", DType::kF16, DType::kF16, "random"},
            {"cuda", DType::kBF16, DType::kI8, "random"},
            {"cuda_generic", DType::kF16, DType::kF16, "random"},
            {"cuda", DType::kF32, DType::kF32, "odd_sizes_relu"}};
  }
  return {{"avx2", DType::kF32, DType::kF32, "random"},
          {"avx512", DType::kF16, DType::kF16, "random"},
          {"avx512", DType::kF16, DType::kI8, "random"},
          {"amx", DType::kBF16, DType::kBF16, "random"},
          {"avx512", DType::kF16, DType::kF16, "odd_sizes_relu"},
          {"avx512", DType::kBF16, DType::kF8E4M3, "camel_form"}};
}

INSTANTIATE_TEST_SUITE_P(Kernels, EngineInvarianceTest, ::testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace caravan
