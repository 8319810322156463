#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "eval/distributions.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace {

// What Python's str.isspace() and \s accept.
bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::span<const int32_t> fed_ids(const std::vector<std::vector<int32_t>>& documents,
                                 const TokenWindow& window) {
  return std::span(documents[static_cast<size_t>(window.document)])
      .subspan(static_cast<size_t>(window.begin), static_cast<size_t>(window.num_tokens()));
}

/// Turns rows of logits into the report, window after window.
class Measurement {
 public:
  Measurement(const std::vector<std::vector<int32_t>>& documents,
              std::span<const TokenWindow> windows, const PerplexityOptions& options)
      : documents_(documents), windows_(windows), options_(options) {
    first_dump_row_.reserve(windows.size());
    for (const TokenWindow& window : windows) {
      first_dump_row_.push_back(report_.num_fed);
      report_.num_fed += window.num_tokens();
      report_.num_scored += window.num_targets();
    }
    report_.num_windows = static_cast<int64_t>(windows.size());
  }

  void add(std::span<const LogitsRow> rows) {
    tokens_.resize(rows.size());
#pragma omp parallel
    {
      std::vector<float> reference;  // [vocab_size]
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < rows.size(); ++i) {
        if (is_scored(rows[i])) tokens_[i] = measure(rows[i], reference);
      }
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      if (options_.dump != nullptr) options_.dump->write_row(rows[i].logits);
      if (is_scored(rows[i])) collect(rows[i], tokens_[i]);
    }
  }

  PerplexityReport report() {
    report_.nll = nll_.mean();
    report_.perplexity = exp_of(report_.nll);
    if (options_.against != nullptr) report_.comparison = comparison_.report();
    return report_;
  }

 private:
  const TokenWindow& window_of(const LogitsRow& row) const {
    return windows_[static_cast<size_t>(row.request)];
  }
  bool is_scored(const LogitsRow& row) const {
    const TokenWindow& window = window_of(row);
    return row.row >= window.first_row() && row.row < window.end_row();
  }

  TokenComparison measure(const LogitsRow& row, std::vector<float>& reference) const {
    const TokenWindow& window = window_of(row);
    const int32_t target = documents_[static_cast<size_t>(window.document)]
                                     [static_cast<size_t>(window.begin + row.row + 1)];
    if (options_.against == nullptr) {
      const double logit = row.logits[static_cast<size_t>(target)];
      return {.log_prob = logit - logsumexp(row.logits)};
    }
    reference.resize(row.logits.size());
    options_.against->read_row(dump_row(row), reference);
    return compare_token(reference, row.logits, target);
  }

  void collect(const LogitsRow& row, const TokenComparison& token) {
    window_nll_ -= token.log_prob;
    if (options_.against != nullptr) comparison_.add(token);
    const TokenWindow& window = window_of(row);
    if (row.row + 1 < window.end_row()) return;
    nll_.add(window_nll_, static_cast<double>(window.num_targets()));
    window_nll_ = 0;
    if (options_.against != nullptr) {
      comparison_.end_block();
      options_.against->release_before(dump_row(row) + 1);
    }
    if (options_.on_progress) options_.on_progress(window.num_tokens());
  }

  int64_t dump_row(const LogitsRow& row) const {
    return first_dump_row_[static_cast<size_t>(row.request)] + row.row;
  }

  const std::vector<std::vector<int32_t>>& documents_;
  std::span<const TokenWindow> windows_;
  const PerplexityOptions& options_;
  std::vector<int64_t> first_dump_row_;  // of each window
  std::vector<TokenComparison> tokens_;
  PerplexityReport report_;
  BlockMean nll_;
  double window_nll_ = 0;
  ComparisonMeter comparison_;
};

}  // namespace

TextSize& TextSize::operator+=(const TextSize& other) {
  num_tokens += other.num_tokens;
  num_bytes += other.num_bytes;
  num_words += other.num_words;
  return *this;
}

int64_t count_words(std::string_view text) {
  int64_t num_runs = 0;
  bool was_space = false;
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = decode_utf8(text, i);
    const bool is_now = c.state == Utf8Char::State::kValid && is_space(c.code_point);
    if (is_now && !was_space) ++num_runs;
    was_space = is_now;
    i += c.num_bytes;
  }
  return num_runs + 1;
}

double PerplexityReport::bits_per_byte(const TextSize& text) const {
  return nll.value * static_cast<double>(text.num_tokens) / static_cast<double>(text.num_bytes) /
         std::log(2.0);
}

double PerplexityReport::byte_perplexity(const TextSize& text) const {
  return std::exp2(bits_per_byte(text));
}

double PerplexityReport::word_perplexity(const TextSize& text) const {
  return std::exp(nll.value * static_cast<double>(text.num_tokens) /
                  static_cast<double>(text.num_words));
}

