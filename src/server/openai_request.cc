#include "server/openai_request.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <set>

#include "core/error.h"
#include "core/log.h"
#include "server/api_error.h"
#include "server/json_schema.h"
#include "tokenizer/json_fields.h"

namespace caravan {

namespace json = boost::json;

namespace {

// vLLM takes temperatures below this for 0 too: their softmax is the argmax, or overflows.
constexpr double kLeastTemperature = 1e-5;

std::string text_of(const json::value& value) {
  return {value.get_string().data(), value.get_string().size()};
}

// The schema has made sure of types and ranges; absent and null are the same.
int64_t integer_of(const json::object& body, std::string_view name, int64_t fallback) {
  const json::value* value = find_field(body, name);
  return value == nullptr ? fallback : value->to_number<int64_t>();
}
std::optional<int64_t> optional_integer(const json::object& body, std::string_view name) {
  const json::value* value = find_field(body, name);
  if (value == nullptr) return std::nullopt;
  return value->to_number<int64_t>();
}
float number_of(const json::object& body, std::string_view name, float fallback) {
  const json::value* value = find_field(body, name);
  return value == nullptr ? fallback : static_cast<float>(value->to_number<double>());
}
bool flag_of(const json::object& body, std::string_view name, bool fallback) {
  const json::value* value = find_field(body, name);
  return value == nullptr ? fallback : value->get_bool();
}
std::string string_field(const json::object& body, std::string_view name) {
  const json::value* value = find_field(body, name);
  return value == nullptr ? "" : text_of(*value);
}

std::vector<int32_t> ids_of(const json::value& array) {
  std::vector<int32_t> ids;
  ids.reserve(array.get_array().size());
  for (const json::value& id : array.get_array()) ids.push_back(id.to_number<int32_t>());
  return ids;
}

std::vector<PromptInput> prompts_of(const json::value& prompt) {
  if (prompt.is_string()) return {{.text = text_of(prompt), .ids = {}, .is_ids = false}};
  const json::array& array = prompt.get_array();
  if (array.front().is_number()) return {{.text = "", .ids = ids_of(prompt), .is_ids = true}};
  std::vector<PromptInput> prompts;
  for (const json::value& each : array) {
    if (each.is_string()) {
      prompts.push_back({.text = text_of(each), .ids = {}, .is_ids = false});
    } else {
      prompts.push_back({.text = "", .ids = ids_of(each), .is_ids = true});
    }
  }
  return prompts;
}

/// Of text, or of parts.
std::string content_of(const json::value& content) {
  if (content.is_string()) return text_of(content);
  std::string text;
  for (const json::value& part : content.get_array()) {
    if (part.is_string()) {
      text += text_of(part);
      continue;
    }
    const json::value* said = find_field(part.get_object(), "text");
    text += text_of(said != nullptr ? *said : part.get_object().at("refusal"));
  }
  return text;
}

/// What an assistant said, and after it the calls of tools, one a line: {"name": ...}.
std::string assistant_content(const json::object& message) {
  std::string text;
  if (const json::value* content = find_field(message, "content")) {
    text = content_of(*content);
  } else {
    text = string_field(message, "refusal");
  }
  const auto add_call = [&](const json::value& call) {
    text += (text.empty() ? "" : "\n") + json::serialize(call);
  };
  if (const json::value* calls = find_field(message, "tool_calls")) {
    for (const json::value& call : calls->get_array()) {
      const json::value* function = find_field(call.get_object(), "function");
      add_call(function != nullptr ? *function : call);
    }
  }
  if (const json::value* call = find_field(message, "function_call")) add_call(*call);
  return text;
}

std::vector<ChatMessage> messages_of(const json::value& messages) {
  std::vector<ChatMessage> result;
  for (const json::value& message : messages.get_array()) {
    const json::object& object = message.get_object();
    const std::string role = text_of(object.at("role"));
    if (role == "assistant") {
      result.push_back({ChatRole::kAssistant, assistant_content(object)});
      continue;
    }
    const json::value* content = find_field(object, "content");
    if (content == nullptr) {
      const std::string param = fmt::format("messages[{}].content", result.size());
      throw_bad_request(param, param + ": this field is required", "missing_required_parameter");
    }
    // What a tool answered is told as a user would.
    const bool is_system = role == "system" || role == "developer";
    result.push_back({is_system ? ChatRole::kSystem : ChatRole::kUser, content_of(*content)});
  }
  return result;
}

std::vector<std::string> stops_of(const json::object& body) {
  const json::value* stop = find_field(body, "stop");
  if (stop == nullptr) return {};
  if (stop->is_string()) return {text_of(*stop)};
  std::vector<std::string> stops;
  for (const json::value& each : stop->get_array()) stops.push_back(text_of(each));
  return stops;
}

std::vector<std::pair<int32_t, float>> logit_bias_of(const json::object& body, int32_t vocab_size) {
  const json::value* bias = find_field(body, "logit_bias");
  if (bias == nullptr) return {};
  std::vector<std::pair<int32_t, float>> entries;
  std::set<int32_t> ids;
  for (const auto& member : bias->get_object()) {
    if (member.value().is_null()) continue;
    const std::string_view key(member.key().data(), member.key().size());
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    const bool is_id = error == std::errc() && end == key.data() + key.size() && id >= 0 &&
                       (key == "0" || key.front() != '0');
    if (!is_id || id >= vocab_size) {
      throw_bad_request("logit_bias",
                        fmt::format("logit_bias: got the key \"{}\", expected a token "
                                    "id from 0 to {}",
                                    printable(key), vocab_size - 1));
    }
    entries.emplace_back(id, static_cast<float>(member.value().to_number<double>()));
  }
  return entries;
}

EncodeRequest encoding_of(const json::object& body) {
  return {.adds_special = flag_of(body, "add_special_tokens", true),
          .parses_special = flag_of(body, "parse_special", false)};
}

std::string request_id_of(const json::object& body) {
  std::string id = string_field(body, "request_id");
  const bool is_plain = std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("._:-").find(c) != std::string_view::npos;
  });
  if (!is_plain) {
    throw_bad_request("request_id", fmt::format("request_id: got \"{}\", expected letters, digits "
                                                "and ._:-",
                                                printable(id)));
  }
  return id;
}

