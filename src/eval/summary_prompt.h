#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/prompt_fit.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

/// A prompt around an article. The first prefix_bytes and the last suffix_bytes of the text are the
/// instruction, which is never cut; the article lies between them.
struct SummaryPrompt {
  std::string text;
  size_t prefix_bytes = 0;
  size_t suffix_bytes = 0;
};

/// (article + " TL;DR: ") with white space stripped at both ends as Python's str.strip() does, then
/// every " n't" as "n't": what examples/gpt/summarize.py of TensorRT-LLM (July 2023) sent. No
/// prefix; the suffix is " TL;DR:" ("TL;DR:" alone for an article of white space).
SummaryPrompt tldr_prompt(std::string_view article);

/// camel-5b's instruction prompt (engine/prompt_template.h) with the article as its input, byte for
/// byte; the suffix is "\n\n### Response:". Without an article: the form without an input.
SummaryPrompt camel_summary_prompt(std::string_view instruction, std::string_view article);

struct FittedPrompt {
  std::vector<int32_t> ids;
  int64_t num_dropped = 0;  // tokens of the article
};

/// Token ids of a prompt, at most max_tokens. When all fit, they are encode(prompt.text). Otherwise
/// tokens of that encoding are left out that lie within the article; tokens with bytes of prefix or
/// suffix stay, so both are whole in the text of the result. kMiddle drops from the middle of the
/// article's tokens, the larger half (by one) staying in front.
/// Errors: kInvalidArgument when prefix and suffix alone are longer than max_tokens.
FittedPrompt fit_prompt(const Tokenizer& tokenizer, const SummaryPrompt& prompt, int64_t max_tokens,
                        Overflow overflow);

/// What the two sides of TensorRT-LLM's summarize.py of July 2023 were given for one text.
struct Trtllm2023Prompts {
  std::vector<int32_t> ids;     // the engine: the last 923 tokens
  std::vector<int32_t> hf_ids;  // Hugging Face: of the first model_max_length the last 923
  int64_t num_dropped = 0;      // tokens before `ids`
};
/// Special tokens in the text are parsed, as both sides did. model_max_length: of the tokenizer's
/// tokenizer_config.json; -1 when it names none, then nothing is cut from the right.
Trtllm2023Prompts trtllm_2023_prompts(const Tokenizer& tokenizer, std::string_view text,
                                      int64_t model_max_length);
/// How many tokens of a text either side was given.
inline constexpr int64_t kTrtllm2023MaxInputLen = 923;

/// model_max_length of DIR/tokenizer_config.json; -1 when there is none, or the placeholder of 1e30
/// that stands for none. Errors: kCorrupt.
int64_t model_max_length(const std::string& tokenizer_directory);

/// transformers' clean_up_tokenization (on by default in 2023): removes the space before . ? ! ,
/// n't 'm 's 've 're, and those around a single apostrophe.
std::string clean_up_tokenization(std::string text);

}  // namespace caravan
