// What the host does in a step beside the model: scheduling, the batch, collecting, telling every
// request its token. A device that answers at once stands in for the model, so the time between two
// steps is the host's.
// usage: engine_bench [--json]

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/engine_loop.h"

namespace caravan {
namespace {

using Clock = std::chrono::steady_clock;

/// Every token is 5; only the batch is looked at, as a device's own copy would.
class InstantRunner : public StepRunner {
 public:
  int max_steps_in_flight() const override { return 2; }
  bool needs_host(const SamplingParams&) const override { return false; }
  void launch(const Batch& batch, std::span<const SampleRequest> requests) override {
    sum_ += batch.num_tokens();
    StepOutput output;
    output.token.token_id = 5;
    steps_[num_launched_++ % 3].assign(requests.size(), output);
  }
  std::span<const StepOutput> collect() override { return steps_[num_collected_++ % 3]; }

 private:
  std::vector<StepOutput> steps_[3];
  int64_t sum_ = 0;
  size_t num_launched_ = 0;
  size_t num_collected_ = 0;
};

struct Row {
  int64_t num_seqs;
  int64_t num_steps;
  double median_us;
  double p95_us;
};

Row measure(int64_t num_seqs) {
  constexpr int64_t kPromptLen = 128;
  constexpr int64_t kOutputLen = 1024;
  constexpr int64_t kBlockSize = 16;
  const EngineLimits limits{
      .vocab_size = 50257,
      .max_seq_len = kPromptLen + kOutputLen,
      .scheduler = {.max_batch_size = num_seqs,
                    .max_num_batched_tokens = 8192,
                    .block_size = kBlockSize,
                    .num_blocks = num_seqs * (kPromptLen + kOutputLen) / kBlockSize}};
  std::vector<double> times_us;
  Clock::time_point last;
  EngineLoopOptions options;
  options.max_waiting = num_seqs;
  options.on_step = [&](const StepInfo& step) {
    const Clock::time_point now = Clock::now();
    if (step.num_seqs == num_seqs && step.num_tokens == num_seqs && last != Clock::time_point{}) {
      times_us.push_back(std::chrono::duration<double, std::micro>(now - last).count());
    }
    last = now;
  };
  {
    EngineLoop loop(
        std::make_unique<LlmEngine>(std::make_unique<InstantRunner>(), limits, LlmEngineOptions{}),
        options);
    int64_t num_tokens = 0;
    for (int64_t i = 0; i < num_seqs; ++i) {
      GenerationRequest request;
      for (int64_t t = 0; t < kPromptLen; ++t) {
        request.prompt_ids.push_back(static_cast<int32_t>((i * 7919 + t * 31) % 50257));
      }
      request.params.max_output_len = kOutputLen;
      loop.submit(std::move(request), [&](GenerationOutput output) {
        num_tokens += static_cast<int64_t>(output.tokens.size());
      });
    }
    loop.drain(600000);
  }
  std::sort(times_us.begin(), times_us.end());
  return {num_seqs, static_cast<int64_t>(times_us.size()), times_us[times_us.size() / 2],
          times_us[times_us.size() * 95 / 100]};
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  const bool is_json = argc > 1 && std::strcmp(argv[1], "--json") == 0;
  if (!is_json) std::printf("running  steps  host us/step: median  p95\n");
  for (const int64_t num_seqs : {1, 8, 32, 128, 512}) {
    const caravan::Row row = caravan::measure(num_seqs);
    std::printf(is_json ? "{\"running\":%lld,\"steps\":%lld,\"median_us\":%.1f,\"p95_us\":%.1f}\n"
                        : "%7lld %6lld %20.1f %4.1f\n",
                static_cast<long long>(row.num_seqs), static_cast<long long>(row.num_steps),
                row.median_us, row.p95_us);
  }
}
