#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "caravan/llm.h"
#include "eval/dataset.h"
#include "eval/prediction_log.h"
#include "eval/predictions.h"
#include "eval/rouge.h"
#include "eval/summary_prompt.h"
#include "format/model_dir.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

/// What is asked of the model, and how.
struct SummarizeSettings {
  enum class Template : uint8_t { kTldr, kCamel };
  Template prompt_template = Template::kTldr;
  std::string instruction = "Summarize the article.";  // of kCamel
  Overflow overflow = Overflow::kTail;
  int64_t max_input_len = kTrtllm2023MaxInputLen;  // tokens of a prompt
  SamplingParams sampling;
  /// The recipe of TensorRT-LLM's examples/gpt/summarize.py of July 2023: prompts of
  /// trtllm_2023_prompts, predictions through clean_up_tokenization.
  bool is_trtllm_2023 = false;
};

/// The prompt length that `wanted` (0: the default) and the model leave: at most
/// sequence_limit - output_len, by default 923 where the model has 1024 positions or fewer, as in
/// 2023; the 2023 recipe is 923 and nothing else. Errors: kInvalidArgument when nothing is left.
int64_t summary_input_limit(int64_t wanted, int64_t num_positions, int64_t sequence_limit,
                            int64_t output_len, bool is_trtllm_2023);

/// The prompts of a data set, in order. Ids that are empty or repeat give way to row numbers, with
/// a warning: predictions are matched by id. model_max_length: for the 2023 recipe
/// (summary_prompt.h). Errors: kInvalidArgument naming the article whose prompt cannot be made to
/// fit.
std::vector<SummaryItem> make_summary_items(const std::vector<DatasetRow>& rows,
                                            const Tokenizer& tokenizer,
                                            const SummarizeSettings& settings,
                                            int64_t model_max_length);

/// Whatever may change a prediction, by the names of the flags: the model, how it computes (dtypes,
/// device), the settings. Not the batch size or the number of threads, which change no bit.
ResultSettings summary_settings(const ModelDir& dir, const LlmOptions& options,
                                const SummarizeSettings& settings);

struct SummarizeRun {
  std::vector<Prediction> predictions;  // of all items, those of a continued file included
  int64_t num_resumed = 0;              // taken from the file; the figures below are of the others
  int64_t num_prompt_tokens = 0;
  int64_t num_output_tokens = 0;
  std::vector<double> batch_seconds;  // wall time of each batch, in order

  double seconds() const;
  double output_tokens_per_second() const;
};

/// Runs the items in batches of batch_size through the engine and appends each prediction to the
/// log. A batch that a continued file stops within is completed first. on_progress is told of each
/// batch's number of articles when it is done.
SummarizeRun run_summaries(Llm& llm, std::span<const SummaryItem> items, int64_t batch_size,
                           const SummarizeSettings& settings, PredictionLog& log,
                           const std::function<void(int64_t num_articles)>& on_progress);

/// ROUGE of predictions against the items' references: intervals of the bootstrap of rouge_score,
/// seed 0.
RougeIntervals score_summaries(std::span<const SummaryItem> items,
                               std::span<const Prediction> predictions, bool use_stemmer);

/// How the outputs of two sides compare, token by token.
struct SummaryAgreement {
  int64_t num_articles = 0;
  int64_t num_equal = 0;          // token by token, to the end
  double mean_common_prefix = 0;  // tokens
  double mean_output_len = 0;     // tokens, of the shorter output
};

/// The other side's predictions for the same items, in their order. They must have been made from
/// the same token ids (with the 2023 recipe: from hf_prompt_ids).
/// Errors: kInvalidArgument when an item has no prediction there, or other or no prompt_ids;
/// naming the file, the line and the first token that differs.
std::vector<Prediction> match_reference(std::span<const SummaryItem> items,
                                        std::vector<Prediction> reference, const std::string& path);

/// nullopt when the other side stored no output_ids.
std::optional<SummaryAgreement> compare_outputs(std::span<const Prediction> ours,
                                                std::span<const Prediction> theirs);

}  // namespace caravan
