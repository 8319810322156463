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
      overflow_(std::move(overflow)) {
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest_token_ = std::max(longest_token_, tokenizer.token_bytes(id).size());
  }
}

std::vector<int32_t> PromptPreparation::encode_text(std::string_view text,
                                                    const EncodeRequest& encoding,
                                                    WorkBudget& budget) const {
  Tokenizer::EncodeOptions options;
  options.parse_special = encoding.parses_special;
  options.add_special = encoding.adds_special;
  const std::function<void(size_t)> spend = [&](size_t num_bytes) { budget.spend(num_bytes); };
  options.on_progress = &spend;
  return tokenizer_->encode(text, options);
}

std::vector<int32_t> PromptPreparation::encode_chat(const std::vector<ChatMessage>& messages,
                                                    WorkBudget& budget) const {
  return encoder_.encode(template_.render(Conversation::of(messages)), budget);
}

std::string PromptPreparation::overflow_of(const GenerateRequest& request) const {
  return request.overflow.value_or(overflow_);
}

void PromptPreparation::refuse_length(const GenerateRequest& request, int64_t num_tokens,
                                      int64_t max_tokens, bool is_least) const {
  const char* what = request.is_chat ? "messages" : "prompt";
  throw_bad_request(
      what,
      fmt::format("This model's maximum context length is {} tokens. However, you requested {}{} "
                  "tokens ({} in the {}, {} in the completion). Please reduce the length of the {} "
                  "or completion.",
                  limits_.max_model_len, is_least ? "at least " : "", num_tokens + max_tokens,
                  num_tokens, what, max_tokens, what),
      "context_length_exceeded");
}

PreparedPrompt PromptPreparation::fit_completion(const PromptInput& prompt,
                                                 const GenerateRequest& request, int64_t max_tokens,
                                                 int64_t room, WorkBudget& budget) const {
  PreparedPrompt prepared;
  if (prompt.is_ids) {
    prepared.ids = prompt.ids;
    budget.spend(prompt.ids.size() * sizeof(int32_t));
  } else {
    check_could_fit(prompt.text.size(), request, max_tokens, room);
    prepared.ids = encode_text(prompt.text, request.encoding, budget);
  }
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

/// A text of more bytes than the longest tokens could cover is not encoded to find that out.
void PromptPreparation::check_could_fit(size_t num_bytes, const GenerateRequest& request,
                                        int64_t max_tokens, int64_t room) const {
  const bool is_cut = request.truncate_prompt_tokens || parse_overflow(overflow_of(request));
  const auto least = static_cast<int64_t>(num_bytes / longest_token_);
  if (!is_cut && least > room) refuse_length(request, least, max_tokens, /*is_least=*/true);
}

/// The ids of the latest turns that fit the room, at least of the last one, and in `prompt` what
/// was encoded. How many tokens a turn has is counted in the encoding of all of them; where turns
/// meet it may be one more or less, so what is left is encoded, and the turn before it tried.
std::vector<int32_t> PromptPreparation::drop_turns(const Conversation& conversation,
                                                   const std::vector<int32_t>& all_ids,
                                                   int64_t room, ChatPrompt& prompt,
                                                   WorkBudget& budget) const {
  constexpr int64_t kSlack = 16;  // tokens that the estimate may be wrong by
  const size_t num_turns = conversation.turns.size();
  std::vector<int64_t> first_tokens;  // of each turn
  size_t num_bytes = 0;
  for (size_t i = 0; i < all_ids.size(); ++i) {
    while (first_tokens.size() < num_turns &&
           num_bytes >= prompt.turn_begins[first_tokens.size()]) {
      first_tokens.push_back(static_cast<int64_t>(i));
    }
    num_bytes += tokenizer_->token_bytes(all_ids[i]).size();
  }
  first_tokens.resize(num_turns, static_cast<int64_t>(all_ids.size()));
  const auto num_left = [&](size_t dropped) {
    return static_cast<int64_t>(all_ids.size()) - (first_tokens[dropped] - first_tokens[0]);
  };
  size_t dropped = 1;
  while (dropped + 1 < num_turns && num_left(dropped) > room) ++dropped;
  const auto encode = [&](size_t count) {
    prompt = template_.render(conversation, count);
    return encoder_.encode(prompt, budget);
  };
  std::vector<int32_t> ids = encode(dropped);
  while (static_cast<int64_t>(ids.size()) > room && dropped + 1 < num_turns)
    ids = encode(++dropped);
  while (dropped > 1 && static_cast<int64_t>(ids.size()) <= room &&
         num_left(dropped - 1) <= room + kSlack) {
    ChatPrompt shorter = std::move(prompt);
    std::vector<int32_t> more = encode(dropped - 1);
    if (static_cast<int64_t>(more.size()) > room) {
      prompt = std::move(shorter);
      break;
    }
    ids = std::move(more);
    --dropped;
  }
  return ids;
}

PreparedPrompt PromptPreparation::fit_chat(const GenerateRequest& request, int64_t room,
                                           WorkBudget& budget) const {
  const Conversation conversation = Conversation::of(request.messages);
  ChatPrompt prompt = template_.render(conversation);
  check_could_fit(prompt.num_bytes(), request, request.max_tokens.value_or(1), room);
  const std::vector<int32_t> all_ids = encoder_.encode(prompt, budget);
  PreparedPrompt prepared{all_ids, 0};
  if (request.truncate_prompt_tokens) {
    const int64_t wanted = *request.truncate_prompt_tokens;
    keep_last_tokens(prepared, wanted < 0 ? room : wanted);
  }
  const std::optional<Overflow> overflow = parse_overflow(overflow_of(request));
  if (static_cast<int64_t>(prepared.ids.size()) <= room || !overflow) return prepared;
  prepared.ids = all_ids;  // the overflow cuts instead
  if (static_cast<int64_t>(all_ids.size()) > room && conversation.turns.size() > 1) {
    prepared.ids = drop_turns(conversation, all_ids, room, prompt, budget);
  }
  const auto num_tokens = static_cast<int64_t>(prepared.ids.size());
  if (num_tokens > room) {
    const TokenRange inner = find_inner_tokens(*tokenizer_, prepared.ids, prompt.num_bytes(),
                                               prompt.prefix_bytes, prompt.suffix_bytes);
    drop_tokens(prepared.ids, inner, std::min(inner.size(), num_tokens - room), *overflow);
  }
  prepared.num_dropped = static_cast<int64_t>(all_ids.size() - prepared.ids.size());
  return prepared;
}

PreparedRequest PromptPreparation::prepare(const GenerateRequest& request,
                                           WorkBudget& budget) const {
  const int64_t limit = limits_.max_model_len;
  PreparedRequest prepared;
  if (request.is_chat) {
    // What an output that says nothing of its length needs at least, where something is cut for it.
    const int64_t least = std::max<int64_t>(1, limit / 4);
    const bool cuts = overflow_of(request) != "reject" || request.truncate_prompt_tokens == -1;
    const int64_t wanted = request.max_tokens.value_or(1);
    const int64_t reserved = request.max_tokens.value_or(cuts ? least : 1);
    if (wanted >= limit) refuse_length(request, 0, wanted);
    PreparedPrompt prompt = fit_chat(request, limit - reserved, budget);
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
    PreparedPrompt prompt = fit_completion(input, request, wanted, limit - reserved, budget);
    longest = std::max(longest, static_cast<int64_t>(prompt.ids.size()));
    prepared.prompts.push_back(std::move(prompt));
  }
  prepared.max_tokens = request.max_tokens.value_or(std::min(kDefaultMaxTokens, limit - longest));
  return prepared;
}

}  // namespace caravan