/// What clients do ask for, in words that say more than the schema's.
void refuse_unsupported(const json::object& body, const json::object& schema) {
  const json::value* fields = schema.if_contains("properties");
  if (fields == nullptr) return;
  const auto refuse = [&](const char* name, const char* why) {
    const json::value* value = find_field(body, name);
    if (value == nullptr || !fields->get_object().contains(name)) return;
    const bool is_empty = (value->is_string() && value->get_string().empty()) ||
                          (value->is_array() && value->get_array().empty());
    if (is_empty) return;
    throw_bad_request(name,
                      fmt::format("{}: got {}, but {}: leave it out", name, describe(*value), why),
                      "unsupported_parameter");
  };
  refuse("suffix", "this model cannot fill in text");
  refuse("tools", "tools are not supported yet");
  refuse("functions", "tools are not supported yet");
}

}  // namespace

SamplingDefaults load_sampling_defaults(const std::string& directory) {
  constexpr size_t kMaxBytes = size_t{1} << 20;
  SamplingDefaults defaults;
  const std::string path = directory + "/generation_config.json";
  if (!std::filesystem::exists(path)) return defaults;
  const json::value config = parse_json_file(path, kMaxBytes);
  CARAVAN_CHECK_CODE(config.is_object(), kCorrupt, "{}: expected a JSON object", path);
  const json::object schema = completion_schema({.max_model_len = 1, .vocab_size = 1});
  const auto read = [&](const char* name, auto& target) {
    const json::value* value = find_field(config.get_object(), name);
    if (value == nullptr) return;
    try {
      validate_json(*value, schema.at("properties").at(name).get_object(), name);
      target = static_cast<std::remove_reference_t<decltype(target)>>(value->to_number<double>());
    } catch (const ApiError& error) {
      log_warning("{}: {}: ignored", path, error.what());
    }
  };
  read("temperature", defaults.temperature);
  read("top_p", defaults.top_p);
  read("top_k", defaults.top_k);
  read("min_p", defaults.min_p);
  read("repetition_penalty", defaults.repetition_penalty);
  return defaults;
}

