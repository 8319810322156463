#include <algorithm>
#include <memory>
#include <numeric>

#include "apps/bench_flags.h"
#include "core/error.h"

namespace caravan {

namespace {

struct LatencyFlags {
  BenchFlags bench;
  std::vector<int64_t> prompt_lens{512};
  std::vector<int64_t> prefill_batch_sizes{1};
  std::vector<int64_t> contexts{512};
  std::vector<int64_t> batch_sizes{1};
  int64_t num_steps = 0;
  int64_t num_repeats = 3;
  int64_t max_num_batched_tokens = 0;
};

// Enough steps that starting and ending the queue of a device weighs little; the CPU's are slow.
constexpr int64_t kDeviceSteps = 64;
constexpr int64_t kHostSteps = 16;
// A step of so many tokens reaches the speed of any larger one, on a GPU; half a thousand on a CPU.
constexpr int64_t kDeviceStepTokens = 16384;
constexpr int64_t kHostStepTokens = 512;
constexpr int64_t kMaxBatch = 4096;

/// Sequences driven by hand, so that one measurement is exactly one row of the table.
class LatencyBench {
 public:
  LatencyBench(ModelRunner& runner, int64_t batch_size, int64_t max_len)
      : runner_(runner),
        batch_(runner.cache().block_size()),
        ids_(random_token_ids(max_len, runner.model().config().vocab_size)) {
    const int64_t blocks = ceil_div(max_len, runner.cache().block_size());
    for (int64_t s = 0; s < batch_size; ++s) {
      std::vector<int32_t> table(static_cast<size_t>(blocks));
      std::iota(table.begin(), table.end(), static_cast<int32_t>(s * blocks));
      tables_.push_back(std::move(table));
      requests_.push_back({.params = &params_, .num_tokens = 0, .history = {}, .slot = s});
    }
    tokens_.resize(tables_.size());
  }

  /// Seconds to fill the positions below `length` of all sequences, logits of each last token
  /// included.
  double prefill(int64_t length) {
    const int64_t budget = runner_.model().limits().max_num_tokens;
    const auto start = BenchClock::now();
    int64_t begin = 0;
    for (size_t s = 0; s < tables_.size();) {
      batch_.clear();
      for (int64_t left = budget; left > 0 && s < tables_.size();) {
        const int64_t count = std::min(left, length - begin);
        batch_.add_sequence(ids_.data() + begin, count, begin, tables_[s],
                            begin + count == length ? LogitsWanted::kLast : LogitsWanted::kNone);
        left -= count;
        begin += count;
        if (begin < length) continue;
        begin = 0;
        ++s;
      }
      runner_.run(batch_);
    }
    return seconds_since(start);
  }

  /// Seconds of each step of every sequence, one at each of `contexts` (its own token included):
  /// from when the tokens of the step before were there to when its own are. A device is kept one
  /// step ahead, as by the engine.
  std::vector<double> decode(const std::vector<int64_t>& contexts) {
    std::vector<double> seconds;
    int in_flight = 0;
    auto last = BenchClock::now();
    const auto collect = [&] {
      const std::span<const StepOutput> outputs = runner_.collect();
      for (size_t s = 0; s < tokens_.size(); ++s) tokens_[s] = outputs[s].token.token_id;
      --in_flight;
      const auto now = BenchClock::now();
      seconds.push_back(std::chrono::duration<double>(now - last).count());
      last = now;
    };
    for (size_t i = 0; i < contexts.size(); ++i) {
      if (in_flight == runner_.max_steps_in_flight()) collect();
      const int64_t context = contexts[i];
      batch_.clear();
      for (size_t s = 0; s < tables_.size(); ++s) {
        int32_t id = ids_[static_cast<size_t>(context) - 1];
        if (i > 0) id = in_flight > 0 ? -1 - static_cast<int32_t>(s) : tokens_[s];
        batch_.add_sequence(&id, 1, context - 1, tables_[s], LogitsWanted::kLast);
        requests_[s].num_tokens = context;
        requests_[s].history = {ids_.data(), static_cast<size_t>(context)};
      }
      runner_.launch(batch_, requests_);
      ++in_flight;
    }
    while (in_flight > 0) collect();
    return seconds;
  }

