#pragma once

#include <cstdint>

#include "core/json.h"

namespace caravan {

/// What one request may ask for. Lengths of text are code points.
struct ApiLimits {
  int64_t max_model_len = 0;  // prompt and output tokens of one completion
  int32_t vocab_size = 0;
  int64_t max_prompts = 64;   // of one request
  int64_t max_choices = 128;  // prompts x n, or prompts x best_of
  int64_t max_n = 128;
  int64_t max_best_of = 20;
  int64_t max_logprobs = 20;
  int64_t max_logit_bias = 1024;  // entries
  int64_t max_stop = 16;          // stop strings, or stop tokens
  int64_t max_stop_chars = 256;
  int64_t max_messages = 256;
  int64_t max_text_chars = int64_t{4} << 20;      // one text; the body has a limit of its own
  int64_t max_tokenize_bytes = int64_t{1} << 20;  // texts of one /tokenize request together
  int64_t max_answer_bytes = int64_t{32} << 20;   // of one answer, as estimated before the work
  int32_t max_priority = 10;                      // either way
  bool has_priorities = false;                    // requests may have others than 0
};

/// JSON Schemas of the request bodies: what is parsed is checked against them (server/
/// json_schema.h), and they are published in /openapi.json. Members that are null are absent, at
/// every level and whatever their name.
boost::json::object completion_schema(const ApiLimits& limits);
boost::json::object chat_schema(const ApiLimits& limits);
boost::json::object tokenize_schema(const ApiLimits& limits);
boost::json::object detokenize_schema(const ApiLimits& limits);

}  // namespace caravan
