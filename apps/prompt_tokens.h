#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "caravan/llm.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

/// Warns when a prompt has the text of a special token that --parse-special would have made it.
class SpecialTextWarning {
 public:
  explicit SpecialTextWarning(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  void look_at(const LlmRequest& request, const std::string& where);
  /// One line for all prompts.
  void report() const;

 private:
  const Tokenizer* tokenizer_;
  int64_t num_prompts_ = 0;
  std::string first_;  // where and which
};

/// Cuts a prompt that leaves no room for its output within `limit` tokens, if `truncate` is head or
/// tail; returns how many tokens were dropped. Errors: kInvalidArgument.
int64_t cut_prompt(std::vector<int32_t>& ids, int64_t limit, int64_t max_output_len,
                   const std::string& truncate);

}  // namespace caravan
