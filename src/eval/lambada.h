#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "eval/score.h"
#include "eval/statistics.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

/// One passage of LAMBADA: the model reads ids and should continue its context with the last
/// num_target tokens of it.
struct LambadaItem {
  std::vector<int32_t> ids;  // context and target, what does not fit cut off at the front
  int64_t num_target = 0;
};

/// The text up to the last space, and the last word with that space before it. Whitespace that ends
/// the context belongs to the target; without a space all of it is the target.
/// Source: lm-evaluation-harness, lambada_openai and TemplateLM._encode_pair.
std::pair<std::string_view, std::string_view> split_lambada(std::string_view text);

/// The target's tokens are those of the whole text that follow as many as the context alone has;
/// eos_id (-1: there is none) stands for an empty context, a text without a space gets one before
/// it. The last max_seq_len + 1 tokens are kept.
/// Errors: kInvalidArgument naming `where` for an empty text and when no token is left to predict
/// or to predict from.
LambadaItem make_lambada_item(const Tokenizer& tokenizer, std::string_view text, int32_t eos_id,
                              int64_t max_seq_len, const std::string& where);

struct LambadaResult {
  double log_prob = 0;      // of the target's tokens together, nats
  bool is_correct = false;  // each of them is the most likely one after those before it
};

struct LambadaReport {
  int64_t num_items = 0;
  int64_t num_correct = 0;
  int64_t num_target_tokens = 0;
  int64_t num_fed = 0;
  Estimate accuracy;    // error: sample standard deviation / sqrt(n)
  Estimate log_prob;    // mean of a target, likewise
  Estimate perplexity;  // exp(-mean log_prob) of a target, not of a token; delta method
};

/// Teacher forced: the model reads the target's tokens as they are. on_progress gets the number of
/// items that were done since its last call; results, when given, the result of each item.
/// Errors: as Scorer::run; kInvalidArgument without items.
LambadaReport measure_lambada(Scorer& scorer, std::span<const LambadaItem> items,
                              const std::function<void(int64_t)>& on_progress = nullptr,
                              std::vector<LambadaResult>* results = nullptr);

boost::json::object lambada_json(const LambadaReport& report);

}  // namespace caravan
