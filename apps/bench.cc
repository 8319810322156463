#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <numeric>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "backend/cpu_backend.h"
#include "core/error.h"
#include "core/json.h"
#include "core/progress.h"
#include "format/model_dir.h"
#include "kernels/cpu/ceilings.h"

namespace caravan {

namespace {

struct LatencyFlags {
  ModelFlags model;
  std::vector<int64_t> prompt_lens{512};
  std::vector<int64_t> contexts{512};
  std::vector<int64_t> batch_sizes{1};
  int64_t num_steps = 16;
  int64_t num_repeats = 3;
  int64_t max_num_batched_tokens = 512;
  bool is_json = false;
};

struct Ceilings {
  double read_gb_per_s = 0;
  double fma_gflops = 0;  // float32 FMA in registers
  double amx_gflops = 0;  // bfloat16 tiles in registers; 0 without AMX
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Random token ids and cache blocks of `batch_size` sequences, driven by hand so that one step is
/// exactly one row of the table.
class LatencyBench {
 public:
  LatencyBench(ModelRunner& runner, int64_t batch_size, int64_t max_len)
      : runner_(runner), batch_(runner.cache().block_size()) {
    const int64_t blocks = ceil_div(max_len, runner.cache().block_size());
    for (int64_t s = 0; s < batch_size; ++s) {
      std::vector<int32_t> table(static_cast<size_t>(blocks));
      std::iota(table.begin(), table.end(), static_cast<int32_t>(s * blocks));
      tables_.push_back(std::move(table));
    }
    uint64_t state = 1;
    for (int64_t i = 0; i < max_len; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      ids_.push_back(static_cast<int32_t>(
          (state >> 33) % static_cast<uint64_t>(runner.model().config().vocab_size)));
    }
  }

  /// Seconds to fill positions [0, length) of sequence `s`, logits of the last token included.
  double prefill(size_t s, int64_t length) {
    const int64_t chunk = runner_.model().limits().max_num_tokens;
    const auto start = Clock::now();
    for (int64_t begin = 0; begin < length; begin += chunk) {
      const int64_t count = std::min(chunk, length - begin);
      batch_.clear();
      batch_.add_sequence(ids_.data() + begin, count, begin, tables_[s], begin + count == length);
      runner_.run(batch_);
    }
    return seconds_since(start);
  }

  /// Seconds of one decode step of every sequence at context `position` + 1.
  double decode(int64_t position) {
    const auto start = Clock::now();
    batch_.clear();
    for (const auto& table : tables_) {
      batch_.add_sequence(ids_.data() + position, 1, position, table, true);
    }
    runner_.run(batch_);
    return seconds_since(start);
  }

 private:
  ModelRunner& runner_;
  Batch batch_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<int32_t> ids_;
};

/// Floating-point operations of a prefill of `length` tokens: matrices, causal attention, one head.
double prefill_flops(const ModelConfig& c, int64_t length) {
  const auto t = static_cast<double>(length);
  const auto hidden = static_cast<double>(c.hidden_size);
  const double layer =
      2.0 * (4.0 * hidden * hidden + 2.0 * hidden * static_cast<double>(c.ffn_size));
  const double attention = 4.0 * hidden * (t + 1) / 2;
  return t * static_cast<double>(c.num_layers) * (layer + attention) +
         2.0 * hidden * static_cast<double>(c.vocab_size);
}

class Report {
 public:
  Report(const ModelRunner& runner, const Ceilings& ceilings, bool is_json)
      : runner_(runner), ceilings_(ceilings), is_json_(is_json) {
    if (is_json_) return;
    std::printf("# %s, %s weights, %s KV cache\n", runner.backend().description().c_str(),
                dtype_name(runner.model().weight_dtype()), dtype_name(runner.cache().dtype()));
    std::printf("# ceilings of this run: read %.1f GB/s, float32 FMA %.0f GFLOP/s%s\n",
                ceilings.read_gb_per_s, ceilings.fma_gflops,
                ceilings.amx_gflops > 0
                    ? fmt::format(", AMX bfloat16 {:.0f} GFLOP/s", ceilings.amx_gflops).c_str()
                    : "");
    std::printf("| test | batch | tokens | ms | tok/s | rate | of ceiling |\n");
    std::printf("|---|---|---|---|---|---|---|\n");
  }

