#include "server/request_schema.h"

#include <limits>
#include <string_view>

namespace caravan {

namespace json = boost::json;

namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

/// Every field may be null, which means absent; `fallback` is what it is then (null: said in the
/// description).
json::object field(std::string_view type, json::value fallback, std::string_view description) {
  json::object schema{{"type", json::array{type, "null"}}, {"description", description}};
  if (!fallback.is_null()) schema["default"] = std::move(fallback);
  return schema;
}

json::object integer(int64_t min, int64_t max, json::value fallback, std::string_view description) {
  json::object schema = field("integer", std::move(fallback), description);
  schema["minimum"] = min;
  schema["maximum"] = max;
  return schema;
}

json::object number(double min, double max, json::value fallback, std::string_view description) {
  json::object schema = field("number", std::move(fallback), description);
  schema["minimum"] = min;
  schema["maximum"] = max;
  return schema;
}

json::object positive_number(double max, json::value fallback, std::string_view description) {
  json::object schema = field("number", std::move(fallback), description);
  schema["exclusiveMinimum"] = 0.0;
  schema["maximum"] = max;
  return schema;
}

json::object boolean(bool fallback, std::string_view description) {
  return field("boolean", fallback, description);
}

json::object text(int64_t max_chars, std::string_view description) {
  json::object schema = field("string", nullptr, description);
  schema["maxLength"] = max_chars;
  return schema;
}

json::object one_of(json::array values, json::value fallback, std::string_view description) {
  json::object schema = field("string", std::move(fallback), description);
  values.push_back(nullptr);
  schema["enum"] = std::move(values);
  return schema;
}

json::object token_id(const ApiLimits& limits) {
  return {{"type", "integer"}, {"minimum", 0}, {"maximum", limits.vocab_size - 1}};
}

json::object array_of(json::object items, int64_t min, int64_t max, std::string_view title) {
  return {{"type", "array"},
          {"title", title},
          {"items", std::move(items)},
          {"minItems", min},
          {"maxItems", max}};
}

json::object nullable_array(json::object items, int64_t max, std::string_view description) {
  json::object schema = field("array", nullptr, description);
  schema["items"] = std::move(items);
  schema["maxItems"] = max;
  return schema;
}

/// What is accepted so that clients need not leave it out, and does nothing here.
json::object ignored(std::string_view type, std::string_view description) {
  return field(type, nullptr, description);
}

json::object plain_text(const ApiLimits& limits) {
  return {{"type", "string"}, {"maxLength", limits.max_text_chars}};
}

/// A prompt has at least one token.
json::object prompt_text(const ApiLimits& limits) {
  json::object schema = plain_text(limits);
  schema["minLength"] = 1;
  return schema;
}

json::object stop_field(const ApiLimits& limits) {
  const json::object one{
      {"type", "string"}, {"minLength", 1}, {"maxLength", limits.max_stop_chars}};
  return {{"anyOf", json::array{one, array_of(one, 0, limits.max_stop, "an array of strings"),
                                json::object{{"type", "null"}}}},
          {"description",
           "Texts that end the output; not part of it, unless include_stop_str_in_output."}};
}

json::object response_format_field() {
  return {{"type", json::array{"object", "null"}},
          {"description", "Only {\"type\": \"text\"}: structured output is not supported."},
          {"properties",
           json::object{{"type", json::object{{"type", "string"}, {"enum", json::array{"text"}}}}}},
          {"required", json::array{"type"}},
          {"additionalProperties", false}};
}

json::object stream_options_field() {
  return {
      {"type", json::array{"object", "null"}},
      {"description", "Only with stream."},
      {"properties",
       json::object{{"include_usage", boolean(false, "A last chunk with usage and no choices.")},
                    {"continuous_usage_stats", boolean(false, "Usage so far in every chunk.")},
                    {"include_obfuscation", ignored("boolean", "Has no effect.")}}},
      {"additionalProperties", false}};
}

json::object logit_bias_field(const ApiLimits& limits) {
  return {{"type", json::array{"object", "null"}},
          {"description", "Token id, as a string, to what is added to its logit."},
          {"maxProperties", limits.max_logit_bias},
          {"propertyNames", json::object{{"pattern", "^(0|[1-9][0-9]{0,7})$"}}},
          {"additionalProperties",
           json::object{{"type", "number"}, {"minimum", -100.0}, {"maximum", 100.0}}}};
}

/// What both kinds of completion take.
json::object common_properties(const ApiLimits& limits) {
  return {
      {"model", text(256, "A name from /v1/models; absent: the one that is served.")},
      {"n",
       integer(1, limits.max_n, 1, "Choices for each prompt, with the seeds seed, seed + 1, ...")},
      {"stream", boolean(false, "Server-sent events, ended by [DONE].")},
      {"stream_options", stream_options_field()},
      {"temperature",
       number(0, 2, nullptr,
              "0: the most likely token always. Default: the model's generation_config.json, else "
              "1.")},
      {"top_p", positive_number(1, nullptr,
                                "Keep the fewest tokens whose probabilities reach this. Default: "
                                "the model's, else 1.")},
      {"top_k", integer(-1, kMaxInt32, nullptr,
                        "Keep so many of the most likely tokens; 0 or -1: all. Default: the "
                        "model's, else all.")},
      {"min_p", number(0, 1, nullptr,
                       "Keep tokens of at least this times the highest probability. Default: the "
                       "model's, else 0.")},
      {"presence_penalty", number(-2, 2, 0, "Taken from the logit of a token the output has.")},
      {"frequency_penalty", number(-2, 2, 0, "The same, times how often it has it.")},
      {"repetition_penalty",
       positive_number(10, nullptr,
                       "Above 1: tokens of prompt and output become less likely. Default: the "
                       "model's, else 1.")},
      {"logit_bias", logit_bias_field(limits)},
      {"seed",
       integer(std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), nullptr,
               "Same seed, prompt and settings: same tokens. Default, and -1: random.")},
      {"stop", stop_field(limits)},
      {"stop_token_ids",
       nullable_array(token_id(limits), limits.max_stop, "Tokens that end the output.")},
      {"include_stop_str_in_output", boolean(false, "Show what ended the output.")},
      {"ignore_eos", boolean(false, "Go on past the end-of-text token.")},
      {"min_tokens", integer(0, kMaxInt32, 0, "No stop of any kind before so many.")},
      {"skip_special_tokens", boolean(true, "Leave special tokens out of the text.")},
      {"spaces_between_special_tokens", ignored("boolean", "Has no effect: text is exact.")},
      {"prompt_logprobs", integer(0, limits.max_logprobs, nullptr,
                                  "Log probabilities of the prompt's tokens, with so many of the "
                                  "most likely.")},
      {"truncate_prompt_tokens",
       integer(-1, limits.max_model_len, nullptr,
               "Keep only so many of the prompt's last tokens; -1: as many as fit.")},
      {"overflow", one_of({"reject", "head", "tail", "middle"}, nullptr,
                          "What becomes of a prompt that does not fit: an error, or tokens left "
                          "out at its head, tail or middle. Default: the server's.")},
      {"priority", integer(std::numeric_limits<int32_t>::min(), kMaxInt32, 0, "Lower goes first.")},
      {"request_id",
       text(128, "Letters, digits and ._:- of which the answer's id is made. Default: random.")},
      {"return_token_ids", boolean(false, "Add prompt_token_ids and token_ids to the answer.")},
      {"response_format", response_format_field()},
      {"user", ignored("string", "Has no effect.")},
      {"metadata", ignored("object", "Has no effect.")},
      {"store", boolean(false, "Has no effect: nothing is stored.")},
      {"service_tier", ignored("string", "Has no effect.")},
      {"safety_identifier", ignored("string", "Has no effect.")},
      {"prompt_cache_key", ignored("string", "Has no effect: equal beginnings are found.")},
      {"prompt_cache_retention", ignored("string", "Has no effect.")}};
}

