#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "caravan/llm.h"
#include "core/json.h"
#include "sampling/logprobs.h"
#include "server/json_writer.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

/// A token of an answer, with where its text begins: code points from the start of the choice.
struct ShownToken {
  ScoredToken scored;
  int64_t text_offset = 0;
};

struct Usage {
  int64_t num_prompt_tokens = 0;
  int64_t num_completion_tokens = 0;
  int64_t num_cached_tokens = 0;
};

/// A token in JSON: its text, or "bytes:\xe2\x80" where it is no whole UTF-8 text by itself.
std::string token_text(const Tokenizer& tokenizer, int32_t id);

/// The arrays of a text completion's `logprobs`, one entry a token, without their brackets: a
/// prompt that is echoed is written once for all its choices. The first token of one has null.
/// top_logprobs names the token itself too.
struct LogprobItems {
  JsonWriter tokens, token_logprobs, top_logprobs, text_offset;

  void add(const Tokenizer& tokenizer, const ShownToken& token);
  size_t num_bytes() const;
};
/// tokens, token_logprobs, top_logprobs and text_offset: those of the prompt, then of the output.
void write_completion_logprobs(const LogprobItems* prompt, const LogprobItems& output,
                               JsonWriter& writer);

/// `logprobs` of a chat completion: content[] of token, logprob, bytes and top_logprobs[].
void write_chat_logprobs(const Tokenizer& tokenizer, std::span<const ShownToken> tokens,
                         JsonWriter& writer);

/// vLLM's prompt_logprobs: for each token null or {"<id>": {logprob, rank, decoded_token}}.
std::string prompt_logprobs_json(const Tokenizer& tokenizer, std::span<const ScoredToken> tokens);

/// Bytes of JSON of one log probability, with what stands around it.
inline constexpr int64_t kCompletionLogprobBytes = 40;
inline constexpr int64_t kChatLogprobBytes = 90;
inline constexpr int64_t kPromptLogprobBytes = 80;

boost::json::object usage_json(const Usage& usage);

/// llama.cpp's timings: cache_n, prompt_n, prompt_ms, prompt_per_token_ms, prompt_per_second and
/// the same of predicted_; prompt_n leaves cached tokens out. And queue_ms.
boost::json::object timings_json(const RequestTimings& timings, int64_t num_cached_tokens);

/// One server-sent event with this JSON.
std::string sse_event(std::string_view data);
inline constexpr const char* kSseDone = "data: [DONE]\n\n";

}  // namespace caravan