  void prefill(int64_t length, double seconds) {
    const double gflops = prefill_flops(runner_.model().config(), length) / seconds * 1e-9;
    const bool is_amx = ceilings_.amx_gflops > 0 &&
                        runner_.model().weight_dtype() == DType::kBF16 &&
                        runner_.backend().description().find("amx") != std::string::npos;
    row("prefill", 1, length, seconds, static_cast<double>(length) / seconds, gflops, "GFLOP/s",
        gflops / (is_amx ? ceilings_.amx_gflops : ceilings_.fma_gflops));
  }

  void decode(int64_t batch_size, int64_t context, double seconds) {
    const double kv = static_cast<double>(batch_size * context) *
                      static_cast<double>(KvCache::block_bytes(runner_.model().config(),
                                                               runner_.cache().dtype(), 1));
    const double gb = (static_cast<double>(runner_.model().bytes_per_decode_step()) + kv) * 1e-9;
    row("decode", batch_size, context, seconds, static_cast<double>(batch_size) / seconds,
        gb / seconds, "GB/s", gb / seconds / ceilings_.read_gb_per_s);
  }

 private:
  void row(const char* test, int64_t batch_size, int64_t tokens, double seconds,
           double tokens_per_s, double rate, const char* unit, double share) {
    if (is_json_) {
      const boost::json::object object{{"test", test},
                                       {"batch_size", batch_size},
                                       {"tokens", tokens},
                                       {"ms", seconds * 1e3},
                                       {"tokens_per_s", tokens_per_s},
                                       {"rate", rate},
                                       {"unit", unit},
                                       {"share_of_ceiling", share},
                                       {"read_gb_per_s", ceilings_.read_gb_per_s},
                                       {"fma_gflops", ceilings_.fma_gflops},
                                       {"amx_gflops", ceilings_.amx_gflops},
                                       {"backend", runner_.backend().description()},
                                       {"dtype", dtype_name(runner_.model().weight_dtype())}};
      std::printf("%s\n", boost::json::serialize(object).c_str());
    } else {
      std::printf("| %s | %ld | %ld | %.2f | %.2f | %.1f %s | %.1f %% |\n", test, batch_size,
                  tokens, seconds * 1e3, tokens_per_s, rate, unit, share * 100);
    }
    std::fflush(stdout);
  }

