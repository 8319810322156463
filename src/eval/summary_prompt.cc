#include "eval/summary_prompt.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "engine/prompt_template.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace {

// What Python's str.isspace() is true for (Unicode 15, bidirectional types WS, B and S, and Zs).
bool is_python_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

std::string_view strip_left(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text, 0);
    if (c.state != Utf8Char::State::kValid || !is_python_space(c.code_point)) break;
    text.remove_prefix(c.num_bytes);
  }
  return text;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  std::string out;
  size_t begin = 0;
  for (size_t at; (at = text.find(from, begin)) != std::string::npos; begin = at + from.size()) {
    out.append(text, begin, at - begin);
    out.append(to);
  }
  if (begin == 0) return;
  out.append(text, begin);
  text = std::move(out);
}

}  // namespace

SummaryPrompt tldr_prompt(std::string_view article) {
  SummaryPrompt prompt;
  prompt.text = std::string(strip_left(article));
  const std::string_view suffix = prompt.text.empty() ? "TL;DR:" : " TL;DR:";
  prompt.text += suffix;
  prompt.suffix_bytes = suffix.size();
  replace_all(prompt.text, " n't", "n't");  // neither begins nor ends in the suffix
  return prompt;
}

SummaryPrompt camel_summary_prompt(std::string_view instruction, std::string_view article) {
  constexpr std::string_view kSuffix = "\n\n### Response:";
  SummaryPrompt prompt;
  prompt.text = camel_prompt(instruction, article);
  prompt.suffix_bytes = kSuffix.size();
  prompt.prefix_bytes = prompt.text.size() - kSuffix.size() - article.size();
  return prompt;
}

FittedPrompt fit_prompt(const Tokenizer& tokenizer, const SummaryPrompt& prompt, int64_t max_tokens,
                        Overflow overflow) {
  FittedPrompt fitted{tokenizer.encode(prompt.text), 0};
  const auto num_tokens = static_cast<int64_t>(fitted.ids.size());
  if (num_tokens <= max_tokens) return fitted;
  const TokenRange article = find_inner_tokens(tokenizer, fitted.ids, prompt.text.size(),
                                               prompt.prefix_bytes, prompt.suffix_bytes);
  fitted.num_dropped = num_tokens - max_tokens;
  CARAVAN_CHECK(fitted.num_dropped <= article.size(),
                "the prompt around the article has {} tokens, at most {} are allowed: shorten the "
                "instruction or raise --max-input-len",
                num_tokens - article.size(), max_tokens);
  drop_tokens(fitted.ids, article, fitted.num_dropped, overflow);
  return fitted;
}

Trtllm2023Prompts trtllm_2023_prompts(const Tokenizer& tokenizer, std::string_view text,
                                      int64_t max_length) {
  std::vector<int32_t> all = tokenizer.encode(text, {.parse_special = true});
  const auto last_923 = [](std::vector<int32_t> ids) {
    const auto num_cut =
        std::max<int64_t>(0, static_cast<int64_t>(ids.size()) - kTrtllm2023MaxInputLen);
    ids.erase(ids.begin(), ids.begin() + num_cut);
    return ids;
  };
  Trtllm2023Prompts prompts;
  prompts.ids = last_923(all);
  prompts.num_dropped = static_cast<int64_t>(all.size() - prompts.ids.size());
  if (max_length >= 0 && static_cast<int64_t>(all.size()) > max_length) {
    all.resize(static_cast<size_t>(max_length));
  }
  prompts.hf_ids = last_923(std::move(all));
  return prompts;
}

int64_t model_max_length(const std::string& tokenizer_directory) {
  constexpr size_t kMaxBytes = size_t{64} << 20;
  constexpr double kNoLimit = 1e9;  // transformers writes int(1e30) for "none"
  const std::string path = tokenizer_directory + "/tokenizer_config.json";
  if (!std::filesystem::exists(path)) return -1;
  const boost::json::value config = parse_json_file(path, kMaxBytes);
  CARAVAN_CHECK_CODE(config.is_object(), kCorrupt, "{}: expected a JSON object", path);
  const boost::json::value* length = config.get_object().if_contains("model_max_length");
  if (length == nullptr || length->is_null()) return -1;
  boost::json::error_code error;
  const auto value = length->to_number<double>(error);
  CARAVAN_CHECK_CODE(!error && value >= 1, kCorrupt,
                     "{}: \"model_max_length\" is {}, expected a positive number", path,
                     printable(to_json_text(*length)));
  return value < kNoLimit ? static_cast<int64_t>(value) : -1;
}

std::string clean_up_tokenization(std::string text) {
  constexpr std::pair<const char*, const char*> kSteps[] = {
      {" .", "."},     {" ?", "?"},   {" !", "!"},   {" ,", ","},     {" ' ", "'"},
      {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kSteps) replace_all(text, from, to);
  return text;
}

}  // namespace caravan
