#include "server/prompt_preparation.h"

#include <fmt/core.h>

#include <algorithm>

#include "server/api_error.h"

namespace caravan {

namespace {

constexpr int64_t kDefaultMaxTokens = 16;  // of a completion, as OpenAI's

void keep_last_tokens(PreparedPrompt& prompt, int64_t num_kept) {
  const auto num_tokens = static_cast<int64_t>(prompt.ids.size());
  if (num_tokens <= num_kept) return;
  prompt.num_dropped += num_tokens - num_kept;
  prompt.ids.erase(prompt.ids.begin(), prompt.ids.begin() + (num_tokens - num_kept));
}

}  // namespace

PromptPreparation::PromptPreparation(const Tokenizer& tokenizer, ChatTemplate chat_template,
                                     const ApiLimits& limits, std::string overflow)
    : tokenizer_(&tokenizer),
      template_(std::move(chat_template)),
      encoder_(tokenizer),
      limits_(limits),
      overflow_(std::move(overflow)) {}

std::vector<int32_t> PromptPreparation::encode_chat(
    const std::vector<ChatMessage>& messages) const {
  return encoder_.encode(template_.render(messages));
}

std::string PromptPreparation::overflow_of(const GenerateRequest& request) const {
  return request.overflow.value_or(overflow_);
}

void PromptPreparation::refuse_length(const GenerateRequest& request, int64_t num_tokens,
                                      int64_t max_tokens) const {
  const char* what = request.is_chat ? "messages" : "prompt";
  throw_bad_request(
      what,
      fmt::format("This model's maximum context length is {} tokens. However, you requested {} "
                  "tokens ({} in the {}, {} in the completion). Please reduce the length of the {} "
                  "or completion.",
                  limits_.max_model_len, num_tokens + max_tokens, num_tokens, what, max_tokens,
                  what),
      "context_length_exceeded");
}

PreparedPrompt PromptPreparation::fit_completion(const PromptInput& prompt,
                                                 const GenerateRequest& request, int64_t max_tokens,
                                                 int64_t room) const {
  PreparedPrompt prepared{prompt.is_ids ? prompt.ids : tokenizer_->encode(prompt.text), 0};
  if (prepared.ids.empty()) {
    throw_bad_request("prompt", "prompt: got an empty text, expected at least one token");
  }
  if (request.truncate_prompt_tokens) {
    const int64_t wanted = *request.truncate_prompt_tokens;
    keep_last_tokens(prepared, wanted < 0 ? room : wanted);
  }
  const auto num_tokens = static_cast<int64_t>(prepared.ids.size());
  if (num_tokens <= room) return prepared;
  const std::optional<Overflow> overflow = parse_overflow(overflow_of(request));
  const int64_t num_dropped = num_tokens - room;
  if (!overflow || num_tokens - request.keep_first - request.keep_last < num_dropped) {
    refuse_length(request, num_tokens, max_tokens);
  }
  drop_tokens(prepared.ids,
              {.first = static_cast<size_t>(request.keep_first),
               .last = static_cast<size_t>(num_tokens - request.keep_last)},
              num_dropped, *overflow);
  prepared.num_dropped += num_dropped;
  return prepared;
}

PreparedPrompt PromptPreparation::fit_chat(const GenerateRequest& request, int64_t room) const {
  std::vector<ChatMessage> messages = request.messages;
  PreparedPrompt prepared{encode_chat(messages), 0};
  const auto num_all = static_cast<int64_t>(prepared.ids.size());
  if (request.truncate_prompt_tokens) {
    const int64_t wanted = *request.truncate_prompt_tokens;
    keep_last_tokens(prepared, wanted < 0 ? room : wanted);
  }
  const std::optional<Overflow> overflow = parse_overflow(overflow_of(request));
  if (static_cast<int64_t>(prepared.ids.size()) <= room || !overflow) return prepared;
  if (prepared.num_dropped > 0) prepared.ids = encode_chat(messages);  // the overflow cuts instead
  // The oldest turn: the first user message and the answer to it.
  while (static_cast<int64_t>(prepared.ids.size()) > room) {
    const auto user = std::find_if(messages.begin(), messages.end(),
                                   [](const ChatMessage& m) { return m.role == ChatRole::kUser; });
    if (messages.end() - user <= 2) break;
    messages.erase(user, user + 2);
    prepared.ids = encode_chat(messages);
  }
  const auto num_tokens = static_cast<int64_t>(prepared.ids.size());
  if (num_tokens > room) {
    const ChatPrompt prompt = template_.render(messages);
    const TokenRange inner = find_inner_tokens(*tokenizer_, prepared.ids, prompt.text().size(),
                                               prompt.prefix_bytes, prompt.suffix_bytes);
    drop_tokens(prepared.ids, inner, std::min(inner.size(), num_tokens - room), *overflow);
  }
  prepared.num_dropped = num_all - static_cast<int64_t>(prepared.ids.size());
  return prepared;
}

PreparedRequest PromptPreparation::prepare(const GenerateRequest& request) const {
  const int64_t limit = limits_.max_model_len;
  PreparedRequest prepared;
  if (request.is_chat) {
    // What an output that says nothing of its length needs at least, where something is cut for it.
    const int64_t least = std::max<int64_t>(1, limit / 4);
    const bool cuts = overflow_of(request) != "reject" || request.truncate_prompt_tokens == -1;
    const int64_t wanted = request.max_tokens.value_or(1);
    const int64_t reserved = request.max_tokens.value_or(cuts ? least : 1);
    if (wanted >= limit) refuse_length(request, 0, wanted);
    PreparedPrompt prompt = fit_chat(request, limit - reserved);
    auto num_tokens = static_cast<int64_t>(prompt.ids.size());
    if (num_tokens + wanted > limit) refuse_length(request, num_tokens, wanted);
    prepared.max_tokens = request.max_tokens.value_or(limit - num_tokens);
    prepared.prompts.push_back(std::move(prompt));
    return prepared;
  }
  const bool cuts = overflow_of(request) != "reject" || request.truncate_prompt_tokens == -1;
  const int64_t wanted = request.max_tokens.value_or(1);
  const int64_t reserved =
      request.max_tokens.value_or(cuts ? std::min(kDefaultMaxTokens, limit / 2) : 1);
  if (wanted >= limit) refuse_length(request, 0, wanted);
  int64_t longest = 0;
  for (const PromptInput& input : request.prompts) {
    PreparedPrompt prompt = fit_completion(input, request, wanted, limit - reserved);
    longest = std::max(longest, static_cast<int64_t>(prompt.ids.size()));
    prepared.prompts.push_back(std::move(prompt));
  }
  prepared.max_tokens = request.max_tokens.value_or(std::min(kDefaultMaxTokens, limit - longest));
  return prepared;
}

}  // namespace caravan