json::object request_object(json::object properties, json::array required) {
  return {{"type", "object"},
          {"title", "an object"},
          {"properties", std::move(properties)},
          {"required", std::move(required)},
          {"additionalProperties", false}};
}

json::object prompt_field(const ApiLimits& limits) {
  const json::object ids =
      array_of(token_id(limits), 1, limits.max_model_len * 16, "an array of token ids");
  return {{"anyOf",
           json::array{prompt_text(limits),
                       array_of(prompt_text(limits), 1, limits.max_prompts, "an array of strings"),
                       ids, array_of(ids, 1, limits.max_prompts, "an array of arrays of ids")}},
          {"description", "Text or token ids, one or several."}};
}

json::object messages_field(const ApiLimits& limits) {
  const json::object part{
      {"type", "object"},
      {"properties",
       json::object{{"type", json::object{{"type", "string"}, {"enum", json::array{"text"}}}},
                    {"text", plain_text(limits)}}},
      {"required", json::array{"type", "text"}},
      {"additionalProperties", false}};
  const json::object message{
      {"type", "object"},
      {"properties",
       json::object{
           {"role",
            json::object{{"type", "string"},
                         {"enum", json::array{"system", "developer", "user", "assistant"}}}},
           {"content", json::object{{"anyOf", json::array{plain_text(limits),
                                                          array_of(part, 1, limits.max_messages,
                                                                   "an array of text parts")}}}},
           {"name", ignored("string", "Has no effect.")},
           {"refusal", ignored("string", "Has no effect.")}}},
      {"required", json::array{"role", "content"}},
      {"additionalProperties", false}};
  json::object schema = array_of(message, 1, limits.max_messages, "an array of messages");
  schema["description"] =
      "System messages first, then user and assistant in turn; an assistant's last message is "
      "continued.";
  return schema;
}

}  // namespace

