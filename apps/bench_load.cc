#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <memory>
#include <sstream>

#include "apps/bench_flags.h"
#include "core/error.h"

namespace caravan {

namespace {

struct LoadFlags {
  BenchFlags bench;
  int64_t prompt_len = 16;
};

// Seconds since this process was started, restarts by exec included, to 10 ms (the kernel's clock
// tick): field 22 of /proc/self/stat, see proc(5). nullopt where that cannot be read.
std::optional<double> process_age() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  timespec now{};
  if (!fields || ::clock_gettime(CLOCK_BOOTTIME, &now) != 0) return std::nullopt;
  const double started =
      std::strtod(field.c_str(), nullptr) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  const double age =
      static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 - started;
  if (age < 0) return std::nullopt;
  return age;
}

void run_load(const LoadFlags& flags) {
  const ModelDir dir = flags.bench.open();
  const int64_t limit = ModelRunner::sequence_limit(dir, 0);
  check_sizes("--prompt-len", {flags.prompt_len}, limit);
  ModelRunnerOptions options = flags.bench.runner_options();
  options.max_batch_size = 1;
  options.max_num_logits = 1;
  options.max_seq_len = std::min(limit, std::max<int64_t>(flags.prompt_len, 512));
  check_memory(dir, flags.bench.model, options);
  std::unique_ptr<Backend> backend = create_backend(flags.bench.model.backend());
  backend->synchronize();
  const bool is_mapped = backend->reads_host_memory() && dir.kind == ModelDirKind::kEngine;
  const bool is_random = !flags.bench.random_weights.empty();

  const auto load_start = BenchClock::now();
  ModelRunner runner = flags.bench.make_runner(dir, std::move(backend), options);
  runner.backend().synchronize();
  const double load_seconds = seconds_since(load_start);

  const auto prompt_start = BenchClock::now();
  Batch batch(runner.cache().block_size());
  const std::vector<int32_t> ids = random_token_ids(flags.prompt_len, dir.config.vocab_size);
  std::vector<int32_t> table(
      static_cast<size_t>(ceil_div(flags.prompt_len, runner.cache().block_size())));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  const SamplingParams params;
  const SampleRequest request{.params = &params,
                              .num_tokens = flags.prompt_len,
                              .history = ids,
                              .slot = 0,
                              .is_first_output = true};
  const int64_t step_tokens = runner.model().limits().max_num_tokens;
  for (int64_t begin = 0; begin < flags.prompt_len; begin += step_tokens) {
    const int64_t count = std::min(step_tokens, flags.prompt_len - begin);
    const bool is_last = begin + count == flags.prompt_len;
    batch.clear();
    batch.add_sequence(ids.data() + begin, count, begin, table,
                       is_last ? LogitsWanted::kLast : LogitsWanted::kNone);
    runner.launch(batch, {&request, is_last ? size_t{1} : size_t{0}});
    runner.collect();
  }
  const double prompt_seconds = seconds_since(prompt_start);
  const std::optional<double> age = process_age();

  const Ceilings ceilings = runner.backend().measure_ceilings(runner.model().weight_dtype());
  BenchReport report(flags.bench.subject(runner, ceilings), flags.bench.is_json);
  BenchRow load{.test = "load",
                .label = is_random   ? "random weights made"
                         : is_mapped ? "weights mapped"
                                     : "weights loaded",
                .fields = {{"is_mapped", is_mapped}, {"is_random", is_random}},
                .seconds = {load_seconds},
                .num_tokens = 0,
                .work = {},
                .bound = Bound::kNone,
                .floor_seconds = std::nullopt};
  // Mapped weights are read as they are needed.
  if (!is_mapped) load.work.bytes = static_cast<double>(runner.model().num_weight_bytes());
  if (!is_mapped && !is_random) {
    load.bound = runner.backend().reads_host_memory() ? Bound::kCopy : Bound::kHostToDevice;
  }
  report.add(load);
  const boost::json::object fields{{"prompt_len", flags.prompt_len}};
  report.add({.test = "first_step",
              .label = fmt::format("first pp{}, one token", flags.prompt_len),
              .fields = fields,
              .seconds = {prompt_seconds},
              .num_tokens = 0,
              .work = {},
              .bound = Bound::kNone,
              .floor_seconds = std::nullopt});
  if (!age) return;
  report.add({.test = "first_token",
              .label = "process start to first token",
              .fields = fields,
              .seconds = {*age},
              .num_tokens = 0,
              .work = {},
              .bound = Bound::kNone,
              .floor_seconds = std::nullopt});
}

}  // namespace

void add_bench_load_command(CLI::App& bench) {
  auto flags = std::make_shared<LoadFlags>();
  CLI::App* load = bench.add_subcommand(
      "load",
      "Opens the model once: the rate of loading its weights as a share of the copy from the "
      "host's "
      "memory to the device, and the time from the start of the process to the first token");
  flags->bench.add_to(*load);
  load->add_option("--prompt-len", flags->prompt_len, "Tokens of the prompt before the first token")
      ->capture_default_str();
  load->callback([flags] { run_load(*flags); });
}

}  // namespace caravan
