#include "tokenizer/detokenizer.h"

#include "tokenizer/utf8.h"

namespace caravan {

std::string Detokenizer::push(int32_t id) {
  const std::string_view bytes = tokenizer_->token_bytes(id);
  if (skip_special_ && tokenizer_->is_special(id)) return "";
  pending_.append(bytes);
  std::string text;
  pending_.erase(0, append_sanitized_utf8(pending_, false, text));
  return text;
}

std::string Detokenizer::flush() {
  std::string text;
  append_sanitized_utf8(pending_, true, text);
  pending_.clear();
  return text;
}

}  // namespace caravan
