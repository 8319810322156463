#include "apps/prompt_tokens.h"

#include "core/error.h"
#include "core/log.h"

namespace caravan {

void SpecialTextWarning::look_at(const LlmRequest& request, const std::string& where) {
  if (tokenizer_ == nullptr || request.parse_special || request.prompt.empty()) return;
  const std::optional<int32_t> token = tokenizer_->find_added(request.prompt);
  if (!token) return;
  if (num_prompts_++ == 0) {
    first_ = fmt::format("{}: \"{}\"", where, printable(tokenizer_->token_bytes(*token)));
  }
}

void SpecialTextWarning::report() const {
  if (num_prompts_ == 0) return;
  log_warning(
      "{} {} the text of a special token ({}), which is read as ordinary text: with "
      "--parse-special it is the token",
      num_prompts_, num_prompts_ == 1 ? "prompt has" : "prompts have", first_);
}

int64_t cut_prompt(std::vector<int32_t>& ids, int64_t limit, int64_t max_output_len,
                   const std::string& truncate) {
  const int64_t room = limit - max_output_len;
  CARAVAN_CHECK(room > 0, "{} tokens of output leave no room for a prompt within {}: ask for fewer",
                max_output_len, limit);
  const auto length = static_cast<int64_t>(ids.size());
  if (length <= room) return 0;
  CARAVAN_CHECK(truncate != "none",
                "the prompt has {} tokens, expected at most {}: with {} of output {} fit; shorten "
                "one, or give --truncate head|tail",
                length, room, max_output_len, limit);
  const int64_t num_dropped = length - room;
  if (truncate == "head") {
    ids.erase(ids.begin(), ids.begin() + num_dropped);
  } else {
    ids.resize(static_cast<size_t>(room));
  }
  return num_dropped;
}

}  // namespace caravan
