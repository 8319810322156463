#include <CLI/CLI.hpp>

#include "apps/bench_flags.h"
#include "apps/commands.h"

namespace caravan {

void add_bench_command(CLI::App& app) {
  CLI::App* bench = app.add_subcommand(
      "bench",
      "Measure speed beside the ceilings of the device: every run measures first how fast it reads "
      "and copies memory and multiplies matrices, and shows each figure as a share of that");
  bench->require_subcommand(1);
  add_bench_latency_command(*bench);
  add_bench_throughput_command(*bench);
  add_bench_kernel_command(*bench);
  add_bench_load_command(*bench);
  add_bench_serve_command(*bench);
}

}  // namespace caravan