  const ModelRunner& runner_;
  Ceilings ceilings_;
  bool is_json_;
};

void run_latency(const LatencyFlags& flags) {
  const ModelDir dir = open_model_dir(flags.model.model);
  const int64_t limit = ModelRunner::sequence_limit(dir, 0);
  int64_t max_len = 1;
  for (const int64_t n : flags.prompt_lens) {
    CARAVAN_CHECK(n >= 1 && n <= limit, "--prompt-lens {}: expected 1 to {}", n, limit);
    max_len = std::max(max_len, n);
  }
  for (const int64_t n : flags.contexts) {
    CARAVAN_CHECK(n >= 1 && n + flags.num_steps - 1 <= limit,
                  "--contexts {} and --steps {}: at most {} tokens fit", n, flags.num_steps, limit);
    max_len = std::max(max_len, n + flags.num_steps - 1);
  }
  int64_t max_batch = 1;
  for (const int64_t n : flags.batch_sizes) {
    CARAVAN_CHECK(n >= 1 && n <= 4096, "--batch-sizes {}: expected 1 to 4096", n);
    max_batch = std::max(max_batch, n);
  }
  CARAVAN_CHECK(flags.num_steps >= 1 && flags.num_repeats >= 1,
                "--steps {} and --repeats {}: expected at least 1", flags.num_steps,
                flags.num_repeats);
  const ModelRunnerOptions options{
      .dtype = dtype_flag(flags.model.dtype, "--dtype"),
      .kv_cache_dtype = dtype_flag(flags.model.kv_cache_dtype, "--kv-cache-dtype"),
      .max_num_batched_tokens = std::max(flags.max_num_batched_tokens, max_batch),
      .max_num_logits = max_batch,
      .max_seq_len = max_len,
      .max_batch_size = max_batch};
  check_memory(dir, flags.model, options);
  const int threads = flags.model.num_threads > 0 ? flags.model.num_threads : num_available_cores();
  const Ceilings ceilings{
      .read_gb_per_s = measure_read_gb_per_s(threads, size_t{1} << 30),
      .fma_gflops = measure_fma_gflops(
          cpu_isa_available(CpuIsa::kAvx512) ? CpuIsa::kAvx512 : CpuIsa::kAvx2, threads),
      .amx_gflops = cpu_isa_available(CpuIsa::kAmx) ? measure_amx_bf16_gflops(threads) : 0.0};
  ModelRunner runner(dir, create_backend(flags.model.backend()), options);
  Report report(runner, ceilings, flags.is_json);
  for (const int64_t length : flags.prompt_lens) {
    LatencyBench bench(runner, 1, length);
    bench.prefill(0, std::min<int64_t>(length, 32));  // first touch of weights and workspace
    std::vector<double> seconds;
    for (int64_t i = 0; i < flags.num_repeats; ++i) seconds.push_back(bench.prefill(0, length));
    report.prefill(length, median(seconds));
  }
  for (const int64_t batch_size : flags.batch_sizes) {
    for (const int64_t context : flags.contexts) {
      LatencyBench bench(runner, batch_size, context + flags.num_steps - 1);
      for (int64_t s = 0; s < batch_size; ++s) {
        if (context > 1) bench.prefill(static_cast<size_t>(s), context - 1);
      }
      std::vector<double> seconds;
      for (int64_t i = 0; i < flags.num_steps; ++i)
        seconds.push_back(bench.decode(context - 1 + i));
      report.decode(batch_size, context, median(seconds));
    }
  }
}

}  // namespace

void add_bench_command(CLI::App& app) {
  CLI::App* bench =
      app.add_subcommand("bench", "Measure speed beside the ceilings of this machine");
  bench->require_subcommand(1);
  auto flags = std::make_shared<LatencyFlags>();
  CLI::App* latency = bench->add_subcommand(
      "latency",
      "Prefill and decode times; the median of the repeats and steps, with the share of "
      "the FMA or AMX peak and of the read bandwidth measured in the same run");
  flags->model.add_to(*latency);
  latency->add_option("--prompt-lens", flags->prompt_lens, "Prompt lengths to prefill")
      ->delimiter(',')
      ->capture_default_str();
  latency->add_option("--contexts", flags->contexts, "Context lengths to decode at")
      ->delimiter(',')
      ->capture_default_str();
  latency->add_option("--batch-sizes", flags->batch_sizes, "Sequences that decode at once")
      ->delimiter(',')
      ->capture_default_str();
  latency->add_option("--steps", flags->num_steps, "Decode steps to take the median of")
      ->capture_default_str();
  latency->add_option("--repeats", flags->num_repeats, "Prefills to take the median of")
      ->capture_default_str();
  latency
      ->add_option("--max-num-batched-tokens", flags->max_num_batched_tokens,
                   "Tokens of one step; longer prompts go in chunks")
      ->capture_default_str();
  latency->add_flag("--json", flags->is_json, "One JSON object a row");
  latency->callback([flags] { run_latency(*flags); });
}

}  // namespace caravan