PerplexityReport measure_perplexity(Scorer& scorer,
                                    const std::vector<std::vector<int32_t>>& documents,
                                    std::span<const TokenWindow> windows,
                                    const PerplexityOptions& options) {
  CARAVAN_CHECK(!windows.empty(), "nothing to score: every document has fewer than 2 tokens");
  std::vector<ScoreRequest> requests;
  requests.reserve(windows.size());
  for (const TokenWindow& window : windows) {
    const bool wants_all = options.dump != nullptr;
    requests.push_back({fed_ids(documents, window), wants_all ? 0 : window.first_row(),
                        wants_all ? window.num_tokens() : window.end_row()});
  }
  Measurement measurement(documents, windows, options);
  scorer.run(requests, [&](std::span<const LogitsRow> rows) { measurement.add(rows); });
  return measurement.report();
}

LogitsDumpWriter::Contents dump_contents(const std::vector<std::vector<int32_t>>& documents,
                                         std::span<const TokenWindow> windows, int64_t vocab_size,
                                         DType dtype) {
  LogitsDumpWriter::Contents contents;
  contents.vocab_size = vocab_size;
  contents.dtype = dtype;
  for (const TokenWindow& window : windows) {
    const std::span<const int32_t> ids = fed_ids(documents, window);
    CARAVAN_CHECK(contents.input_ids.size() + ids.size() <=
                      static_cast<size_t>(std::numeric_limits<int32_t>::max()),
                  "a dump of more than 2^31 - 1 tokens: dump fewer");
    contents.window_start.push_back(static_cast<int32_t>(contents.input_ids.size()));
    contents.input_ids.insert(contents.input_ids.end(), ids.begin(), ids.end());
  }
  return contents;
}

void check_same_input(const LogitsDump& dump, const std::vector<std::vector<int32_t>>& documents,
                      std::span<const TokenWindow> windows, int64_t vocab_size) {
  CARAVAN_CHECK(dump.vocab_size() == vocab_size,
                "{}: logits of {} tokens, the model's vocabulary has {}", dump.path(),
                dump.vocab_size(), vocab_size);
  int64_t row = 0;
  for (size_t w = 0; w < windows.size(); ++w) {
    const std::span<const int32_t> ids = fed_ids(documents, windows[w]);
    const auto index = static_cast<int64_t>(w);
    CARAVAN_CHECK(index < dump.num_windows(),
                  "{}: {} windows, {} tokens; the data gives {} windows: limit it with "
                  "--max-tokens, or dump all of it",
                  dump.path(), dump.num_windows(), dump.num_tokens(), windows.size());
    const auto dumped = dump.input_ids().subspan(static_cast<size_t>(row),
                                                 static_cast<size_t>(dump.window_end(index) - row));
    const auto [theirs, ours] = std::mismatch(dumped.begin(), dumped.end(), ids.begin(), ids.end());
    CARAVAN_CHECK(theirs == dumped.end() || ours == ids.end(),
                  "{}: input_ids[{}] (window {}, token {}) is {}, the data gives {}: another text "
                  "or tokenizer",
                  dump.path(), row + (theirs - dumped.begin()), w, theirs - dumped.begin(), *theirs,
                  *ours);
    CARAVAN_CHECK(dumped.size() == ids.size(),
                  "{}: window {} has {} tokens, here {}: give the --window, --stride and "
                  "--max-tokens of the dump",
                  dump.path(), w, dumped.size(), ids.size());
    row += static_cast<int64_t>(ids.size());
  }
  // Other engines may have fed a last token that stands alone in its window and predicts nothing.
  const bool is_same =
      row == dump.num_tokens() || (row + 1 == dump.num_tokens() &&
                                   dump.num_windows() == static_cast<int64_t>(windows.size()) + 1);
  CARAVAN_CHECK(is_same,
                "{}: {} tokens in {} windows, the data gives {} in {}: give the --max-tokens of "
                "the dump",
                dump.path(), dump.num_tokens(), dump.num_windows(), row, windows.size());
}

boost::json::object perplexity_json(const PerplexityReport& report, const TextSize& text) {
  boost::json::object json{{"num_windows", report.num_windows},
                           {"num_tokens", text.num_tokens},
                           {"num_bytes", text.num_bytes},
                           {"num_words", text.num_words},
                           {"num_fed", report.num_fed},
                           {"num_scored", report.num_scored},
                           {"nll", estimate_json(report.nll)},
                           {"perplexity", estimate_json(report.perplexity)},
                           {"bits_per_byte", number_json(report.bits_per_byte(text))},
                           {"byte_perplexity", number_json(report.byte_perplexity(text))},
                           {"word_perplexity", number_json(report.word_perplexity(text))}};
  if (report.comparison) json["against"] = comparison_json(*report.comparison);
  return json;
}

}  // namespace caravan