RequestParser::RequestParser(const ApiLimits& limits, const SamplingDefaults& defaults)
    : limits_(limits),
      defaults_(defaults),
      completion_schema_(completion_schema(limits)),
      chat_schema_(chat_schema(limits)),
      tokenize_schema_(tokenize_schema(limits)),
      detokenize_schema_(detokenize_schema(limits)) {}

json::object RequestParser::parse(std::string_view body, const json::object& schema) const {
  json::value value;
  try {
    value = parse_json(body, "request body");
  } catch (const Error& error) {
    throw_bad_request("", error.what());
  }
  if (!value.is_object()) {
    throw_bad_request("",
                      fmt::format("request body: got {}, expected a JSON object", describe(value)));
  }
  refuse_unsupported(value.get_object(), schema);
  validate_json(value, schema, "");
  return std::move(value.get_object());
}

void RequestParser::read_common(const json::object& body, GenerateRequest& request) const {
  request.model = string_field(body, "model");
  request.n = integer_of(body, "n", 1);
  request.stream = flag_of(body, "stream", false);
  if (const json::value* options = find_field(body, "stream_options")) {
    request.includes_usage = flag_of(options->get_object(), "include_usage", false);
    request.has_continuous_usage = flag_of(options->get_object(), "continuous_usage_stats", false);
    if (!request.stream && (request.includes_usage || request.has_continuous_usage)) {
      throw_bad_request("stream_options", "stream_options: only allowed when stream is true");
    }
  }
  SamplingParams& params = request.params;
  params.temperature = number_of(body, "temperature", defaults_.temperature);
  if (params.temperature < kLeastTemperature) params.temperature = 0;
  // Below the smallest float, a number in (0, 1] would become 0.
  params.top_p = std::max(number_of(body, "top_p", defaults_.top_p), 1e-30f);
  params.top_k = std::max(0, static_cast<int32_t>(integer_of(body, "top_k", defaults_.top_k)));
  params.min_p = number_of(body, "min_p", defaults_.min_p);
  params.presence_penalty = number_of(body, "presence_penalty", 0);
  params.frequency_penalty = number_of(body, "frequency_penalty", 0);
  params.repetition_penalty =
      std::max(number_of(body, "repetition_penalty", defaults_.repetition_penalty), 1e-30f);
  params.logit_bias = logit_bias_of(body, limits_.vocab_size);
  if (const json::value* ids = find_field(body, "stop_token_ids")) {
    params.stop_token_ids = ids_of(*ids);
  }
  params.ignore_eos = flag_of(body, "ignore_eos", false);
  params.min_output_len = integer_of(body, "min_tokens", 0);
  request.seed = optional_integer(body, "seed");
  request.stop = stops_of(body);
  request.includes_stop = flag_of(body, "include_stop_str_in_output", false);
  request.skips_special_tokens = flag_of(body, "skip_special_tokens", true);
  request.num_prompt_logprobs = static_cast<int32_t>(integer_of(body, "prompt_logprobs", -1));
  request.truncate_prompt_tokens = optional_integer(body, "truncate_prompt_tokens");
  if (request.truncate_prompt_tokens == 0) {
    throw_bad_request("truncate_prompt_tokens",
                      "truncate_prompt_tokens: got the number 0, expected -1 or at least 1");
  }
  if (const json::value* overflow = find_field(body, "overflow")) {
    request.overflow = text_of(*overflow);
  }
  request.priority = static_cast<int32_t>(integer_of(body, "priority", 0));
  if (request.priority != 0 && !limits_.has_priorities) {
    throw_bad_request("priority",
                      fmt::format("priority: got {}, but this server takes requests in "
                                  "the order they come (--scheduling-policy fcfs): leave "
                                  "it out",
                                  request.priority));
  }
  request.cache_salt = string_field(body, "cache_salt");
  request.request_id = request_id_of(body);
  request.returns_token_ids = flag_of(body, "return_token_ids", false);
}

