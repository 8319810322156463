#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "eval/comparison.h"
#include "eval/logits_dump.h"
#include "eval/score.h"
#include "eval/statistics.h"
#include "eval/token_windows.h"

namespace caravan {

/// Size of a text, for figures that do not depend on the tokenizer.
struct TextSize {
  int64_t num_tokens = 0;  // tokens put before or between documents by us not counted
  int64_t num_bytes = 0;
  int64_t num_words = 0;

  TextSize& operator+=(const TextSize& other);
};

/// Words as lm-evaluation-harness counts them: parts of the text between runs of whitespace
/// (len(re.split(r"\s+", text)), so an empty part at either end is one too).
int64_t count_words(std::string_view text);

struct PerplexityReport {
  int64_t num_windows = 0;
  int64_t num_fed = 0;     // tokens that the model read
  int64_t num_scored = 0;  // tokens whose probability was measured
  Estimate nll;            // mean of the scored tokens, nats; the error is over windows (BlockMean)
  Estimate perplexity;     // exp(nll), delta method
  std::optional<ComparisonReport> comparison;  // with a dump

  /// The figures of a text whose tokens all cost nll: nats -> bits a byte, perplexity of a byte and
  /// of a word. Equal to lm-evaluation-harness's when every token was scored.
  double bits_per_byte(const TextSize& text) const;
  double byte_perplexity(const TextSize& text) const;
  double word_perplexity(const TextSize& text) const;
};

struct PerplexityOptions {
  LogitsDumpWriter* dump = nullptr;  // gets every row of every window
  LogitsDump* against = nullptr;     // check_same_input() was called; its scored rows are compared
  std::function<void(int64_t num_tokens)> on_progress = nullptr;  // tokens fed since the last call
};

/// Perplexity of tokenized documents, windows as token_windows.h makes them; sums are in double.
/// documents: ids of each; windows[i].document is an index into them.
/// Errors: kInvalidArgument when there are no windows, or as Scorer::run.
PerplexityReport measure_perplexity(Scorer& scorer,
                                    const std::vector<std::vector<int32_t>>& documents,
                                    std::span<const TokenWindow> windows,
                                    const PerplexityOptions& options = {});

/// What a dump of these windows begins with; logits come from PerplexityOptions::dump.
/// Errors: kInvalidArgument when there are more tokens than its int32 indices can count.
LogitsDumpWriter::Contents dump_contents(const std::vector<std::vector<int32_t>>& documents,
                                         std::span<const TokenWindow> windows, int64_t vocab_size,
                                         DType dtype);

/// Errors: kInvalidArgument naming the first difference when the dump was not made of these windows
/// and this vocabulary.
void check_same_input(const LogitsDump& dump, const std::vector<std::vector<int32_t>>& documents,
                      std::span<const TokenWindow> windows, int64_t vocab_size);

boost::json::object perplexity_json(const PerplexityReport& report, const TextSize& text);

}  // namespace caravan
