#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

#include "apps/bench_flags.h"
#include "apps/bench_serve_client.h"
#include "apps/bench_serve_load.h"
#include "apps/bench_serve_report.h"
#include "core/atomic_file.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "core/progress.h"
#include "server/process_signals.h"

namespace caravan {

namespace {

struct BenchServeFlags {
  LoadOptions load;
  LoadPlan plan;
  double request_rate = std::numeric_limits<double>::infinity();
  int64_t num_warmups = 0;
  std::vector<std::string> goodput;
  bool checks_repeats = false;
  bool is_json = false;
  std::string result_file;
};

std::map<std::string, double> goodput_limits(const std::vector<std::string>& texts) {
  std::map<std::string, double> limits;
  for (const std::string& text : texts) {
    const size_t colon = text.find(':');
    const std::string name = text.substr(0, colon);
    double value = 0;
    const bool is_number =
        colon != std::string::npos && CLI::detail::lexical_cast(text.substr(colon + 1), value);
    CARAVAN_CHECK((name == "ttft" || name == "tpot" || name == "e2el") && is_number && value > 0,
                  "--goodput {}: expected ttft:MS, tpot:MS or e2el:MS", printable(text));
    limits[name] = value;
  }
  return limits;
}

/// Requests whose text differs from that of an earlier one with the same body: of all, or with a
/// step of 1 and more only of every so many-th.
int64_t num_unequal_repeats(const std::vector<LoadRequest>& requests,
                            const std::vector<LoadResult>& results, size_t step) {
  std::map<std::string, const std::string*> first;
  int64_t count = 0;
  for (size_t i = 0; i < requests.size(); i += step) {
    if (!results[i].error.empty()) continue;
    const auto [entry, is_new] = first.emplace(requests[i].body, &results[i].text);
    if (!is_new && *entry->second != results[i].text) ++count;
  }
  return count;
}

void run_bench_serve(BenchServeFlags flags) {
  flags.plan.is_chat = flags.load.endpoint.ends_with("/chat/completions");
  CARAVAN_CHECK(flags.request_rate > 0, "--request-rate {}: expected more than 0, or inf",
                flags.request_rate);
  flags.plan.request_rate = std::isinf(flags.request_rate) ? 0 : flags.request_rate;
  CARAVAN_CHECK(flags.load.max_concurrency >= 0 && flags.load.timeout_s > 0,
                "--max-concurrency {}, --timeout {}: expected 0 or more, and more than 0",
                flags.load.max_concurrency, flags.load.timeout_s);
  const std::map<std::string, double> limits = goodput_limits(flags.goodput);
  const std::vector<LoadRequest> requests = make_load(flags.plan);
  raise_file_limit();  // each connection is a file
  if (flags.num_warmups > 0) {
    LoadPlan plan = flags.plan;
    plan.seed = ~plan.seed;  // other prompts: nothing that a prefix cache could keep
    plan.num_prompts = flags.num_warmups;
    plan.request_rate = 0;
    std::vector<LoadRequest> warmups = make_load(plan);
    for (LoadRequest& request : warmups) request.start_s = 0;
    for (const LoadResult& result : send_load(flags.load, warmups)) {
      if (!result.error.empty()) CARAVAN_FAIL(kIo, "a warm-up failed: {}", result.error);
    }
  }
  Progress progress("requests", requests.size(), "requests");
  const auto start = BenchClock::now();
  const std::vector<LoadResult> results = send_load(flags.load, requests, [&] { progress.add(1); });
  const double duration_s = seconds_since(start);
  progress.finish();

  const LoadSummary summary = summarize_load(results, duration_s, limits);
  const bool checks_repeats = flags.checks_repeats || flags.plan.canary_every > 0;
  const auto step = flags.checks_repeats ? 1 : static_cast<size_t>(flags.plan.canary_every);
  const int64_t num_unequal = checks_repeats ? num_unequal_repeats(requests, results, step) : 0;
  boost::json::object json = load_json(summary);
  if (checks_repeats) json["unequal_repeats"] = num_unequal;
  json["max_concurrency"] = flags.load.max_concurrency;
  if (!flags.result_file.empty()) {
    const std::string text = to_json_text(json) + "\n";
    AtomicFile file(flags.result_file);
    file.write(text.data(), text.size());
    file.commit();
  }
  if (flags.is_json) {
    fmt::print("{}\n", to_json_text(json));
  } else {
    fmt::print("{}", load_report(summary, flags.load.max_concurrency, flags.plan.request_rate,
                                 !limits.empty()));
  }
  std::fflush(stdout);
  for (const auto& [message, count] : summary.errors) {
    log_warning("{} requests failed: {}", count, message);
  }
  if (num_unequal > 0) {
    log_warning("{} requests got another answer than an equal one before", num_unequal);
  }
  if (summary.num_failed > 0 || num_unequal > 0) throw CLI::RuntimeError(1);
}

void add_load_flags(CLI::App& command, BenchServeFlags& flags) {
  LoadPlan& plan = flags.plan;
  command
      .add_option(
          "--dataset-name,--dataset", plan.dataset,
          "random: prompts of random tokens; jsonl: a \"prompt\" (\"instruction\", "
          "\"turns\") a line; sonnet: lines of a text file, prompts with a common beginning; "
          "trace: lengths and times of a CSV like Azure's LLM inference traces")
      ->check(CLI::IsMember({"random", "jsonl", "sonnet", "trace"}))
      ->capture_default_str();
  command.add_option("--dataset-path", plan.dataset_path, "File of jsonl, sonnet and trace");
  command.add_option("--num-prompts", plan.num_prompts, "Requests")->capture_default_str();
  command.add_option("--random-input-len,--input-len", plan.random_input_len, "Tokens of a prompt")
      ->capture_default_str();
  command
      .add_option("--random-output-len,--output-len", plan.random_output_len, "Tokens of an output")
      ->capture_default_str();
  command
      .add_option("--random-range-ratio", plan.random_range_ratio,
                  "Lengths vary by this share of themselves, up and down")
      ->capture_default_str();
  command
      .add_option("--sonnet-prefix-len", plan.sonnet_prefix_len,
                  "sonnet: tokens with which all prompts begin, at four characters a token, as the "
                  "tokens of a prompt are")
      ->capture_default_str();
  command.add_option("--vocab-size", plan.vocab_size, "Random prompts have token ids below this")
      ->capture_default_str();
  command.add_flag("--random-text", plan.sends_text,
                   "Random words in place of token ids, for servers that do not take these");
  command.add_option("--custom-output-len", plan.output_len, "jsonl: tokens of every output")
      ->capture_default_str();
  command
      .add_option("--request-rate", flags.request_rate,
                  "Requests a second, gaps as a gamma distribution has them; inf: as soon as "
                  "--max-concurrency allows")
      ->capture_default_str();
  command
      .add_option("--burstiness", plan.burstiness,
                  "Shape of the gaps: 1 a Poisson process, less more bursts")
      ->capture_default_str();
  command.add_option("--seed", plan.seed, "Of lengths, prompts and gaps")->capture_default_str();
  command.add_option("--temperature", plan.temperature, "0: greedy")->capture_default_str();
  command.add_flag("--ignore-eos", plan.ignores_eos,
                   "Outputs have their full length (servers with vLLM's ignore_eos)");
}

}  // namespace

void add_bench_serve_command(CLI::App& bench) {
  auto flags = std::make_shared<BenchServeFlags>();
  CLI::App* command = bench.add_subcommand(
      "serve",
      "Load on a running OpenAI-compatible server: throughput, time to the first token, time per "
      "token. TPOT is (whole - TTFT) / (tokens - 1) of a request, ITL the gap between two events "
      "of its stream");
  command->add_option("--base-url,--url", flags->load.base_url, "http://HOST:PORT of the server")
      ->capture_default_str();
  command
      ->add_option("--endpoint", flags->load.endpoint,
                   "/v1/completions or /v1/chat/completions, which gets prompts as messages")
      ->capture_default_str();
  command->add_option("--model,-m", flags->plan.model, "Name of the model in the requests");
  command->add_option("--api-key", flags->load.api_key, "Sent as a bearer token");
  add_load_flags(*command, *flags);
  command
      ->add_option("--max-concurrency", flags->load.max_concurrency,
                   "Requests at once at most; 0: no limit")
      ->capture_default_str();
  command->add_option("--num-warmups", flags->num_warmups, "Requests before the first that counts")
      ->capture_default_str();
  command->add_option("--timeout", flags->load.timeout_s, "Seconds until a request has failed")
      ->capture_default_str();
  command
      ->add_option("--goodput", flags->goodput,
                   "Limits in milliseconds, e.g. ttft:200 tpot:50: also counts the requests that "
                   "keep them all")
      ->expected(1, 3);
  command->add_flag(
      "--check-repeats", flags->checks_repeats,
      "Requests with the same body must get the same text (greedily, or with a seed)");
  command
      ->add_option("--canary-every", flags->plan.canary_every,
                   "The first and then every so many-th request is one and the same, greedy, and "
                   "must get the same text each time; 0: none")
      ->capture_default_str();
  command->add_flag("--json", flags->is_json, "One JSON object on stdout, under vLLM's names");
  command->add_option("--save-result,--result-filename", flags->result_file,
                      "Writes the JSON object to this file");
  command->callback([flags] { run_bench_serve(*flags); });
}

}  // namespace caravan
