#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "apps/text_data.h"
#include "backend/create_backend.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "core/output_paths.h"
#include "core/progress.h"
#include "eval/perplexity.h"
#include "format/model_dir.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

namespace {

struct PerplexityFlags {
  ModelFlags model;
  TextDataFlags data;
  int64_t window = 0;
  int64_t stride = 0;
  int64_t max_tokens = 0;
  int64_t max_num_batched_tokens = 0;
  bool is_rolling = false;
  bool is_joined = false;
  bool parse_special = false;
  std::string dump;
  std::string dump_dtype = "float32";
  std::string against;
  bool is_json = false;
};

struct TokenizedText {
  std::vector<std::vector<int32_t>> documents;
  TextSize size;  // of the documents that are scored
  int64_t num_skipped = 0;
};

/// A token that stands where there is no text: before the first, between two documents.
int32_t boundary_token(const ModelConfig& config, const char* flag) {
  if (config.bos_token_id >= 0) return config.bos_token_id;
  CARAVAN_CHECK(!config.eos_token_ids.empty(),
                "{}: the model's config.json names no bos_token_id and no eos_token_id", flag);
  return config.eos_token_ids.front();
}

TokenizedText tokenize(const PerplexityFlags& flags, const ModelConfig& config) {
  const std::vector<TextDocument> texts = flags.data.read();
  const Tokenizer tokenizer = Tokenizer::from_directory(flags.model.model);
  // Tokens put before the text so that its first one is predicted from something.
  const int64_t num_prefix = flags.is_rolling ? 1 : 0;
  TokenizedText result;
  for (const TextDocument& text : texts) {
    std::vector<int32_t> ids = tokenizer.encode(text.text, {.parse_special = flags.parse_special});
    TextSize size{static_cast<int64_t>(ids.size()), static_cast<int64_t>(text.text.size()),
                  count_words(text.text)};
    const int64_t left = flags.max_tokens - result.size.num_tokens;
    if (flags.max_tokens > 0 && size.num_tokens > left) {
      ids.resize(static_cast<size_t>(std::max<int64_t>(left, 0)));
      const std::string kept = tokenizer.decode(ids);
      size = {static_cast<int64_t>(ids.size()), static_cast<int64_t>(kept.size()),
              count_words(kept)};
    }
    const int64_t least = flags.is_joined ? 1 : 2 - num_prefix;
    if (size.num_tokens < least) {
      if (flags.max_tokens == 0 || left >= least) ++result.num_skipped;
      continue;
    }
    result.size += size;
    if (flags.is_joined && !result.documents.empty()) {
      std::vector<int32_t>& joined = result.documents.front();
      joined.push_back(boundary_token(config, "--join"));
      joined.insert(joined.end(), ids.begin(), ids.end());
      continue;
    }
    if (num_prefix == 1) ids.insert(ids.begin(), boundary_token(config, "--rolling"));
    result.documents.push_back(std::move(ids));
  }
  const size_t least = 2;
  CARAVAN_CHECK_CODE(
      !result.documents.empty() && result.documents.front().size() >= least, kCorrupt,
      "{}: fewer than 2 tokens in every document: there is nothing to predict", flags.data.data);
  if (result.num_skipped > 0) {
    log_warning("{} documents of fewer than {} tokens are left out", result.num_skipped,
                2 - num_prefix);
  }
  return result;
}

std::vector<TokenWindow> make_windows(const PerplexityFlags& flags, const TokenizedText& text,
                                      int64_t window, int64_t stride) {
  std::vector<TokenWindow> windows;
  for (size_t d = 0; d < text.documents.size(); ++d) {
    const auto document = static_cast<int64_t>(d);
    const auto num_tokens = static_cast<int64_t>(text.documents[d].size());
    const auto more = flags.is_rolling ? rolling_windows(document, num_tokens, window)
                                       : sliding_windows(document, num_tokens, window, stride);
    windows.insert(windows.end(), more.begin(), more.end());
  }
  return windows;
}

std::string with_error(const Estimate& estimate, int digits, double factor = 1) {
  return fmt::format("{:.{}f} +/- {:.{}f}", factor * estimate.value, digits,
                     factor * estimate.standard_error, digits);
}

void print_report(const PerplexityReport& report, const TextSize& text) {
  std::printf("perplexity       %s\n", with_error(report.perplexity, 4).c_str());
  std::printf("nll              %s nats a token\n", with_error(report.nll, 6).c_str());
  std::printf("bits a byte      %.6f\n", report.bits_per_byte(text));
  std::printf("byte perplexity  %.6f\n", report.byte_perplexity(text));
  std::printf("word perplexity  %.6g\n", report.word_perplexity(text));
  std::printf("scored           %ld of %ld tokens, %ld bytes, %ld words, in %ld windows\n",
              report.num_scored, text.num_tokens, text.num_bytes, text.num_words,
              report.num_windows);
  if (!report.comparison) return;
  const ComparisonReport& c = *report.comparison;
  std::printf("\nagainst the dump, %ld tokens\n", c.num_tokens);
  std::printf("KL(dump || model) mean %.4e +/- %.1e  median %.4e  p99 %.4e  max %.4e nats\n",
              c.kl_mean.value, c.kl_mean.standard_error, c.kl_median, c.kl_p99, c.kl_max);
  std::printf("same top token    %s %%\n", with_error(c.top1_agreement, 3, 100).c_str());
  std::printf("|log p change|    %.4e +/- %.1e nats\n", c.log_prob_change.value,
              c.log_prob_change.standard_error);
  std::printf("dump's perplexity %s\n", with_error(c.reference_perplexity, 4).c_str());
  std::printf("change            %s  (%.4f +/- %.4f %%)\n",
              with_error(c.perplexity_change, 4).c_str(), 100 * (c.perplexity_ratio.value - 1),
              100 * c.perplexity_ratio.standard_error);
}

struct Limits {
  int64_t window = 0;
  int64_t stride = 0;
};

Limits check_flags(const PerplexityFlags& flags, int64_t limit) {
  CARAVAN_CHECK(flags.window >= 0 && flags.window <= limit && flags.window != 1,
                "--window {}: expected 2 to {}, what the model takes", flags.window, limit);
  const int64_t window = flags.window > 0 ? flags.window : limit;
  CARAVAN_CHECK(flags.stride >= 0 && flags.stride <= window,
                "--stride {}: expected 1 to the window, {}", flags.stride, window);
  CARAVAN_CHECK(flags.stride == 0 || !flags.is_rolling,
                "--rolling has a stride of its own: leave out --stride");
  CARAVAN_CHECK(flags.max_tokens >= 0, "--max-tokens {}: expected at least 1", flags.max_tokens);
  CARAVAN_CHECK(flags.max_num_batched_tokens >= 0,
                "--max-num-batched-tokens {}: expected at least 1", flags.max_num_batched_tokens);
  CARAVAN_CHECK(flags.dump.empty() || flags.dump.ends_with(".safetensors"),
                "--dump {}: expected a name that ends in .safetensors", flags.dump);
  check_output_file(
      "--dump", flags.dump,
      {{"--model", flags.model.model}, {"--data", flags.data.data}, {"--against", flags.against}});
  return {window, flags.stride > 0 ? flags.stride : window};
}

/// Prints the report and says whether its figures are numbers.
int run_perplexity(const PerplexityFlags& flags) {
  const ModelDir dir = open_model_dir(flags.model.model);
  const auto [window, stride] = check_flags(flags, ModelRunner::sequence_limit(dir, 0));
  const std::optional<DType> dump_dtype = parse_dtype(flags.dump_dtype);
  const TokenizedText text = tokenize(flags, dir.config);
  const std::vector<TokenWindow> windows = make_windows(flags, text, window, stride);
  const int64_t vocab_size = dir.config.vocab_size;
  std::optional<LogitsDump> against;
  if (!flags.against.empty()) {
    against.emplace(LogitsDump::open(flags.against));
    check_same_input(*against, text.documents, windows, vocab_size);
  }

  int64_t longest = 0;
  for (const TokenWindow& w : windows) longest = std::max(longest, w.num_tokens());
  const bool is_cpu = flags.model.device == "cpu";
  const int64_t step = flags.max_num_batched_tokens > 0 ? flags.max_num_batched_tokens
                       : is_cpu                         ? 512
                                                        : 4096;
  // A step holds the whole windows that fit and parts of one before and one after them.
  const auto num_seqs = std::min({static_cast<int64_t>(windows.size()),
                                  is_cpu ? int64_t{16} : int64_t{64}, step / longest + 2});
  const ModelRunnerOptions options{.dtype = dtype_flag(flags.model.dtype, "--dtype"),
                                   .kv_cache_dtype = kv_dtype_flag(flags.model.kv_cache_dtype),
                                   .max_num_batched_tokens = step,
                                   .max_num_logits = is_cpu ? 64 : 256,
                                   .max_seq_len = longest,
                                   .max_batch_size = num_seqs,
                                   .verify_weights = !flags.model.skips_verification};
  check_memory(dir, flags.model, options);
  ModelRunner runner(dir, create_backend(flags.model.backend()), options);
  Scorer scorer(runner);

  std::optional<LogitsDumpWriter> dump;
  if (!flags.dump.empty()) {
    const auto contents = dump_contents(text.documents, windows, vocab_size, *dump_dtype);
    const int64_t num_bytes =
        LogitsDumpWriter::num_bytes(static_cast<int64_t>(contents.input_ids.size()),
                                    static_cast<int64_t>(windows.size()), vocab_size, *dump_dtype);
    log_info("{}: {:.3f} GB of {} logits, {} tokens x {}", flags.dump,
             static_cast<double>(num_bytes) / 1e9, flags.dump_dtype, contents.input_ids.size(),
             vocab_size);
    dump.emplace(flags.dump, contents);
  }
  uint64_t num_fed = 0;
  for (const TokenWindow& w : windows) num_fed += static_cast<uint64_t>(w.num_tokens());
  Progress progress("perplexity", num_fed, "tokens");
  const auto start = std::chrono::steady_clock::now();
  const PerplexityReport report = measure_perplexity(
      scorer, text.documents, windows,
      {.dump = dump ? &*dump : nullptr,
       .against = against ? &*against : nullptr,
       .on_progress = [&](int64_t n) { progress.add(static_cast<uint64_t>(n)); }});
  progress.finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (dump) dump->finish();
  const double rate = static_cast<double>(report.num_fed) / seconds;
  log_info("{} tokens in {:.1f} s, {:.0f} tokens/s, on {}", report.num_fed, seconds, rate,
           runner.backend().description());
  const bool is_finite = std::isfinite(report.nll.value);
  if (!is_finite) log_warning("the model's logits are not finite: there is no perplexity");
  if (!flags.is_json) {
    print_report(report, text.size);
    return is_finite ? 0 : 1;
  }
  boost::json::object json = perplexity_json(report, text.size);
  json["model"] = flags.model.model;
  json["data"] = flags.data.data;
  json["dtype"] = dtype_name(runner.model().weight_dtype());
  json["kv_cache_dtype"] = dtype_name(runner.cache().dtype());
  json["device"] = runner.backend().description();
  json["window"] = window;
  json["stride"] = stride;
  json["rolling"] = flags.is_rolling;
  json["num_documents"] = text.documents.size();
  json["num_skipped_documents"] = text.num_skipped;
  json["seconds"] = seconds;
  json["tokens_per_second"] = rate;
  std::printf("%s\n", to_json_text(json).c_str());
  return is_finite ? 0 : 1;
}

}  // namespace

