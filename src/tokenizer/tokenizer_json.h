#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "tokenizer/added_token_set.h"
#include "tokenizer/vocabulary_builder.h"

namespace caravan {

/// The parts of tokenizer.json that stand around its BPE model.
struct TokenizerJsonParts {
  bool has_prefix_space = false;
  bool may_override_prefix_space = false;  // by transformers: a ByteLevel that stands alone
  bool uses_split_pattern = true;
  std::vector<int32_t> prompt_prefix;  // what post_processor puts around a prompt
  std::vector<int32_t> prompt_suffix;
};

/// Reads normalizer, pre_tokenizer, post_processor and decoder. `where` names the file.
/// Errors: kCorrupt; kUnsupported with the name of a component that changes ids in a way that is
/// not known here.
TokenizerJsonParts read_tokenizer_json_parts(const boost::json::object& root,
                                             const std::string& where);

/// The fields of `model` beside vocab and merges. Errors: as above.
BpeFields read_bpe_fields(const boost::json::object& model, const std::string& where);

void read_json_added_tokens(const boost::json::object& root, const std::string& where,
                            AddedTokenSet& tokens);
void read_json_merges(const boost::json::array& merges, const std::string& where,
                      VocabularyBuilder& builder);

}  // namespace caravan
