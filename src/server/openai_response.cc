#include "server/openai_response.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "tokenizer/utf8.h"

namespace caravan {

namespace json = boost::json;

namespace {

// JSON has no infinity; OpenAI writes this for "impossible".
constexpr float kLeastLogprob = -9999.0f;

float finite(float logprob) {
  return std::isfinite(logprob) ? std::max(logprob, kLeastLogprob) : kLeastLogprob;
}

bool is_whole_utf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    const Utf8Char c = decode_utf8(bytes, i);
    if (c.state != Utf8Char::State::kValid) return false;
    i += c.num_bytes;
  }
  return true;
}

/// The members of an object, which the caller ends.
void begin_chat_token(const Tokenizer& tokenizer, const TokenLogprob& token, JsonWriter& writer) {
  writer.begin_object().key("token").text(token_text(tokenizer, token.token_id));
  writer.key("logprob").number(finite(token.logprob)).key("bytes").begin_array();
  for (const char c : tokenizer.token_bytes(token.token_id)) {
    writer.integer(static_cast<uint8_t>(c));
  }
  writer.end_array();
}

TokenLogprob own_logprob(const ScoredToken& token) {
  return token.logprob.value_or(
      TokenLogprob{.token_id = token.token_id, .logprob = -INFINITY, .rank = 0});
}

double per_second(int64_t num_tokens, double ms) {
  return ms > 0 ? static_cast<double>(num_tokens) * 1000 / ms : 0.0;
}
double per_token(int64_t num_tokens, double ms) {
  return num_tokens > 0 ? ms / static_cast<double>(num_tokens) : 0.0;
}

}  // namespace

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  const std::string_view bytes = tokenizer.token_bytes(id);
  if (is_whole_utf8(bytes)) return std::string(bytes);
  std::string text = "bytes:";
  for (const char c : bytes) text += fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
  return text;
}

void LogprobItems::add(const Tokenizer& tokenizer, const ShownToken& token) {
  const std::string own_text = token_text(tokenizer, token.scored.token_id);
  tokens.text(own_text);
  text_offset.integer(token.text_offset);
  if (!token.scored.logprob) {
    token_logprobs.null();
    top_logprobs.null();
    return;
  }
  const float own = finite(token.scored.logprob->logprob);
  token_logprobs.number(own);
  // Several tokens may have one text; names of members are unique, and the token's own goes first.
  std::vector<std::pair<std::string, float>> top;
  const auto put = [&](std::string text, float logprob) {
    const auto same = std::find_if(top.begin(), top.end(),
                                   [&](const auto& entry) { return entry.first == text; });
    if (same == top.end()) {
      top.emplace_back(std::move(text), logprob);
    } else {
      same->second = logprob;
    }
  };
  for (const TokenLogprob& other : token.scored.top_logprobs) {
    put(token_text(tokenizer, other.token_id), finite(other.logprob));
  }
  put(own_text, own);
  top_logprobs.begin_object();
  for (const auto& [text, logprob] : top) top_logprobs.key(text).number(logprob);
  top_logprobs.end_object();
}

size_t LogprobItems::num_bytes() const {
  return tokens.size() + token_logprobs.size() + top_logprobs.size() + text_offset.size();
}

void write_completion_logprobs(const LogprobItems* prompt, const LogprobItems& output,
                               JsonWriter& writer) {
  const auto write = [&](const char* name, JsonWriter LogprobItems::*items) {
    writer.key(name).begin_array();
    if (prompt != nullptr) writer.raw_items((prompt->*items).str());
    writer.raw_items((output.*items).str()).end_array();
  };
  writer.begin_object();
  write("tokens", &LogprobItems::tokens);
  write("token_logprobs", &LogprobItems::token_logprobs);
  write("top_logprobs", &LogprobItems::top_logprobs);
  write("text_offset", &LogprobItems::text_offset);
  writer.end_object();
}

void write_chat_logprobs(const Tokenizer& tokenizer, std::span<const ShownToken> tokens,
                         JsonWriter& writer) {
  writer.begin_object().key("content").begin_array();
  for (const ShownToken& token : tokens) {
    begin_chat_token(tokenizer, own_logprob(token.scored), writer);
    writer.key("top_logprobs").begin_array();
    for (const TokenLogprob& other : token.scored.top_logprobs) {
      begin_chat_token(tokenizer, other, writer);
      writer.end_object();
    }
    writer.end_array().end_object();
  }
  writer.end_array().key("refusal").null().end_object();
}

std::string prompt_logprobs_json(const Tokenizer& tokenizer, std::span<const ScoredToken> tokens) {
  JsonWriter writer;
  const auto write = [&](const TokenLogprob& token) {
    writer.key(std::to_string(token.token_id)).begin_object();
    writer.key("logprob").number(finite(token.logprob)).key("rank").integer(token.rank);
    writer.key("decoded_token").text(token_text(tokenizer, token.token_id)).end_object();
  };
  writer.begin_array();
  for (const ScoredToken& token : tokens) {
    if (!token.logprob) {
      writer.null();
      continue;
    }
    writer.begin_object();
    write(*token.logprob);
    for (const TokenLogprob& other : token.top_logprobs) {
      if (other.token_id != token.logprob->token_id) write(other);
    }
    writer.end_object();
  }
  return writer.end_array().take();
}

json::object usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.num_prompt_tokens},
          {"completion_tokens", usage.num_completion_tokens},
          {"total_tokens", usage.num_prompt_tokens + usage.num_completion_tokens},
          {"prompt_tokens_details", json::object{{"cached_tokens", usage.num_cached_tokens}}}};
}

json::object timings_json(const RequestTimings& timings, int64_t num_cached_tokens) {
  const int64_t num_read = timings.num_prompt_tokens - num_cached_tokens;
  // The first output token comes with the prompt's last step.
  const int64_t num_decoded = std::max<int64_t>(0, timings.num_output_tokens - 1);
  return {{"cache_n", num_cached_tokens},
          {"prompt_n", num_read},
          {"prompt_ms", timings.prefill_ms},
          {"prompt_per_token_ms", per_token(num_read, timings.prefill_ms)},
          {"prompt_per_second", per_second(num_read, timings.prefill_ms)},
          {"predicted_n", timings.num_output_tokens},
          {"predicted_ms", timings.decode_ms},
          {"predicted_per_token_ms", per_token(num_decoded, timings.decode_ms)},
          {"predicted_per_second", per_second(num_decoded, timings.decode_ms)},
          {"queue_ms", timings.queue_ms}};
}

std::string sse_event(std::string_view data) { return fmt::format("data: {}\n\n", data); }

}  // namespace caravan