GenerateRequest RequestParser::completion(std::string_view text) const {
  const json::object body = parse(text, completion_schema_);
  GenerateRequest request;
  read_common(body, request);
  request.prompts = prompts_of(body.at("prompt"));
  request.encoding = encoding_of(body);
  request.max_tokens = optional_integer(body, "max_tokens");
  request.best_of = integer_of(body, "best_of", request.n);
  request.num_logprobs = static_cast<int32_t>(integer_of(body, "logprobs", -1));
  request.echo = flag_of(body, "echo", false);
  request.keep_first = integer_of(body, "overflow_keep_first", 0);
  request.keep_last = integer_of(body, "overflow_keep_last", 0);
  if (request.best_of < request.n) {
    throw_bad_request("best_of", fmt::format("best_of: got {}, expected at least n, which is {}",
                                             request.best_of, request.n));
  }
  if (request.stream && request.best_of > request.n) {
    throw_bad_request("best_of",
                      fmt::format("best_of: got {} with n {}, but a stream cannot choose "
                                  "among choices that are not complete",
                                  request.best_of, request.n));
  }
  const int64_t num_choices =
      static_cast<int64_t>(request.prompts.size()) * std::max(request.n, request.best_of);
  if (num_choices > limits_.max_choices) {
    throw_bad_request("n", fmt::format("n: {} prompts with n or best_of {} are {} choices, at most "
                                       "{} are allowed in one request",
                                       request.prompts.size(), request.best_of, num_choices,
                                       limits_.max_choices));
  }
  if (request.max_tokens == 0 && !request.echo && request.num_prompt_logprobs < 0) {
    throw_bad_request("max_tokens",
                      "max_tokens: got 0, expected at least 1 without echo or "
                      "prompt_logprobs");
  }
  return request;
}

GenerateRequest RequestParser::chat(std::string_view text) const {
  const json::object body = parse(text, chat_schema_);
  GenerateRequest request;
  request.is_chat = true;
  read_common(body, request);
  request.best_of = request.n;
  request.messages = messages_of(body.at("messages"));
  request.max_tokens = optional_integer(body, "max_completion_tokens");
  if (!request.max_tokens) request.max_tokens = optional_integer(body, "max_tokens");
  const std::optional<int64_t> top = optional_integer(body, "top_logprobs");
  const bool wants_logprobs = flag_of(body, "logprobs", false);
  if (top.value_or(0) > 0 && !wants_logprobs) {
    throw_bad_request("top_logprobs", "top_logprobs: only allowed when logprobs is true");
  }
  if (flag_of(body, "continue_final_message", false) &&
      request.messages.back().role != ChatRole::kAssistant) {
    throw_bad_request("continue_final_message",
                      "continue_final_message: got true, but the last message is not an "
                      "assistant's");
  }
  if (wants_logprobs) request.num_logprobs = static_cast<int32_t>(top.value_or(0));
  return request;
}

TokenizeRequest RequestParser::tokenize(std::string_view text) const {
  const json::object body = parse(text, tokenize_schema_);
  TokenizeRequest request;
  request.model = string_field(body, "model");
  if (const json::value* prompt = find_field(body, "prompt")) request.prompt = text_of(*prompt);
  request.encoding = encoding_of(body);
  if (const json::value* messages = find_field(body, "messages")) {
    request.messages = messages_of(*messages);
  }
  request.returns_token_strings = flag_of(body, "return_token_strs", false);
  return request;
}

DetokenizeRequest RequestParser::detokenize(std::string_view text) const {
  const json::object body = parse(text, detokenize_schema_);
  return {.model = string_field(body, "model"), .tokens = ids_of(body.at("tokens"))};
}

}  // namespace caravan
