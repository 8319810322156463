#pragma once

#include "caravan/llm.h"
#include "format/model_dir.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

/// For callers inside the project that have read the directory and its tokenizer already, as
/// `caravan run` has to find out how long the prompts are before it sizes the cache.
struct LlmOpener {
  static Llm open(const LlmOptions& options, ModelDir dir, Tokenizer tokenizer);
};

}  // namespace caravan