void add_perplexity_command(CLI::App& app) {
  auto flags = std::make_shared<PerplexityFlags>();
  CLI::App* command = app.add_subcommand(
      "perplexity",
      "Perplexity of a text, with its standard error; with --against also how far the "
      "distributions are from those of another engine");
  flags->model.add_to(*command);
  flags->data.add_to(*command, "Plain text or JSON Lines file to score");
  command
      ->add_option("--window,-w", flags->window,
                   "Tokens that the model sees at once; 0: as many as it takes")
      ->capture_default_str();
  command
      ->add_option("--stride", flags->stride,
                   "Tokens from one window's start to the next one's; each window scores only what "
                   "those before it did not hold. 0: the window, so that none overlap")
      ->capture_default_str();
  command->add_flag("--rolling", flags->is_rolling,
                    "Score every token, as lm-evaluation-harness does: the text begins after an "
                    "end-of-text token and windows overlap by one token");
  command
      ->add_option("--max-tokens", flags->max_tokens,
                   "Score the first N tokens of the data; 0: all")
      ->capture_default_str();
  command->add_flag("--join", flags->is_joined,
                    "Score all documents as one, end-of-text tokens between them");
  command->add_flag("--parse-special", flags->parse_special,
                    "\"<|endoftext|>\" and the like in the text are the tokens they name");
  command
      ->add_option("--max-num-batched-tokens", flags->max_num_batched_tokens,
                   "Tokens of one step; 0: 512 on the CPU, 4096 on a GPU. Changes no result")
      ->capture_default_str();
  command->add_option("--dump", flags->dump,
                      "Write the logits of every token to this safetensors file");
  command->add_option("--dump-dtype", flags->dump_dtype, "float32 or float16")
      ->check(CLI::IsMember({"float32", "float16"}))
      ->capture_default_str();
  command->add_option("--against", flags->against,
                      "Compare with the logits in this file, made by --dump or by "
                      "tools/hf_reference.py from the same data");
  command->add_flag("--json", flags->is_json, "One JSON object instead of lines");
  command->callback([flags] {
    const int status = run_perplexity(*flags);
    if (status != 0) throw CLI::RuntimeError(status);
  });
}

}  // namespace caravan
