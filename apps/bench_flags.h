#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "apps/bench_report.h"
#include "apps/model_flags.h"

namespace caravan {

/// The flags of every `caravan bench` command: those of a model, --random-weights and --json.
struct BenchFlags {
  ModelFlags model;
  std::string random_weights;  // a shape's name; empty: --model
  bool is_json = false;

  void add_to(CLI::App& command);
  /// The directory, or the config of the shape alone.
  /// Errors: kInvalidArgument unless exactly one of the two is given.
  ModelDir open() const;
  std::string model_name() const;
  /// The dtype of the weights, as far as it is known before they are read.
  DType weight_dtype(const ModelDir& dir) const;
  /// dtypes of the flags.
  ModelRunnerOptions runner_options() const;
  /// With the weights of the directory, or random ones.
  ModelRunner make_runner(const ModelDir& dir, std::unique_ptr<Backend> backend,
                          const ModelRunnerOptions& options) const;
  BenchSubject subject(const ModelRunner& runner, const Ceilings& ceilings) const;
};

/// Sizes that --NAME gives as "1,8,32". Errors: kInvalidArgument outside [1, most].
void add_sizes(CLI::App& command, const std::string& name, std::vector<int64_t>& sizes,
               const std::string& description);
int64_t check_sizes(const char* name, const std::vector<int64_t>& sizes, int64_t most);

using BenchClock = std::chrono::steady_clock;
double seconds_since(BenchClock::time_point start);

/// Token ids below vocab_size, the same ones at every call.
std::vector<int32_t> random_token_ids(int64_t count, int64_t vocab_size);
/// Fills all of it, so that attention works on values of ordinary size.
void fill_cache_randomly(ModelRunner& runner);

void add_bench_kernel_command(CLI::App& bench);
void add_bench_latency_command(CLI::App& bench);
void add_bench_load_command(CLI::App& bench);
void add_bench_serve_command(CLI::App& bench);
void add_bench_throughput_command(CLI::App& bench);

}  // namespace caravan
