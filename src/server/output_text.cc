#include "server/output_text.h"

#include <utility>

#include "server/json_schema.h"

namespace caravan {

OutputText::OutputText(const Tokenizer& tokenizer, OutputTextOptions options)
    : detokenizer_(tokenizer, options.skips_special_tokens),
      stops_(options.stops),
      options_(std::move(options)) {}

std::string OutputText::push(int32_t id, bool ends_output) {
  if (found_stop()) return {};
  ++num_tokens_;
  if (ends_output && !options_.includes_stop) return {};
  return show(detokenizer_.push(id));
}

std::string OutputText::finish() {
  std::string text = show(detokenizer_.flush());
  return text += stops_.flush();
}

std::string OutputText::show(const std::string& text) {
  num_code_points_ += static_cast<int64_t>(caravan::num_code_points(text));
  if (num_tokens_ <= options_.min_tokens) return text;
  const bool had_found = found_stop();
  std::string shown = stops_.push(text);
  if (options_.includes_stop && found_stop() && !had_found) shown += stops_.matched();
  return shown;
}

}  // namespace caravan