 private:
  ModelRunner& runner_;
  Batch batch_;
  std::vector<int32_t> ids_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<int32_t> tokens_;
  SamplingParams params_;
  std::vector<SampleRequest> requests_;
};

/// Rows of one run.
class Latency {
 public:
  Latency(ModelRunner& runner, BenchReport& report, const LatencyFlags& flags)
      : runner_(runner),
        report_(report),
        flags_(flags),
        weight_bytes_(static_cast<double>(runner.model().bytes_per_decode_step())),
        kv_bytes_(static_cast<double>(
            KvCache::block_bytes(runner.model().config(), runner.cache().dtype(), 1))) {}

  void prefill(int64_t batch_size, int64_t length) {
    LatencyBench bench(runner_, batch_size, length);
    // Loads kernels, touches weights and workspace; the CPU is spared a whole prompt.
    bench.prefill(runner_.backend().reads_host_memory() ? std::min<int64_t>(length, 32) : length);
    BenchRow row{.test = "prefill",
                 .label = batch_size == 1 ? fmt::format("pp{}", length)
                                          : fmt::format("{} x pp{}", batch_size, length),
                 .fields = {{"batch_size", batch_size}, {"tokens", length}},
                 .seconds = {},
                 .num_tokens = static_cast<double>(batch_size * length),
                 .work = {},
                 .bound = Bound::kMatmul,
                 .floor_seconds = std::nullopt};
    for (int64_t i = 0; i < flags_.num_repeats; ++i) row.seconds.push_back(bench.prefill(length));
    const int64_t num_steps =
        ceil_div(batch_size * length, runner_.model().limits().max_num_tokens);
    row.fields["num_steps"] = num_steps;
    row.work = prefill_work(runner_.model().config(), batch_size, length, num_steps, weight_bytes_,
                            kv_bytes_);
    report_.add(row);
  }

  void decode(int64_t batch_size, int64_t context, int64_t num_steps) {
    LatencyBench bench(runner_, batch_size, context + num_steps - 1);
    std::vector<int64_t> contexts(static_cast<size_t>(num_steps));
    std::iota(contexts.begin(), contexts.end(), context);
    bench.decode(warm_up(contexts));
    BenchRow row{.test = "decode",
                 .label = fmt::format("tg{} @ d{}", num_steps, context),
                 .fields = {{"batch_size", batch_size}, {"tokens", context}},
                 .seconds = {},
                 .num_tokens = static_cast<double>(batch_size),
                 .work = {},
                 .bound = Bound::kRead,
                 .floor_seconds = std::nullopt};
    if (batch_size > 1) row.label = fmt::format("{} x {}", batch_size, row.label);
    row.fields["num_steps"] = num_steps;
    if (is_pipelined()) {
      // The tokens of two steps can become visible at once: only their sum is a measurement.
      for (int64_t i = 0; i < flags_.num_repeats; ++i) {
        const std::vector<double> steps = bench.decode(contexts);
        row.seconds.push_back(std::accumulate(steps.begin(), steps.end(), 0.0) /
                              static_cast<double>(num_steps));
      }
    } else {
      row.seconds = bench.decode(contexts);
    }
    const double mean_context =
        static_cast<double>(context) + static_cast<double>(num_steps - 1) / 2;
    row.work =
        decode_work(runner_.model().config(), batch_size, mean_context, weight_bytes_, kv_bytes_);
    report_.add(row);
  }

 private:
  bool is_pipelined() const { return runner_.max_steps_in_flight() > 1; }

  // A device records a step at its second run, one recording for each range of contexts and each
  // step in flight. No range ends twice within 64 tokens.
  std::vector<int64_t> warm_up(const std::vector<int64_t>& contexts) const {
    if (!is_pipelined()) return {contexts.front()};
    std::vector<int64_t> warm;
    const auto add = [&](int64_t context) {
      warm.insert(warm.end(), 2 * static_cast<size_t>(runner_.max_steps_in_flight()), context);
    };
    for (size_t i = 0; i < contexts.size(); i += 64) add(contexts[i]);
    add(contexts.back());
    return warm;
  }

