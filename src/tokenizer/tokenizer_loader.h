#pragma once

#include <cstdint>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

/// Everything that a tokenizer's files say, checked.
struct LoadedTokenizer {
  Bpe bpe;
  AddedTokens added_tokens;
  bool has_prefix_space = false;  // a space goes before each stretch of text without one
  bool uses_split_pattern = true;
  std::vector<int32_t> prompt_prefix = {};  // ids around a prompt
  std::vector<int32_t> prompt_suffix = {};
};

/// Reads the contents of tokenizer files. Errors: as Tokenizer::from_files.
LoadedTokenizer load_tokenizer(const TokenizerFiles& files);

}  // namespace caravan
