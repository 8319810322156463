#include "eval/summarize.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "core/log.h"

namespace caravan {

namespace {

Prediction make_prediction(const SummaryItem& item, const Completion& completion,
                           const SummarizeSettings& settings) {
  Prediction prediction;
  prediction.id = item.id;
  prediction.index = item.index;
  prediction.prompt_ids = item.prompt_ids;
  prediction.output_ids = completion.output_ids;
  prediction.text =
      settings.is_trtllm_2023 ? clean_up_tokenization(completion.text) : completion.text;
  prediction.reference = item.reference;
  prediction.num_dropped_tokens = item.num_dropped_tokens;
  prediction.finish_reason = completion.finish_reason == FinishReason::kStop ? "stop" : "length";
  return prediction;
}

size_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                             a.begin());
}

/// "token 3 is 17, expected 18", of two lists that differ.
std::string first_difference(std::span<const int32_t> got, std::span<const int32_t> wanted) {
  const size_t i = common_prefix(got, wanted);
  if (i == got.size() || i == wanted.size()) {
    return fmt::format("{} tokens, expected {}", got.size(), wanted.size());
  }
  return fmt::format("token {} of {} is {}, expected {}", i, got.size(), got[i], wanted[i]);
}

bool has_unique_ids(const std::vector<DatasetRow>& rows) {
  std::set<std::string_view> seen;
  return std::all_of(rows.begin(), rows.end(), [&](const DatasetRow& row) {
    return !row.id.empty() && seen.insert(row.id).second;
  });
}

}  // namespace

int64_t summary_input_limit(int64_t wanted, int64_t num_positions, int64_t sequence_limit,
                            int64_t output_len, bool is_trtllm_2023) {
  constexpr int64_t kShortModel = 1024;
  const int64_t room = sequence_limit - output_len;
  CARAVAN_CHECK(room >= 1, "--output-len {} leaves no room for a prompt within {} tokens",
                output_len, sequence_limit);
  if (is_trtllm_2023) {
    CARAVAN_CHECK(wanted == 0 || wanted == kTrtllm2023MaxInputLen,
                  "--max-input-len {} with --compat trtllm-2023, which is {}", wanted,
                  kTrtllm2023MaxInputLen);
    CARAVAN_CHECK(
        kTrtllm2023MaxInputLen <= room,
        "--compat trtllm-2023 sends prompts of {} tokens; with --output-len {} at most {} "
        "fit in {}",
        kTrtllm2023MaxInputLen, output_len, room, sequence_limit);
    return kTrtllm2023MaxInputLen;
  }
  if (wanted > 0) return std::min(room, wanted);
  return num_positions <= kShortModel ? std::min(room, kTrtllm2023MaxInputLen) : room;
}

std::vector<SummaryItem> make_summary_items(const std::vector<DatasetRow>& rows,
                                            const Tokenizer& tokenizer,
                                            const SummarizeSettings& settings, int64_t max_length) {
  std::vector<SummaryItem> items;
  items.reserve(rows.size());
  const bool has_ids = has_unique_ids(rows);
  if (!has_ids) log_warning("the data set's ids are empty or repeat: row numbers take their place");
  for (const DatasetRow& row : rows) {
    SummaryItem item;
    item.index = static_cast<int64_t>(items.size());
    item.id = has_ids ? row.id : std::to_string(item.index);
    item.reference = row.summary;
    const bool is_camel = settings.prompt_template == SummarizeSettings::Template::kCamel;
    const SummaryPrompt prompt = is_camel ? camel_summary_prompt(settings.instruction, row.article)
                                          : tldr_prompt(row.article);
    if (settings.is_trtllm_2023) {
      Trtllm2023Prompts prompts = trtllm_2023_prompts(tokenizer, prompt.text, max_length);
      item.num_dropped_tokens = prompts.num_dropped;
      item.prompt_ids = std::move(prompts.ids);
      item.hf_prompt_ids = std::move(prompts.hf_ids);
    } else {
      FittedPrompt fitted =
          fit_prompt(tokenizer, prompt, settings.max_input_len, settings.overflow);
      item.num_dropped_tokens = fitted.num_dropped;
      item.prompt_ids = std::move(fitted.ids);
    }
    items.push_back(std::move(item));
  }
  return items;
}

ResultSettings summary_settings(const ModelDir& dir, const LlmOptions& options,
                                const SummarizeSettings& settings) {
  const SamplingParams& sampling = settings.sampling;
  boost::json::object all = model_identity(dir.path);
  all["--dtype"] = options.dtype;
  all["--kv-cache-dtype"] = options.kv_cache_dtype;
  all["--device"] = options.device.substr(0, options.device.find(':'));
  all["--cpu-isa"] = options.cpu_isa;
  all["--template"] = static_cast<int>(settings.prompt_template);
  all["--instruction"] = settings.instruction;
  all["--overflow"] = static_cast<int>(settings.overflow);
  all["--max-input-len"] = settings.max_input_len;
  all["--compat"] = settings.is_trtllm_2023;
  all["--output-len"] = sampling.max_output_len;
  all["--temperature"] = static_cast<double>(sampling.temperature);
  all["--top-k"] = sampling.top_k;
  all["--top-p"] = static_cast<double>(sampling.top_p);
  all["--repetition-penalty"] = static_cast<double>(sampling.repetition_penalty);
  all["--seed"] = sampling.seed;
  return ResultSettings(all);
}