  ModelRunner& runner_;
  BenchReport& report_;
  const LatencyFlags& flags_;
  double weight_bytes_;
  double kv_bytes_;
};

void run_latency(const LatencyFlags& flags) {
  const ModelDir dir = flags.bench.open();
  std::unique_ptr<Backend> backend = create_backend(flags.bench.model.backend());
  const bool is_device = backend->samples_on_device();
  const int64_t num_steps =
      flags.num_steps > 0 ? flags.num_steps : (is_device ? kDeviceSteps : kHostSteps);
  CARAVAN_CHECK(flags.num_steps >= 0 && flags.num_repeats >= 1 && flags.max_num_batched_tokens >= 0,
                "--steps {}, --repeats {}, --max-num-batched-tokens {}: expected at least 0, 1, 0",
                flags.num_steps, flags.num_repeats, flags.max_num_batched_tokens);
  const int64_t limit = ModelRunner::sequence_limit(dir, 0);
  const int64_t max_prompt = check_sizes("--prompt-lens", flags.prompt_lens, limit);
  CARAVAN_CHECK(num_steps <= limit, "--steps {}: at most {} tokens fit", num_steps, limit);
  const int64_t max_context =
      check_sizes("--contexts", flags.contexts, limit - num_steps + 1) + num_steps - 1;
  const int64_t prefill_batch =
      check_sizes("--prefill-batch-sizes", flags.prefill_batch_sizes, kMaxBatch);
  const int64_t decode_batch = check_sizes("--batch-sizes", flags.batch_sizes, kMaxBatch);

  ModelRunnerOptions options = flags.bench.runner_options();
  options.max_batch_size = std::max(prefill_batch, decode_batch);
  options.max_num_logits = options.max_batch_size;
  options.max_seq_len = std::max(max_prompt, max_context);
  options.max_num_batched_tokens =
      flags.max_num_batched_tokens > 0
          ? flags.max_num_batched_tokens
          : std::min(max_prompt * prefill_batch, is_device ? kDeviceStepTokens : kHostStepTokens);
  options.max_num_batched_tokens = std::max(options.max_num_batched_tokens, options.max_batch_size);
  check_memory(dir, flags.bench.model, options);
  const Ceilings ceilings = backend->measure_ceilings(flags.bench.weight_dtype(dir));
  ModelRunner runner = flags.bench.make_runner(dir, std::move(backend), options);
  fill_cache_randomly(runner);

  BenchReport report(flags.bench.subject(runner, ceilings), flags.bench.is_json);
  Latency latency(runner, report, flags);
  for (const int64_t batch_size : flags.prefill_batch_sizes) {
    for (const int64_t length : flags.prompt_lens) latency.prefill(batch_size, length);
  }
  for (const int64_t batch_size : flags.batch_sizes) {
    for (const int64_t context : flags.contexts) latency.decode(batch_size, context, num_steps);
  }
}

}  // namespace

void add_bench_latency_command(CLI::App& bench) {
  auto flags = std::make_shared<LatencyFlags>();
  CLI::App* latency = bench.add_subcommand(
      "latency",
      "Prefill (ppLENGTH) and decode (tgSTEPS @ dCONTEXT) times, choice of the tokens included: "
      "medians, with the share of the matmul ceiling and of the read ceiling of the same run");
  flags->bench.add_to(*latency);
  add_sizes(*latency, "--prompt-lens", flags->prompt_lens, "Prompt lengths to prefill");
  add_sizes(*latency, "--prefill-batch-sizes", flags->prefill_batch_sizes,
            "Prompts that are prefilled together");
  add_sizes(*latency, "--contexts", flags->contexts, "Context lengths to decode at");
  add_sizes(*latency, "--batch-sizes", flags->batch_sizes, "Sequences that decode at once");
  latency
      ->add_option("--steps", flags->num_steps,
                   "Decode steps of a row; 0: 64 on a device that chooses tokens itself, else 16")
      ->capture_default_str();
  latency
      ->add_option("--repeats", flags->num_repeats,
                   "Prefills, and on a device runs of decode steps, to take the median of")
      ->capture_default_str();
  latency
      ->add_option("--max-num-batched-tokens", flags->max_num_batched_tokens,
                   "Tokens of one step, more go in several; 0: 512 on the CPU, 16384 elsewhere")
      ->capture_default_str();
  latency->callback([flags] { run_latency(*flags); });
}

}  // namespace caravan