json::object completion_schema(const ApiLimits& limits) {
  json::object properties = common_properties(limits);
  properties["prompt"] = prompt_field(limits);
  properties["max_tokens"] =
      integer(0, kMaxInt32, 16, "Most tokens to write; 0 with echo or prompt_logprobs.");
  properties["best_of"] =
      integer(1, limits.max_best_of, nullptr,
              "Make so many and return the n whose tokens have the highest mean log probability.");
  properties["logprobs"] =
      integer(0, limits.max_logprobs, nullptr,
              "Log probabilities of the tokens, with so many of the most likely.");
  properties["echo"] = boolean(false, "The text begins with the prompt.");
  properties["suffix"] = json::object{
      {"type", "null"}, {"description", "Not supported: the model writes on, not in between."}};
  const json::object kept = integer(0, limits.max_model_len, 0,
                                    "First tokens of the prompt that overflow never leaves out.");
  properties["overflow_keep_first"] = kept;
  properties["overflow_keep_last"] =
      integer(0, limits.max_model_len, 0, "The same for its last tokens.");
  return request_object(std::move(properties), {"prompt"});
}

json::object chat_schema(const ApiLimits& limits) {
  json::object properties = common_properties(limits);
  properties["messages"] = messages_field(limits);
  const std::string_view length = "Most tokens to write. Default: what the context has left.";
  properties["max_completion_tokens"] = integer(1, kMaxInt32, nullptr, length);
  properties["max_tokens"] = integer(1, kMaxInt32, nullptr, "The older name of the same.");
  properties["logprobs"] = boolean(false, "Log probabilities of the tokens.");
  properties["top_logprobs"] =
      integer(0, limits.max_logprobs, nullptr, "With so many of the most likely; with logprobs.");
  // Clients send these empty.
  properties["tools"] = nullable_array({{"type", "object"}}, 0, "Not supported: only [].");
  properties["functions"] = nullable_array({{"type", "object"}}, 0, "Not supported: only [].");
  properties["tool_choice"] =
      one_of({"none", "auto"}, nullptr, "Has no effect: there are no tools.");
  properties["parallel_tool_calls"] = ignored("boolean", "Has no effect: there are no tools.");
  return request_object(std::move(properties), {"messages"});
}

json::object tokenize_schema(const ApiLimits& limits) {
  json::object prompt = plain_text(limits);
  prompt["description"] = "Text; what looks like a special token is ordinary text.";
  json::object messages = messages_field(limits);
  messages["description"] = "A conversation, put through the chat template.";
  const json::object common{
      {"model", text(256, "A name from /v1/models.")},
      {"add_special_tokens", ignored("boolean", "Has no effect: GPT-2 adds none.")},
      {"return_token_strs", boolean(false, "Add token_strs to the answer.")}};
  json::object of_text = common, of_chat = common;
  of_text["prompt"] = std::move(prompt);
  of_chat["messages"] = std::move(messages);
  json::object alternatives[] = {request_object(std::move(of_text), {"prompt"}),
                                 request_object(std::move(of_chat), {"messages"})};
  alternatives[0]["title"] = "an object with a prompt";
  alternatives[1]["title"] = "an object with messages";
  return {{"anyOf", json::array{alternatives[0], alternatives[1]}}};
}

json::object detokenize_schema(const ApiLimits& limits) {
  json::object tokens =
      array_of(token_id(limits), 0, limits.max_model_len * 16, "an array of token ids");
  return request_object(
      {{"model", text(256, "A name from /v1/models.")}, {"tokens", std::move(tokens)}}, {"tokens"});
}

}  // namespace caravan
