#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "caravan/llm.h"
#include "core/json.h"
#include "sampling/logprobs.h"
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

/// `logprobs` of a text completion: tokens, token_logprobs, top_logprobs and text_offset, one
/// entry a token; the first token of an echoed prompt has null. top_logprobs names the token
/// itself too.
boost::json::object completion_logprobs(const Tokenizer& tokenizer,
                                        std::span<const ShownToken> tokens);

/// `logprobs` of a chat completion: content[] of token, logprob, bytes and top_logprobs[].
boost::json::object chat_logprobs(const Tokenizer& tokenizer, std::span<const ShownToken> tokens);

/// vLLM's prompt_logprobs: for each token null or {"<id>": {logprob, rank, decoded_token}}.
boost::json::array prompt_logprobs(const Tokenizer& tokenizer, std::span<const ScoredToken> tokens);

boost::json::object usage_json(const Usage& usage);

/// llama.cpp's timings: cache_n, prompt_n, prompt_ms, prompt_per_token_ms, prompt_per_second and
/// the same of predicted_; prompt_n leaves cached tokens out. And queue_ms.
boost::json::object timings_json(const RequestTimings& timings, int64_t num_cached_tokens);

/// One server-sent event.
std::string sse_event(const boost::json::object& data);
inline constexpr const char* kSseDone = "data: [DONE]\n\n";

}  // namespace caravan
