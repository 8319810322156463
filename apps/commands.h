#pragma once

#include <CLI/CLI.hpp>

namespace caravan {

// Each adds one subcommand: its flags and the callback that runs it. Every flag also reads an
// environment variable, CARAVAN_ + the long name in capitals (--max-output-len:
// CARAVAN_MAX_OUTPUT_LEN); apps/main.cc sets these for all flags at once.
void add_bench_command(CLI::App& app);
void add_build_command(CLI::App& app);
void add_compare_command(CLI::App& app);
void add_convert_command(CLI::App& app);
void add_diverge_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_lambada_command(CLI::App& app);
void add_perplexity_command(CLI::App& app);
void add_plan_command(CLI::App& app);
void add_rouge_command(CLI::App& app);
void add_run_command(CLI::App& app);
void add_score_command(CLI::App& app);
void add_serve_command(CLI::App& app);
void add_summarize_command(CLI::App& app);
void add_synth_command(CLI::App& app);
void add_tokenize_command(CLI::App& app);

}  // namespace caravan
