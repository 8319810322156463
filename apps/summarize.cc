#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "apps/summarize_report.h"
#include "convert/model_files.h"
#include "core/error.h"
#include "core/log.h"
#include "core/output_paths.h"
#include "core/progress.h"
#include "core/standard_output.h"
#include "core/tensor.h"
#include "engine/llm_opener.h"
#include "eval/summarize.h"

namespace caravan {

namespace {

/// Flags of TensorRT-LLM's examples/gpt/summarize.py of July 2023 that mean something else here.
struct LegacyFlags {
  std::string hf_model_location;
  std::string vocab_file;
  std::string data_type;
  std::string eval_type = "summarize";
  std::string log_level;
  bool test_hf = false;
  bool test_trt_llm = false;

  void add_to(CLI::App& command);
  void check(bool has_reference) const;
};

struct SummarizeFlags {
  ModelFlags model;
  LegacyFlags legacy;
  std::string tokenizer;
  DatasetOptions data;
  std::string prompt_template = "tldr";
  std::string instruction = SummarizeSettings().instruction;
  std::string overflow = "tail";
  std::string compat = "none";
  int64_t batch_size = 1;
  int64_t output_len = 100;
  int64_t max_ite = 20;
  int64_t max_input_len = 0;
  int64_t num_beams = 1;
  int32_t top_k = 1;
  std::optional<float> temperature;
  float top_p = 1.0f;
  uint64_t seed = 0;
  bool use_stemmer = false;
  bool check_accuracy = false;
  double rouge1_threshold = 15.0;
  std::string reference;
  std::string output;
  bool resume = false;
  bool force = false;
  bool is_json = false;