double SummarizeRun::seconds() const {
  return std::accumulate(batch_seconds.begin(), batch_seconds.end(), 0.0);
}

double SummarizeRun::output_tokens_per_second() const {
  return seconds() > 0 ? static_cast<double>(num_output_tokens) / seconds() : 0;
}

SummarizeRun run_summaries(Llm& llm, std::span<const SummaryItem> items, int64_t batch_size,
                           const SummarizeSettings& settings, PredictionLog& log,
                           const std::function<void(int64_t num_articles)>& on_progress) {
  CARAVAN_CHECK(batch_size >= 1, "--batch-size {}, expected at least 1", batch_size);
  using Clock = std::chrono::steady_clock;
  SummarizeRun run;
  run.predictions = log.finished();
  run.num_resumed = static_cast<int64_t>(run.predictions.size());
  while (run.predictions.size() < items.size()) {
    const size_t first = run.predictions.size();
    const auto size = static_cast<size_t>(batch_size);
    const size_t last = std::min(items.size(), (first / size + 1) * size);
    const auto batch = items.subspan(first, last - first);
    std::vector<std::vector<int32_t>> prompts;
    for (const SummaryItem& item : batch) prompts.push_back(item.prompt_ids);
    const Clock::time_point start = Clock::now();
    const std::vector<Completion> completions = llm.generate(prompts, {settings.sampling});
    run.batch_seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    for (size_t i = 0; i < batch.size(); ++i) {
      run.predictions.push_back(make_prediction(batch[i], completions[i], settings));
      run.num_prompt_tokens += completions[i].timings.num_prompt_tokens;
      run.num_output_tokens += completions[i].timings.num_output_tokens;
      log.append(batch[i], run.predictions.back());
    }
    if (on_progress) on_progress(static_cast<int64_t>(batch.size()));
  }
  return run;
}

RougeIntervals score_summaries(std::span<const SummaryItem> items,
                               std::span<const Prediction> predictions, bool use_stemmer) {
  CARAVAN_CHECK(items.size() == predictions.size(), "{} predictions of {} articles",
                predictions.size(), items.size());
  const RougeScorer scorer(use_stemmer);
  std::vector<RougeScores> scores;
  for (size_t i = 0; i < items.size(); ++i) {
    scores.push_back(scorer.score(items[i].reference, predictions[i].text));
  }
  return aggregate_rouge(scores);
}

std::vector<Prediction> match_reference(std::span<const SummaryItem> items,
                                        std::vector<Prediction> reference,
                                        const std::string& path) {
  const bool has_ids = !reference.empty() && !reference.front().id.empty();
  std::map<std::string, size_t> places;
  for (size_t i = 0; i < reference.size(); ++i) places.emplace(reference[i].id, i);
  std::vector<Prediction> matched;
  for (size_t i = 0; i < items.size(); ++i) {
    const SummaryItem& item = items[i];
    const auto place = has_ids ? places.find(item.id) : places.end();
    const size_t row = has_ids ? (place == places.end() ? reference.size() : place->second) : i;
    CARAVAN_CHECK(row < reference.size(),
                  "{}: no prediction for article {} (\"{}\"): it was made from another data set, "
                  "or from less of it",
                  path, item.index, printable(item.id));
    const Prediction& theirs = reference[row];
    const std::vector<int32_t>& wanted =
        item.hf_prompt_ids.empty() ? item.prompt_ids : item.hf_prompt_ids;
    CARAVAN_CHECK(
        theirs.prompt_ids.has_value(),
        "{}:{}: no \"prompt_ids\", so nobody knows what this side was given: make it with "
        "tools/hf_reference.py --prompts, or compare texts with `caravan rouge`",
        path, theirs.line);
    CARAVAN_CHECK(*theirs.prompt_ids == wanted,
                  "{}:{}: other prompt_ids than this run's for article {} (\"{}\"): {}. Both sides "
                  "must be given the same tokens: make it from this run's --output with "
                  "tools/hf_reference.py --prompts",
                  path, theirs.line, item.index, printable(item.id),
                  first_difference(*theirs.prompt_ids, wanted));
    matched.push_back(theirs);
  }
  return matched;
}

std::optional<SummaryAgreement> compare_outputs(std::span<const Prediction> ours,
                                                std::span<const Prediction> theirs) {
  SummaryAgreement agreement;
  agreement.num_articles = static_cast<int64_t>(ours.size());
  if (ours.empty() || ours.size() != theirs.size()) return std::nullopt;
  for (size_t i = 0; i < ours.size(); ++i) {
    if (!ours[i].output_ids || !theirs[i].output_ids) return std::nullopt;
    const std::vector<int32_t>& a = *ours[i].output_ids;
    const std::vector<int32_t>& b = *theirs[i].output_ids;
    if (a == b) ++agreement.num_equal;
    agreement.mean_common_prefix += static_cast<double>(common_prefix(a, b));
    agreement.mean_output_len += static_cast<double>(std::min(a.size(), b.size()));
  }
  agreement.mean_common_prefix /= static_cast<double>(ours.size());
  agreement.mean_output_len /= static_cast<double>(ours.size());
  return agreement;
}

}  // namespace caravan
