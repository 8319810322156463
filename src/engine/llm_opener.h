#pragma once

#include <vector>

#include "caravan/llm.h"
#include "format/model_dir.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

/// The tokens of a request's prompt; bos_token_id (-1: none) stands for an empty text.
/// Errors: kInvalidArgument for an empty text without such a token, for both a text and ids;
/// the tokenizer's own where a text needs one.
std::vector<int32_t> tokenize_prompt(const LlmRequest& request, const TokenizerOrReason& tokenizer,
                                     int32_t bos_token_id);

/// For callers inside the project that have read the directory and its tokenizer already, as
/// `caravan run` has to find out how long the prompts are before it sizes the cache.
struct LlmOpener {
  static Llm open(const LlmOptions& options, ModelDir dir, TokenizerOrReason tokenizer);
  static Llm open(const LlmOptions& options, ModelDir dir, Tokenizer tokenizer) {
    TokenizerOrReason loaded;
    loaded.tokenizer = std::move(tokenizer);
    return open(options, std::move(dir), std::move(loaded));
  }
  /// The model's tokenizer, null when there is none.
  static const Tokenizer* tokenizer(const Llm& llm);
};

}  // namespace caravan
