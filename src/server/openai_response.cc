#include "server/openai_response.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "core/json_text.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace json = boost::json;

namespace {

// JSON has no infinity; OpenAI writes this for "impossible".
constexpr double kLeastLogprob = -9999.0;

double finite(float logprob) {
  return std::isfinite(logprob) ? std::max(static_cast<double>(logprob), kLeastLogprob)
                                : kLeastLogprob;
}

bool is_whole_utf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    const Utf8Char c = decode_utf8(bytes, i);
    if (c.state != Utf8Char::State::kValid) return false;
    i += c.num_bytes;
  }
  return true;
}

json::array byte_array(std::string_view bytes) {
  json::array array;
  array.reserve(bytes.size());
  for (const char c : bytes) array.push_back(static_cast<int>(static_cast<uint8_t>(c)));
  return array;
}

json::object chat_token(const Tokenizer& tokenizer, const TokenLogprob& token) {
  return {{"token", token_text(tokenizer, token.token_id)},
          {"logprob", finite(token.logprob)},
          {"bytes", byte_array(tokenizer.token_bytes(token.token_id))}};
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

json::object completion_logprobs(const Tokenizer& tokenizer, std::span<const ShownToken> tokens) {
  json::array texts, logprobs, tops, offsets;
  for (const ShownToken& token : tokens) {
    texts.push_back(json::value(token_text(tokenizer, token.scored.token_id)));
    offsets.push_back(token.text_offset);
    if (!token.scored.logprob) {
      logprobs.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    logprobs.push_back(finite(token.scored.logprob->logprob));
    json::object top;
    for (const TokenLogprob& other : token.scored.top_logprobs) {
      top[token_text(tokenizer, other.token_id)] = finite(other.logprob);
    }
    top[token_text(tokenizer, token.scored.token_id)] = finite(token.scored.logprob->logprob);
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(texts)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

json::object chat_logprobs(const Tokenizer& tokenizer, std::span<const ShownToken> tokens) {
  json::array content;
  for (const ShownToken& token : tokens) {
    json::object entry = chat_token(tokenizer, own_logprob(token.scored));
    json::array tops;
    for (const TokenLogprob& other : token.scored.top_logprobs) {
      tops.push_back(chat_token(tokenizer, other));
    }
    entry["top_logprobs"] = std::move(tops);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

json::array prompt_logprobs(const Tokenizer& tokenizer, std::span<const ScoredToken> tokens) {
  json::array all;
  const auto entry = [&](const TokenLogprob& token) {
    return json::object{{"logprob", finite(token.logprob)},
                        {"rank", token.rank},
                        {"decoded_token", token_text(tokenizer, token.token_id)}};
  };
  for (const ScoredToken& token : tokens) {
    if (!token.logprob) {
      all.push_back(nullptr);
      continue;
    }
    json::object row;
    row[std::to_string(token.token_id)] = entry(*token.logprob);
    for (const TokenLogprob& other : token.top_logprobs) {
      row[std::to_string(other.token_id)] = entry(other);
    }
    all.push_back(std::move(row));
  }
  return all;
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

std::string sse_event(const json::object& data) { return "data: " + to_json_text(data) + "\n\n"; }

}  // namespace caravan
