#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "apps/text_data.h"
#include "backend/create_backend.h"
#include "core/atomic_file.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "core/output_paths.h"
#include "core/progress.h"
#include "eval/lambada.h"
#include "format/model_dir.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

namespace {

struct LambadaFlags {
  ModelFlags model;
  TextDataFlags data;
  int64_t max_items = 0;
  int64_t max_batch_size = 0;
  std::string output;
  bool is_json = false;
};

std::vector<LambadaItem> read_items(const LambadaFlags& flags, const ModelConfig& config,
                                    int64_t limit) {
  std::vector<TextDocument> documents = flags.data.read();
  if (flags.max_items > 0 && static_cast<int64_t>(documents.size()) > flags.max_items) {
    documents.resize(static_cast<size_t>(flags.max_items));
  }
  const Tokenizer tokenizer = Tokenizer::from_directory(flags.model.model);
  const int32_t eos_id = config.bos_token_id >= 0       ? config.bos_token_id
                         : config.eos_token_ids.empty() ? -1
                                                        : config.eos_token_ids.front();
  std::vector<LambadaItem> items;
  for (const TextDocument& document : documents) {
    items.push_back(make_lambada_item(tokenizer, document.text, eos_id, limit, document.where));
  }
  return items;
}

void write_results(const std::string& path, const std::vector<LambadaItem>& items,
                   const std::vector<LambadaResult>& results) {
  std::optional<AtomicFile> file;
  if (path != "-") file.emplace(path);
  for (size_t i = 0; i < items.size(); ++i) {
    const auto target = items[i].ids.end() - items[i].num_target;
    const std::vector<int32_t> target_ids(target, items[i].ids.end());
    const boost::json::object row{{"index", i},
                                  {"target_ids", boost::json::value_from(target_ids)},
                                  {"log_prob", number_json(results[i].log_prob)},
                                  {"is_correct", results[i].is_correct}};
    const std::string text = to_json_text(row) + "\n";
    if (file) {
      file->write(text);
    } else {
      const size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
      CARAVAN_CHECK_CODE(written == text.size(), kIo, "standard output: write failed");
    }
  }
  if (file) file->commit();
}

/// Prints the report and says whether its figures are numbers.
int run_lambada(const LambadaFlags& flags) {
  check_output_file("--output", flags.output,
                    {{"--model", flags.model.model}, {"--data", flags.data.data}});
  const ModelDir dir = open_model_dir(flags.model.model);
  const int64_t limit = ModelRunner::sequence_limit(dir, 0);
  CARAVAN_CHECK(flags.max_items >= 0, "--max-items {}: expected at least 1", flags.max_items);
  CARAVAN_CHECK(flags.max_batch_size >= 0, "--max-batch-size {}: expected at least 1",
                flags.max_batch_size);
  const std::vector<LambadaItem> items = read_items(flags, dir.config, limit);
  int64_t longest = 1;
  for (const LambadaItem& item : items) {
    longest = std::max(longest, static_cast<int64_t>(item.ids.size()) - 1);
  }
  const bool is_cpu = flags.model.device == "cpu";
  const int64_t batch_size = flags.max_batch_size > 0 ? flags.max_batch_size : is_cpu ? 8 : 64;
  const ModelRunnerOptions options{
      .dtype = dtype_flag(flags.model.dtype, "--dtype"),
      .kv_cache_dtype = kv_dtype_flag(flags.model.kv_cache_dtype),
      .max_num_batched_tokens = is_cpu ? 512 : 4096,
      .max_num_logits = is_cpu ? 64 : 256,
      .max_seq_len = longest,
      .max_batch_size = std::min(static_cast<int64_t>(items.size()), batch_size),
      .verify_weights = !flags.model.skips_verification};
  check_memory(dir, flags.model, options);
  ModelRunner runner(dir, create_backend(flags.model.backend()), options);
  Scorer scorer(runner);
  Progress progress("lambada", items.size(), "passages");
  std::vector<LambadaResult> results;
  const auto start = std::chrono::steady_clock::now();
  const LambadaReport report = measure_lambada(
      scorer, items, [&](int64_t n) { progress.add(static_cast<uint64_t>(n)); }, &results);
  progress.finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!flags.output.empty()) write_results(flags.output, items, results);
  log_info("{} tokens in {:.1f} s, {:.0f} tokens/s, on {}", report.num_fed, seconds,
           static_cast<double>(report.num_fed) / seconds, runner.backend().description());
  const bool is_finite = std::isfinite(report.log_prob.value);
  if (!is_finite) log_warning("the model's logits are not finite: the figures say nothing");
  if (!flags.is_json) {
    std::printf("accuracy    %.4f +/- %.4f  (%ld of %ld)\n", report.accuracy.value,
                report.accuracy.standard_error, report.num_correct, report.num_items);
    std::printf("perplexity  %.4f +/- %.4f  of the last word\n", report.perplexity.value,
                report.perplexity.standard_error);
    return is_finite ? 0 : 1;
  }
  boost::json::object json = lambada_json(report);
  json["model"] = flags.model.model;
  json["data"] = flags.data.data;
  json["dtype"] = dtype_name(runner.model().weight_dtype());
  json["kv_cache_dtype"] = dtype_name(runner.cache().dtype());
  json["device"] = runner.backend().description();
  json["seconds"] = seconds;
  std::printf("%s\n", to_json_text(json).c_str());
  return is_finite ? 0 : 1;
}

}  // namespace

void add_lambada_command(CLI::App& app) {
  auto flags = std::make_shared<LambadaFlags>();
  CLI::App* command = app.add_subcommand(
      "lambada",
      "LAMBADA: how often the model predicts the last word of a passage, and the perplexity of "
      "that word, as lm-evaluation-harness's lambada_openai");
  flags->model.add_to(*command);
  flags->data.add_to(*command, "JSON Lines file, one passage a line");
  command->add_option("--max-items", flags->max_items, "Only the first N passages; 0: all")
      ->capture_default_str();
  command
      ->add_option("--max-batch-size", flags->max_batch_size,
                   "Passages at once; 0: 8 on the CPU, 64 on a GPU. Changes no result")
      ->capture_default_str();
  command->add_option("--output,-o", flags->output,
                      "Write each passage's target_ids, log_prob and is_correct, one JSON object a "
                      "line");
  command->add_flag("--json", flags->is_json, "One JSON object instead of lines");
  command->callback([flags] {
    const int status = run_lambada(*flags);
    if (status != 0) throw CLI::RuntimeError(status);
  });
}

}  // namespace caravan
