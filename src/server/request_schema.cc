#include "server/request_schema.h"

#include <algorithm>
#include <limits>
#include <span>
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

/// The same schema for null too.
void make_nullable(json::object& schema) {
  const auto add_to = [](json::array& list, const json::value& null) {
    if (std::find(list.begin(), list.end(), null) == list.end()) list.push_back(null);
  };
  if (json::value* alternatives = schema.if_contains("anyOf")) {
    add_to(alternatives->get_array(), json::object{{"type", "null"}});
  }
  if (json::value* type = schema.if_contains("type")) {
    if (type->is_string()) *type = json::array{*type};
    add_to(type->get_array(), "null");
  }
  if (json::value* values = schema.if_contains("enum")) add_to(values->get_array(), nullptr);
}

/// An object of these members and no others, but for null, which is the same as absent.
json::object object_of(json::object properties, json::array required) {
  for (auto& member : properties) {
    const json::value name(member.key());
    const bool is_required = std::find(required.begin(), required.end(), name) != required.end();
    if (!is_required) make_nullable(member.value().get_object());
  }
  return {{"type", "object"},
          {"title", "an object"},
          {"properties", std::move(properties)},
          {"required", std::move(required)},
          {"additionalProperties", json::object{{"type", "null"}}}};
}

json::object nullable_object(json::object properties, json::array required,
                             std::string_view description) {
  json::object schema = object_of(std::move(properties), std::move(required));
  schema.erase("title");
  schema["type"] = json::array{"object", "null"};
  schema["description"] = description;
  return schema;
}

/// A field of other servers, and the values at which it changes nothing here: those that mean
/// "off", or what is done anyway. Any other would change the answer and is an error.
struct OffField {
  const char* name;
  const char* values;  // JSON
};

constexpr OffField kOffFields[] = {
    // vLLM's
    {"use_beam_search", "[false]"},
    {"length_penalty", "[1]"},
    {"early_stopping", "[false]"},
    {"detokenize", "[true]"},
    {"bad_words", "[[]]"},
    {"allowed_token_ids", "[[]]"},
    {"logits_processors", "[[]]"},
    {"return_tokens_as_token_ids", "[false]"},
    {"mm_processor_kwargs", "[{}]"},
    {"vllm_xargs", "[{}]"},
    // llama.cpp's
    {"n_probs", "[0]"},
    {"n_indent", "[0]"},
    {"id_slot", "[-1]"},
    {"mirostat", "[0]"},
    {"typical_p", "[1]"},
    {"top_n_sigma", "[-1]"},
    {"dynatemp_range", "[0]"},
    {"dry_multiplier", "[0]"},
    {"xtc_probability", "[0]"},
    {"repeat_penalty", "[1]"},
    {"grammar", "[\"\"]"},
    {"lora", "[[]]"},
};
constexpr OffField kChatOffFields[] = {
    {"echo", "[false]"},
    {"add_generation_prompt", "[true]"},
    {"add_special_tokens", "[false]"},
    {"best_of", "[1]"},
    {"modalities", "[[\"text\"]]"},
    {"documents", "[[]]"},
    {"chat_template_kwargs", "[{}]"},
    {"reasoning_effort", "[\"none\"]"},
    {"verbosity", "[\"medium\"]"},
    {"tools", "[[]]"},
    {"functions", "[[]]"},
    {"tool_choice", "[\"none\", \"auto\"]"},
    {"function_call", "[\"none\", \"auto\"]"},
};
constexpr OffField kMessageOffFields[] = {
    {"images", "[[]]"},
    {"thinking_blocks", "[[]]"},
};

constexpr OffField kTokenizeOffFields[] = {
    {"add_generation_prompt", "[true]"},   {"add_special_tokens", "[false]"},
    {"continue_final_message", "[false]"}, {"chat_template_kwargs", "[{}]"},
    {"mm_processor_kwargs", "[{}]"},       {"tools", "[[]]"},
};

void add_off_fields(std::span<const OffField> fields, json::object& properties) {
  for (const OffField& off : fields) {
    json::array values = json::parse(off.values).get_array();
    values.push_back(nullptr);
    properties[off.name] = json::object{
        {"enum", std::move(values)}, {"description", "Not supported: only what changes nothing."}};
  }
}

/// vLLM wants a text that is not empty.
json::object cache_salt_field() {
  json::object schema =
      text(1024, "Cached beginnings of prompts are shared only among requests with the same salt.");
  schema["minLength"] = 1;
  return schema;
}

json::object response_format_field() {
  return nullable_object(
      {{"type", json::object{{"type", "string"}, {"enum", json::array{"text"}}}}}, {"type"},
      "Only {\"type\": \"text\"}: structured output is not supported.");
}

json::object stream_options_field() {
  return nullable_object(
      {{"include_usage", boolean(false, "A last chunk with usage and no choices.")},
       {"continuous_usage_stats", boolean(false, "Usage so far in every chunk.")},
       {"include_obfuscation", ignored("boolean", "Has no effect.")}},
      {}, "Only with stream.");
}

json::object logit_bias_field(const ApiLimits& limits) {
  return {{"type", json::array{"object", "null"}},
          {"description", "Token id, as a string, to what is added to its logit."},
          {"maxProperties", limits.max_logit_bias},
          {"propertyNames", json::object{{"pattern", "^(0|[1-9][0-9]{0,7})$"}}},
          {"additionalProperties",
           json::object{
               {"type", json::array{"number", "null"}}, {"minimum", -100.0}, {"maximum", 100.0}}}};
}

