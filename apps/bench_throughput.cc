#include <algorithm>
#include <memory>

#include "apps/bench_flags.h"
#include "core/error.h"
#include "engine/llm_engine.h"

namespace caravan {

namespace {

struct ThroughputFlags {
  BenchFlags bench;
  int64_t num_seqs = 32;
  int64_t prompt_len = 128;
  int64_t output_len = 128;
  std::vector<int64_t> batch_sizes{8};
  int64_t num_repeats = 1;
  int64_t max_num_batched_tokens = 0;
  float temperature = 0.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
};

constexpr int64_t kMaxBatch = 4096;
// Steps that mix prompts with decoding: large enough for full speed, small enough that those who
// decode do not wait long.
constexpr int64_t kDeviceStepTokens = 4096;
constexpr int64_t kHostStepTokens = 512;

/// Completes all prompts at once; returns the number of steps.
int64_t complete_all(LlmEngine& engine, const ThroughputFlags& flags) {
  const std::vector<int32_t> ids = random_token_ids(flags.num_seqs + flags.prompt_len,
                                                    engine.runner().model().config().vocab_size);
  SamplingParams params;
  params.max_output_len = flags.output_len;
  params.temperature = flags.temperature;
  params.top_k = flags.top_k;
  params.top_p = flags.top_p;
  params.ignore_eos = true;
  for (int64_t s = 0; s < flags.num_seqs; ++s) {
    params.seed = static_cast<uint64_t>(s);
    engine.add_request({ids.data() + s, static_cast<size_t>(flags.prompt_len)}, params);
  }
  int64_t num_steps = 0;
  for (; engine.has_unfinished(); ++num_steps) engine.step(nullptr);
  return num_steps;
}

/// Prefill of all prompts, and every output token but the first of each at its mean context with
/// `batch_size` sequences a step.
BenchRow make_row(const ThroughputFlags& flags, int64_t batch_size, const ModelRunner& runner,
                  const Ceilings& ceilings) {
  const ModelConfig& config = runner.model().config();
  const auto weight_bytes = static_cast<double>(runner.model().bytes_per_decode_step());
  const auto kv_bytes =
      static_cast<double>(KvCache::block_bytes(config, runner.cache().dtype(), 1));
  const auto decoded = static_cast<double>(flags.num_seqs * (flags.output_len - 1));
  const int64_t rows = std::min(batch_size, flags.num_seqs);
  const double num_steps = decoded / static_cast<double>(rows);
  const double mean_context =
      static_cast<double>(flags.prompt_len) + static_cast<double>(flags.output_len) / 2;
  const Work prefill = prefill_work(
      config, flags.num_seqs, flags.prompt_len,
      ceil_div(flags.num_seqs * flags.prompt_len, runner.model().limits().max_num_tokens),
      weight_bytes, kv_bytes);
  Work decode = decode_work(config, rows, mean_context, weight_bytes, kv_bytes);
  decode.flops *= num_steps;
  decode.bytes *= num_steps;
  BenchRow row{.test = "throughput",
               .label = fmt::format("{} x (pp{} + tg{}), batch {}", flags.num_seqs,
                                    flags.prompt_len, flags.output_len, batch_size),
               .fields = {{"num_seqs", flags.num_seqs},
                          {"prompt_len", flags.prompt_len},
                          {"output_len", flags.output_len},
                          {"batch_size", batch_size}},
               .seconds = {},
               .num_tokens = static_cast<double>(flags.num_seqs * flags.output_len),
               .work = prefill,
               .bound = Bound::kRoofline,
               .floor_seconds = std::nullopt};
  const auto prefill_floor = floor_seconds(prefill, Bound::kRoofline, ceilings);
  const auto decode_floor = floor_seconds(decode, Bound::kRoofline, ceilings);
  if (prefill_floor && decode_floor) row.floor_seconds = *prefill_floor + *decode_floor;
  row.work += decode;
  return row;
}

void run_throughput(const ThroughputFlags& flags) {
  const ModelDir dir = flags.bench.open();
  std::unique_ptr<Backend> backend = create_backend(flags.bench.model.backend());
  const bool is_device = backend->samples_on_device();
  const int64_t limit = ModelRunner::sequence_limit(dir, 0);
  CARAVAN_CHECK(flags.num_seqs >= 1 && flags.num_seqs <= 1'000'000 && flags.num_repeats >= 1 &&
                    flags.max_num_batched_tokens >= 0,
                "--num-seqs {}, --repeats {}, --max-num-batched-tokens {}: expected 1 to 1000000, "
                "at least 1, at least 0",
                flags.num_seqs, flags.num_repeats, flags.max_num_batched_tokens);
  CARAVAN_CHECK(flags.prompt_len >= 1 && flags.output_len >= 1 && flags.prompt_len <= limit &&
                    flags.output_len <= limit - flags.prompt_len,
                "--prompt-len {} and --output-len {}: at most {} tokens fit", flags.prompt_len,
                flags.output_len, limit);
  const int64_t max_batch = check_sizes("--batch-sizes", flags.batch_sizes, kMaxBatch);
  LlmEngineOptions options{
      .runner = flags.bench.runner_options(), .eos_token_ids = {}, .enable_prefix_caching = false};
  options.runner.max_seq_len = flags.prompt_len + flags.output_len;
  const int64_t step_tokens = flags.max_num_batched_tokens > 0
                                  ? flags.max_num_batched_tokens
                                  : (is_device ? kDeviceStepTokens : kHostStepTokens);
  options.runner.max_batch_size = max_batch;
  options.runner.max_num_logits = max_batch;
  options.runner.max_num_batched_tokens = std::max(step_tokens, max_batch);
  check_memory(dir, flags.bench.model, options.runner);
  const Ceilings ceilings = backend->measure_ceilings(flags.bench.weight_dtype(dir));

  std::optional<BenchReport> report;
  for (const int64_t batch_size : flags.batch_sizes) {
    options.runner.max_batch_size = batch_size;
    options.runner.max_num_logits = batch_size;
    options.runner.max_num_batched_tokens = std::max(step_tokens, batch_size);
    if (!backend) backend = create_backend(flags.bench.model.backend());
    LlmEngine engine(flags.bench.make_runner(dir, std::move(backend), options.runner), options);
    if (!report)
      report.emplace(flags.bench.subject(engine.runner(), ceilings), flags.bench.is_json);
    BenchRow row = make_row(flags, batch_size, engine.runner(), ceilings);
    // The steps of a device are recorded as they first come.
    if (is_device) complete_all(engine, flags);
    int64_t num_steps = 0;
    for (int64_t i = 0; i < flags.num_repeats; ++i) {
      const auto start = BenchClock::now();
      num_steps = complete_all(engine, flags);
      row.seconds.push_back(seconds_since(start));
    }
    const double seconds = median(row.seconds);
    const auto tokens = static_cast<double>(flags.num_seqs * (flags.prompt_len + flags.output_len));
    row.fields["num_steps"] = num_steps;
    row.fields["wall_s"] = seconds;
    row.fields["output_tokens_per_s"] = row.num_tokens / seconds;
    row.fields["total_tokens_per_s"] = tokens / seconds;
    row.label += fmt::format("; with prompts {:.1f} t/s", tokens / seconds);
    report->add(row);
  }
}

}  // namespace

void add_bench_throughput_command(CLI::App& bench) {
  auto flags = std::make_shared<ThroughputFlags>();
  CLI::App* throughput = bench.add_subcommand(
      "throughput",
      "Many prompts at once through the engine, as many running together as the batch size: output "
      "tokens a second; the share is of the time at the ceilings for prefill and decode in turn");
  flags->bench.add_to(*throughput);
  throughput->add_option("--num-seqs", flags->num_seqs, "Prompts")->capture_default_str();
  throughput->add_option("--prompt-len", flags->prompt_len, "Tokens of each prompt")
      ->capture_default_str();
  throughput->add_option("--output-len", flags->output_len, "Tokens to generate for each")
      ->capture_default_str();
  add_sizes(*throughput, "--batch-sizes", flags->batch_sizes, "Sequences that run at once");
  throughput->add_option("--repeats", flags->num_repeats, "Runs to take the median of")
      ->capture_default_str();
  throughput
      ->add_option("--max-num-batched-tokens", flags->max_num_batched_tokens,
                   "Tokens of one step; 0: 512 on the CPU, 4096 elsewhere")
      ->capture_default_str();
  throughput->add_option("--temperature", flags->temperature, "0: greedy")->capture_default_str();
  throughput->add_option("--top-k", flags->top_k, "0: all")->capture_default_str();
  throughput->add_option("--top-p", flags->top_p, "1: all")->capture_default_str();
  throughput->callback([flags] { run_throughput(*flags); });
}

}  // namespace caravan
