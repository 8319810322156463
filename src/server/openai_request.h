#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "caravan/sampling_params.h"
#include "engine/prompt_fit.h"
#include "server/chat_template.h"
#include "server/request_schema.h"

namespace caravan {

/// What the model's generation_config.json sets for requests that do not say.
struct SamplingDefaults {
  float temperature = 1.0f;
  float top_p = 1.0f;
  int32_t top_k = 0;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
};
/// Of DIR/generation_config.json; OpenAI's where it is silent or absent. A field outside the range
/// of requests is ignored with a warning. Errors: kCorrupt.
SamplingDefaults load_sampling_defaults(const std::string& directory);

struct PromptInput {
  std::string text;
  std::vector<int32_t> ids;  // when is_ids
  bool is_ids = false;
};

/// How texts of a request become tokens.
struct EncodeRequest {
  bool adds_special = true;     // what the tokenizer puts around a prompt
  bool parses_special = false;  // text that looks like a special token is one
};

/// POST /v1/completions or /v1/chat/completions, checked.
struct GenerateRequest {
  bool is_chat = false;
  EncodeRequest encoding;             // of the texts
  std::string model;                  // "" when absent
  std::vector<PromptInput> prompts;   // completions
  std::vector<ChatMessage> messages;  // chat
  std::optional<int64_t> max_tokens;
  /// For the engine, apart from max_output_len, seed and stop strings.
  SamplingParams params;
  std::vector<std::string> stop;
  std::optional<int64_t> seed;
  int64_t n = 1;
  int64_t best_of = 1;  // at least n
  int32_t priority = 0;
  std::string cache_salt;    // "" when absent
  std::string prefix_scope;  // the server's, of API key and salt
  bool stream = false;
  bool includes_usage = false;
  bool has_continuous_usage = false;
  bool echo = false;
  int32_t num_logprobs = -1;         // of output tokens; -1: none wanted
  int32_t num_prompt_logprobs = -1;  // vLLM's field; echo with logprobs comes on top
  bool skips_special_tokens = true;
  bool includes_stop = false;
  bool returns_token_ids = false;
  std::optional<int64_t> truncate_prompt_tokens;
  std::optional<std::string> overflow;  // reject, head, tail, middle
  int64_t keep_first = 0;
  int64_t keep_last = 0;
  std::string request_id;  // "" when absent

  /// Completions that the engine makes for one prompt.
  int64_t num_runs() const { return best_of; }
};

struct TokenizeRequest {
  std::string model;
  std::optional<std::string> prompt;
  EncodeRequest encoding;
  std::vector<ChatMessage> messages;
  bool returns_token_strings = false;
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};

/// Parses request bodies: JSON, then the schema, then what one field means for another. Immutable
/// and thread safe. Errors of all: ApiError 400.
class RequestParser {
 public:
  RequestParser(const ApiLimits& limits, const SamplingDefaults& defaults);

  GenerateRequest completion(std::string_view body) const;
  GenerateRequest chat(std::string_view body) const;
  TokenizeRequest tokenize(std::string_view body) const;
  DetokenizeRequest detokenize(std::string_view body) const;

  const ApiLimits& limits() const { return limits_; }

 private:
  boost::json::object parse(std::string_view body, const boost::json::object& schema) const;
  void read_common(const boost::json::object& body, GenerateRequest& request) const;

  ApiLimits limits_;
  SamplingDefaults defaults_;
  boost::json::object completion_schema_;
  boost::json::object chat_schema_;
  boost::json::object tokenize_schema_;
  boost::json::object detokenize_schema_;
};

}  // namespace caravan