  const std::string& model_path() const {
    return model.model.empty() ? legacy.hf_model_location : model.model;
  }
  /// Where the tokenizer's files are.
  std::string tokenizer_path() const;
  SummarizeSettings settings() const;
  PredictionLog::Mode log_mode() const {
    if (resume) return PredictionLog::Mode::kResume;
    return force ? PredictionLog::Mode::kReplace : PredictionLog::Mode::kNew;
  }
  void check() const;
};

void LegacyFlags::add_to(CLI::App& command) {
  const std::string group = "Flags of July-2023 summarize.py with another meaning here";
  command
      .add_option("--hf_model_location,--hf-model-location", hf_model_location,
                  "Directory with the tokenizer's files, and the model when --model is not given")
      ->group(group);
  command
      .add_flag("--test_hf", test_hf,
                "Needs --reference: the other side's predictions, made with tools/hf_reference.py")
      ->group(group);
  command.add_flag("--test_trt_llm", test_trt_llm, "Always: this side is Caravan")->group(group);
  command
      .add_option("--data_type", data_type,
                  "Of the other side: see tools/hf_reference.py --dtype; of this one: --dtype")
      ->group(group);
  command.add_option("--vocab_file", vocab_file, "Refused: SentencePiece files are not read")
      ->group(group);
  command.add_option("--eval_type", eval_type, "Only summarize")->group(group);
  command.add_option("--log_level", log_level, "See --quiet")->group(group);
}

void LegacyFlags::check(bool has_reference) const {
  CARAVAN_CHECK_CODE(vocab_file.empty(), kUnsupported,
                     "--vocab_file {}: SentencePiece tokenizers are not supported", vocab_file);
  CARAVAN_CHECK_CODE(eval_type == "summarize", kUnsupported,
                     "--eval_type {}: only summarize is supported", printable(eval_type));
  CARAVAN_CHECK(!test_hf || has_reference,
                "--test_hf without --reference: Caravan runs no Python. Write this side's "
                "predictions with --output OURS.jsonl, run `tools/hf_reference.py --model HF_DIR "
                "--prompts OURS.jsonl --output HF.jsonl`, and give --reference HF.jsonl");
  if (test_trt_llm) log_info("--test_trt_llm: always on");
  if (!data_type.empty()) {
    log_info("--data_type {}: of the other side, see tools/hf_reference.py --dtype",
             printable(data_type));
  }
  if (!log_level.empty()) log_info("--log_level: see --quiet");
}

void SummarizeFlags::check() const {
  CARAVAN_CHECK(!model_path().empty(), "--model (--engine_dir) or --hf_model_location is required");
  CARAVAN_CHECK(!data.path.empty(),
                "--data is required: a JSON Lines, CSV or Parquet file with \"article\" and "
                "\"highlights\", or a directory of the data set; nothing is downloaded");
  CARAVAN_CHECK_CODE(num_beams == 1, kUnsupported,
                     "--num-beams {}: there is no beam search yet, only 1", num_beams);
  CARAVAN_CHECK(batch_size >= 1, "--batch-size {}, expected at least 1", batch_size);
  CARAVAN_CHECK(max_ite >= 0, "--max-ite {}, expected at least 1, or 0 for the whole data set",
                max_ite);
  CARAVAN_CHECK(max_input_len >= 0, "--max-input-len {}, expected at least 1", max_input_len);
  CARAVAN_CHECK(!resume || !output.empty(), "--resume needs --output: the file to continue");
  CARAVAN_CHECK(!resume || !force, "--resume and --force: give one of them");
  if (compat != "none") {
    CARAVAN_CHECK(prompt_template == "tldr" && overflow == "tail",
                  "--compat trtllm-2023 fixes --template tldr and how prompts are cut: leave "
                  "--template and --overflow out");
  }
  legacy.check(!reference.empty());
}

std::string SummarizeFlags::tokenizer_path() const {
  for (const std::string* given : {&tokenizer, &legacy.hf_model_location}) {
    if (given->empty()) continue;
    CARAVAN_CHECK_CODE(std::filesystem::is_directory(*given), kNotFound,
                       "{}: no such directory; names of a model hub are not looked up: give a "
                       "directory with the tokenizer's files",
                       printable(*given));
    return *given;
  }
  return model.model;
}

SummarizeSettings SummarizeFlags::settings() const {
  SummarizeSettings settings;
  settings.prompt_template = prompt_template == "camel" ? SummarizeSettings::Template::kCamel
                                                        : SummarizeSettings::Template::kTldr;
  settings.instruction = instruction;
  settings.overflow = *parse_overflow(overflow);
  settings.is_trtllm_2023 = compat == "trtllm-2023";
  settings.sampling.max_output_len = output_len;
  settings.sampling.top_k = top_k;
  settings.sampling.top_p = top_p;
  settings.sampling.seed = seed;
  // As in 2023: the most likely token, or with --top-k above 1 a temperature of 1.
  settings.sampling.temperature = temperature.value_or(top_k == 1 ? 0.0f : 1.0f);
  return settings;
}

/// The prompts of the data set that the flags name; sets settings.max_input_len.
std::vector<SummaryItem> read_items(const SummarizeFlags& flags, const ModelDir& dir,
                                    const Tokenizer& tokenizer, SummarizeSettings& settings) {
  settings.max_input_len = summary_input_limit(flags.max_input_len, dir.config.max_seq_len,
                                               ModelRunner::sequence_limit(dir, 0),
                                               flags.output_len, settings.is_trtllm_2023);
  DatasetOptions data = flags.data;
  if (flags.max_ite > 0) {
    data.max_rows = checked_mul(flags.max_ite, flags.batch_size, "--max-ite x --batch-size");
  }
  std::vector<SummaryItem> items =
      make_summary_items(read_dataset(data), tokenizer, settings,
                         settings.is_trtllm_2023 ? model_max_length(flags.tokenizer_path()) : -1);
  for (const SummaryItem& item : items) {
    const int32_t largest = *std::max_element(item.prompt_ids.begin(), item.prompt_ids.end());
    CARAVAN_CHECK(largest < dir.config.vocab_size,
                  "article {} ({}): token {} is beyond the model's {}: the tokenizer of {} is "
                  "another model's",
                  item.index, printable(item.id), largest, dir.config.vocab_size,
                  flags.tokenizer_path());
  }
  return items;
}

LlmOptions llm_options(const SummarizeFlags& flags, const ModelDir& dir,
                       const std::vector<SummaryItem>& items) {
  int64_t longest = 0;
  for (const SummaryItem& item : items) {
    longest = std::max(longest, static_cast<int64_t>(item.prompt_ids.size()));
  }
  return {.model = dir.path,
          .dtype = flags.model.dtype,
          .kv_cache_dtype = flags.model.kv_cache_dtype,
          .device = flags.model.device,
          .cpu_isa = flags.model.cpu_isa,
          .cuda_kernels = flags.model.cuda_kernels,
          .num_threads = flags.model.num_threads,
          .max_batch_size = std::min(flags.batch_size, static_cast<int64_t>(items.size())),
          .max_seq_len = longest + flags.output_len,
          .max_num_batched_tokens = 512,
          .verify_weights = !flags.model.skips_verification};
}

Llm open_llm(const SummarizeFlags& flags, const ModelDir& dir, const LlmOptions& options,
             Tokenizer tokenizer) {
  check_memory(dir, flags.model,
               {.dtype = std::nullopt,
                .kv_cache_dtype = std::nullopt,
                .max_num_batched_tokens = options.max_num_batched_tokens,
                .max_num_logits = options.max_batch_size,
                .max_seq_len = options.max_seq_len,
                .max_batch_size = options.max_batch_size});
  return LlmOpener::open(options, dir, std::move(tokenizer));
}

SummarizeRun run_items(const SummarizeFlags& flags, Llm& llm, const std::vector<SummaryItem>& items,
                       const SummarizeSettings& settings, PredictionLog& log) {
  const size_t num_left = items.size() - log.finished().size();
  if (num_left > 0 && (settings.is_trtllm_2023 || flags.model.device.starts_with("cuda"))) {
    // Outside of every measurement, as in 2023: a device's first steps are slower than the rest.
    llm.generate({items.front().prompt_ids}, {settings.sampling});
  }
  Progress progress("summarize", num_left, "articles");
  SummarizeRun run = run_summaries(
      llm, items, flags.batch_size, settings, log,
      [&](int64_t num_articles) { progress.add(static_cast<uint64_t>(num_articles)); });
  progress.finish();
  return run;
}

void report_cuts(const std::vector<SummaryItem>& items, const std::string& overflow,
                 SummarizeReport& report) {
  for (const SummaryItem& item : items) {
    if (item.num_dropped_tokens == 0) continue;
    ++report.num_articles_cut;
    report.num_dropped_tokens += item.num_dropped_tokens;
    log_info("article {} ({}): {} tokens dropped from its {}", item.index, printable(item.id),
             item.num_dropped_tokens, overflow);
  }
}

void run_summarize(SummarizeFlags flags) {
  flags.check();
  flags.model.model = flags.model_path();
  check_output_file("--output", flags.output,
                    {{"--model", flags.model.model},
                     {"--tokenizer", flags.tokenizer_path()},
                     {"--data", flags.data.path},
                     // A file that is continued loses nothing, so it may be its own reference.
                     {"--reference", flags.resume ? "" : flags.reference}});
  SummarizeSettings settings = flags.settings();
  const ModelDir dir = open_model_dir(flags.model.model);
  Tokenizer tokenizer = Tokenizer::from_directory(flags.tokenizer_path());
  const std::vector<SummaryItem> items = read_items(flags, dir, tokenizer, settings);
  SummarizeReport report;
  report_cuts(items, settings.is_trtllm_2023 ? "head" : flags.overflow, report);
  std::vector<Prediction> theirs;
  if (!flags.reference.empty()) {  // before the long part: it may be the wrong file
    theirs = match_reference(items, read_predictions(flags.reference), flags.reference);
  }
  const LlmOptions options = llm_options(flags, dir, items);
  PredictionLog log(flags.output, flags.log_mode(), summary_settings(dir, options, settings),
                    items);
  Llm llm = open_llm(flags, dir, options, std::move(tokenizer));
  report.run = run_items(flags, llm, items, settings, log);

  report.model = dir.path;
  report.device = llm.description();
  report.dataset = flags.data.path;
  report.batch_size = options.max_batch_size;
  report.rouge = score_summaries(items, report.run.predictions, flags.use_stemmer);
  if (!flags.reference.empty()) {
    report.reference = flags.reference;
    report.reference_rouge = score_summaries(items, theirs, flags.use_stemmer);
    report.agreement = compare_outputs(report.run.predictions, theirs);
  }
  if (flags.check_accuracy) report.threshold = flags.rouge1_threshold;
  const std::string text =
      flags.is_json ? pretty_json(summarize_json(report)) : summarize_text(report);
  write_output(text);
  flush_output();
  if (!report.is_accurate()) throw CLI::RuntimeError(1);
}

void add_data_flags(CLI::App& command, SummarizeFlags& flags) {
  command.add_option("--data,-d,--dataset-path,--dataset_path", flags.data.path,
                     "JSON Lines, JSON array, .csv or Parquet file, or a directory as the Hugging "
                     "Face hub lays it out; pairs such as cnn_dailymail's article and highlights");
  command.add_option("--split", flags.data.split, "Of a directory: which files")
      ->capture_default_str();
  command.add_option("--article-key", flags.data.article_key,
                     "Member or column with the text; by default a known pair is looked for");
  command.add_option("--summary-key", flags.data.summary_key, "The same for the summary");
  command.add_option("--tokenizer", flags.tokenizer,
                     "Directory with the tokenizer's files, when the model's has none");
}

void add_prompt_flags(CLI::App& command, SummarizeFlags& flags) {
  command
      .add_option("--template", flags.prompt_template,
                  "tldr: the article and \" TL;DR:\"; camel: camel-5b's instruction prompt")
      ->check(CLI::IsMember({"tldr", "camel"}))
      ->capture_default_str();
  command.add_option("--instruction", flags.instruction, "Of --template camel")
      ->capture_default_str();
  command.add_option("--max-input-len,--max_input_len", flags.max_input_len,
                     "Longest prompt in tokens; 0: what the output leaves, and at most 923 for "
                     "models of 1024 positions");
  command
      .add_option("--overflow", flags.overflow,
                  "Which part of an article that is too long is dropped: head, tail or middle; the "
                  "instruction is always whole")
      ->check(CLI::IsMember({"head", "tail", "middle"}))
      ->capture_default_str();
  command
      .add_option("--compat", flags.compat,
                  "none, or trtllm-2023: prompts, quirks and warm-up of TensorRT-LLM's "
                  "examples/gpt/summarize.py of July 2023 (docs/evaluation.md)")
      ->check(CLI::IsMember({"none", "trtllm-2023"}))
      ->capture_default_str();
}

void add_run_flags(CLI::App& command, SummarizeFlags& flags) {
  command.add_option("--batch-size,--batch_size", flags.batch_size, "Articles at once")
      ->capture_default_str();
  command.add_option("--max-ite,--max_ite", flags.max_ite, "Batches to run; 0: the whole data set")
      ->capture_default_str();
  command.add_option("--output-len,--output_len,-n", flags.output_len, "Most tokens of a summary")
      ->capture_default_str();
  command
      .add_option("--top-k,--top_k", flags.top_k,
                  "1: the most likely token (greedy); else choose among the K most likely; 0: all")
      ->capture_default_str();
  command.add_option("--temperature", flags.temperature, "Default: 1, or with --top-k 1 greedy");
  command
      .add_option("--top-p", flags.top_p,
                  "Choose among the fewest tokens whose probabilities reach P")
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "Same seed and settings: same text")
      ->capture_default_str();
  command.add_option("--num-beams,--num_beams", flags.num_beams, "Only 1: there is no beam search")
      ->capture_default_str();
}

void add_result_flags(CLI::App& command, SummarizeFlags& flags) {
  command.add_option("--output,-o", flags.output,
                     "Predictions file to write, a line for each finished article");
  command.add_flag("--resume", flags.resume, "Continue --output where it ends");
  command.add_flag("--force", flags.force, "Replace --output when it exists");
  command.add_option("--reference", flags.reference,
                     "Predictions of another program for the same prompts, to score beside; "
                     "tools/hf_reference.py makes them");
  command.add_flag("--use-stemmer", flags.use_stemmer, "ROUGE of Porter stems (2023 did not)");
  command.add_flag("--check-accuracy,--check_accuracy", flags.check_accuracy,
                   "Exit status 1 unless ROUGE-1 is above the threshold");
  command
      .add_option("--rouge1-threshold,--rouge1_threshold,--tensorrt_llm_rouge1_threshold",
                  flags.rouge1_threshold, "For --check-accuracy: 100 x F of ROUGE-1")
      ->capture_default_str();
  command.add_flag("--json", flags.is_json, "Print the report as one JSON object");
}

}  // namespace

void add_summarize_command(CLI::App& app) {
  auto flags = std::make_shared<SummarizeFlags>();
  CLI::App* command = app.add_subcommand(
      "summarize",
      "Summarize the articles of a data set and score the summaries with ROUGE, alone or beside "
      "another program's for the same prompts");
  flags->model.add_to(*command, false);
  add_data_flags(*command, *flags);
  add_prompt_flags(*command, *flags);
  add_run_flags(*command, *flags);
  add_result_flags(*command, *flags);
  flags->legacy.add_to(*command);
  command->callback([flags] { run_summarize(*flags); });
}

}  // namespace caravan
