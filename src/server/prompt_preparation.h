#pragma once

#include <string>
#include <vector>

#include "server/chat_template.h"
#include "server/completion_job.h"
#include "server/openai_request.h"

namespace caravan {

struct PreparedRequest {
  std::vector<PreparedPrompt> prompts;
  int64_t max_tokens = 0;  // of each output
};

/// Token ids of a request's prompts, cut to the context if the request or else the server says so.
/// Immutable and thread safe.
class PromptPreparation {
 public:
  /// overflow: the server's, "reject", "head", "tail" or "middle". The tokenizer must outlive this.
  PromptPreparation(const Tokenizer& tokenizer, ChatTemplate chat_template, const ApiLimits& limits,
                    std::string overflow);

  /// A completion's prompt is cut between its first keep_first and last keep_last tokens; a chat
  /// loses its oldest turns first, then part of its last user message. The rest stays whole:
  /// instruction, system message and template. Without max_tokens an output gets 16 tokens, or in a
  /// chat what the context has left; a chat that is cut leaves it a quarter of the context.
  /// Every text is encoded once, and what is left of a chat that was cut a few times more.
  /// Errors: ApiError 400, "context_length_exceeded" for what does not fit; those of the budget.
  PreparedRequest prepare(const GenerateRequest& request, WorkBudget& budget) const;

  /// Ids of a prompt, and of a conversation as the chat template writes it.
  std::vector<int32_t> encode_text(std::string_view text, const EncodeRequest& encoding,
                                   WorkBudget& budget) const;
  std::vector<int32_t> encode_chat(const std::vector<ChatMessage>& messages,
                                   WorkBudget& budget) const;
  const ChatTemplate& chat_template() const { return template_; }

 private:
  PreparedPrompt fit_completion(const PromptInput& prompt, const GenerateRequest& request,
                                int64_t max_tokens, int64_t room, WorkBudget& budget) const;
  PreparedPrompt fit_chat(const GenerateRequest& request, int64_t room, WorkBudget& budget) const;
  std::vector<int32_t> drop_turns(const Conversation& conversation,
                                  const std::vector<int32_t>& all_ids, int64_t room,
                                  ChatPrompt& prompt, WorkBudget& budget) const;
  void check_could_fit(size_t num_bytes, const GenerateRequest& request, int64_t max_tokens,
                       int64_t room) const;
  [[noreturn]] void refuse_length(const GenerateRequest& request, int64_t num_tokens,
                                  int64_t max_tokens, bool is_least = false) const;
  std::string overflow_of(const GenerateRequest& request) const;

  const Tokenizer* tokenizer_;
  ChatTemplate template_;
  ChatEncoder encoder_;
  ApiLimits limits_;
  std::string overflow_;
  size_t longest_token_ = 1;  // bytes
};

}  // namespace caravan