/// What both kinds of completion take.
json::object common_properties(const ApiLimits& limits) {
  json::object properties{
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
      {"seed", integer(std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(),
                       nullptr, "Same seed, prompt and settings: same tokens. Default: random.")},
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
      {"priority", integer(-limits.max_priority, limits.max_priority, 0,
                           "Lower goes first; other than 0 only with --scheduling-policy "
                           "priority.")},
      {"cache_salt", cache_salt_field()},
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
      {"prompt_cache_retention", ignored("string", "Has no effect.")},
      {"cache_prompt", ignored("boolean", "Has no effect: equal beginnings are found.")}};
  add_off_fields(kOffFields, properties);
  return properties;
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

/// A content is text or parts; a part is text, or an object that says so.
json::object content_field(const ApiLimits& limits) {
  const json::object ignored_members{{"id", ignored("string", "Has no effect.")},
                                     {"cache_control", ignored("object", "Has no effect.")},
                                     {"annotations", ignored("array", "Has no effect.")},
                                     {"logprobs", ignored("array", "Has no effect.")}};
  const auto part = [&](json::array types, const char* member, const char* title) {
    json::object members = ignored_members;
    members["type"] = json::object{{"type", "string"}, {"enum", std::move(types)}};
    members[member] = plain_text(limits);
    json::object schema = object_of(std::move(members), {"type", member});
    schema["title"] = title;
    return schema;
  };
  const json::object item{
      {"anyOf",
       json::array{plain_text(limits),
                   part({"text", "input_text", "output_text"}, "text", "a part of type text"),
                   part({"refusal"}, "refusal", "a part of type refusal")}}};
  return {{"anyOf", json::array{plain_text(limits),
                                array_of(item, 0, limits.max_messages, "an array of text parts")}}};
}

json::object messages_field(const ApiLimits& limits) {
  json::object members{
      {"role", json::object{{"type", "string"},
                            {"enum", json::array{"system", "developer", "user", "assistant", "tool",
                                                 "function"}}}},
      {"content", content_field(limits)},  // only an assistant may go without
      {"refusal", text(limits.max_text_chars, "An assistant's content, where it has none.")},
      {"tool_calls", nullable_array({{"type", "object"}}, limits.max_messages,
                                    "Written as JSON after an assistant's content.")},
      {"function_call", ignored("object", "The same, the older form.")},
      {"tool_call_id", ignored("string", "Has no effect.")},
      {"id", ignored("string", "Has no effect.")},
      {"name", ignored("string", "Has no effect.")},
      {"annotations", ignored("array", "Has no effect.")},
      {"cache_control", ignored("object", "Has no effect.")},
      {"provider_specific_fields", ignored("object", "Has no effect.")},
      {"reasoning", ignored("string", "Has no effect: earlier reasoning is left out.")},
      {"reasoning_content", ignored("string", "Has no effect: earlier reasoning is left out.")}};
  add_off_fields(kMessageOffFields, members);
  json::object schema = array_of(object_of(std::move(members), {"role"}), 1, limits.max_messages,
                                 "an array of messages");
  schema["description"] =
      "Neighbours of one role are joined by a line break; a system message after the first turn is "
      "part of the user's turn there, and so is what a tool answered; an assistant's last message "
      "is continued.";
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
  properties["suffix"] =
      json::object{{"enum", json::array{"", nullptr}},
                   {"description", "Not supported: the model writes on, not in between."}};
  properties["add_special_tokens"] =
      boolean(true, "With the tokens that the tokenizer puts around a prompt; GPT-2 has none.");
  properties["parse_special"] = boolean(
      false, "What looks like a special token in a prompt is one: for text that is trusted.");
  const json::object kept = integer(0, limits.max_model_len, 0,
                                    "First tokens of the prompt that overflow never leaves out.");
  properties["overflow_keep_first"] = kept;
  properties["overflow_keep_last"] =
      integer(0, limits.max_model_len, 0, "The same for its last tokens.");
  return object_of(std::move(properties), {"prompt"});
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
  properties["parallel_tool_calls"] = ignored("boolean", "Has no effect: there are no tools.");
  properties["include_reasoning"] = ignored("boolean", "Has no effect: there is none.");
  properties["continue_final_message"] =
      boolean(false, "Has no effect: an assistant's last message is continued anyway.");
  add_off_fields(kChatOffFields, properties);
  return object_of(std::move(properties), {"messages"});
}

json::object tokenize_schema(const ApiLimits& limits) {
  json::object prompt = plain_text(limits);
  prompt["description"] = "Text; see parse_special.";
  json::object messages = messages_field(limits);
  messages["description"] = "A conversation, put through the chat template.";
  const json::object common{{"model", text(256, "A name from /v1/models.")},
                            {"return_token_strs", boolean(false, "Add token_strs to the answer.")}};
  json::object of_text = common, of_chat = common;
  of_text["prompt"] = std::move(prompt);
  of_text["add_special_tokens"] =
      boolean(true, "With the tokens that the tokenizer puts around a prompt; GPT-2 has none.");
  of_text["parse_special"] =
      boolean(false, "What looks like a special token is one: for text that is trusted.");
  add_off_fields(kTokenizeOffFields, of_chat);
  of_chat["messages"] = std::move(messages);
  json::object alternatives[] = {object_of(std::move(of_text), {"prompt"}),
                                 object_of(std::move(of_chat), {"messages"})};
  alternatives[0]["title"] = "an object with a prompt";
  alternatives[1]["title"] = "an object with messages";
  return {{"anyOf", json::array{alternatives[0], alternatives[1]}}};
}

json::object detokenize_schema(const ApiLimits& limits) {
  json::object tokens =
      array_of(token_id(limits), 0, limits.max_model_len * 16, "an array of token ids");
  return object_of({{"model", text(256, "A name from /v1/models.")}, {"tokens", std::move(tokens)}},
                   {"tokens"});
}

}  // namespace caravan
