#include "apps/prompt_line.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <limits>
#include <optional>

#include "core/error.h"
#include "core/jsonl.h"
#include "engine/prompt_template.h"
#include "sampling/sampler.h"
#include "server/api_error.h"
#include "server/json_schema.h"
#include "tokenizer/json_fields.h"

namespace caravan {

namespace json = boost::json;

namespace {

/// Fields of the server's table (server/request_schema.h) that a line may have.
constexpr const char* kServerFields[] = {"model",        "n",
                                         "temperature",  "top_p",
                                         "top_k",        "min_p",
                                         "seed",         "presence_penalty",
                                         "stop",         "frequency_penalty",
                                         "logit_bias",   "repetition_penalty",
                                         "ignore_eos",   "stop_token_ids",
                                         "min_tokens",   "max_tokens",
                                         "logprobs",     "prompt_logprobs",
                                         "user",         "metadata",
                                         "store",        "spaces_between_special_tokens",
                                         "service_tier", "response_format",
                                         "suffix",       "return_token_ids"};

json::object names_schema() {
  return {{"type", json::array{"string", "integer", "null"}}, {"maxLength", 1024}};
}

json::object token_ids_schema(const ApiLimits& limits) {
  return {{"type", json::array{"array", "null"}},
          {"title", "an array of token ids"},
          {"items",
           json::object{{"type", "integer"}, {"minimum", 0}, {"maximum", limits.vocab_size - 1}}}};
}

json::object text_schema() { return {{"type", json::array{"string", "null"}}}; }

json::object line_schema(const ApiLimits& limits) {
  const json::object completion = completion_schema(limits);
  const json::object& known = completion.at("properties").get_object();
  json::object properties;
  for (const char* name : kServerFields) properties[name] = known.at(name);
  // What a line cannot turn on.
  for (const char* name : {"stream", "echo", "include_stop_str_in_output"}) {
    properties[name] = json::object{{"enum", json::array{false, nullptr}}};
  }
  properties["skip_special_tokens"] = json::object{{"enum", json::array{true, nullptr}}};
  properties["prompt"] =
      json::object{{"anyOf", json::array{text_schema(), token_ids_schema(limits)}},
                   {"title", "a string or an array of token ids"}};
  for (const char* name : {"ids", "prompt_ids"}) properties[name] = token_ids_schema(limits);
  for (const char* name : {"text", "instruction", "input"}) properties[name] = text_schema();
  for (const char* name : {"id", "custom_id"}) properties[name] = names_schema();
  properties["parse_special"] = json::object{{"type", json::array{"boolean", "null"}}};
  properties["truncate"] = json::object{{"enum", json::array{"none", "head", "tail", nullptr}}};
  return {{"type", "object"}, {"properties", std::move(properties)}};
}

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  CARAVAN_FAIL(kCorrupt, "{}: {}", where, what);
}

std::string name_of(json::string_view key) { return printable({key.data(), key.size()}); }

void check_known(const json::object& fields, const json::object& properties,
                 const std::string& path, const std::string& where) {
  for (const auto& member : fields) {
    if (properties.contains(member.key())) continue;
    const std::string name = path + name_of(member.key());
    if (name.ends_with("messages")) {
      refuse(where, name + ": run completes prompts; chats are answered by `caravan serve`");
    }
    refuse(where, fmt::format("unknown field \"{}\"", name));
  }
}

std::string text_of(const json::value& value) {
  return {value.get_string().data(), value.get_string().size()};
}

std::vector<int32_t> ids_of(const json::value& array) {
  std::vector<int32_t> ids;
  ids.reserve(array.get_array().size());
  for (const json::value& id : array.get_array()) ids.push_back(id.to_number<int32_t>());
  return ids;
}

/// A prompt under any of its names; the same one under two of them is one.
struct Prompt {
  std::optional<std::string> text;
  std::optional<std::vector<int32_t>> ids;
};

Prompt prompt_of(const json::object& fields, std::initializer_list<const char*> names,
                 const std::string& where) {
  Prompt prompt;
  for (const char* name : names) {
    const json::value* value = find_field(fields, name);
    if (value == nullptr) continue;
    bool is_other = false;
    if (value->is_string()) {
      std::string text = text_of(*value);
      is_other = prompt.ids || (prompt.text && *prompt.text != text);
      prompt.text = std::move(text);
    } else {
      std::vector<int32_t> ids = ids_of(*value);
      if (ids.empty()) refuse(where, fmt::format("\"{}\" is empty, expected token ids", name));
      is_other = prompt.text || (prompt.ids && *prompt.ids != ids);
      prompt.ids = std::move(ids);
    }
    if (is_other) refuse(where, fmt::format("\"{}\" is a second prompt, expected one", name));
  }
  return prompt;
}

/// Puts the fields' prompt, in its template, into the request.
void read_prompt(const json::object& fields, const PromptDefaults& defaults,
                 const std::string& where, LlmRequest& request) {
  Prompt prompt = prompt_of(fields, {"prompt", "text", "ids", "prompt_ids"}, where);
  const json::value* instruction = find_field(fields, "instruction");
  const json::value* input = find_field(fields, "input");
  if (!defaults.is_camel) {
    if (instruction != nullptr || input != nullptr) {
      refuse(where, fmt::format("\"{}\" needs --template camel",
                                instruction != nullptr ? "instruction" : "input"));
    }
    if (!prompt.text && !prompt.ids) {
      refuse(where, "no prompt, expected \"prompt\" or \"prompt_ids\"");
    }
    request.prompt = std::move(prompt.text).value_or("");
    request.prompt_ids = std::move(prompt.ids).value_or(std::vector<int32_t>());
    return;
  }
  if (prompt.ids) refuse(where, "token ids go into no template: leave --template camel out");
  if (instruction != nullptr && prompt.text) {
    refuse(where, "both a prompt and an instruction, expected one");
  }
  const std::string task =
      instruction != nullptr ? text_of(*instruction) : std::move(prompt.text).value_or("");
  if (task.empty()) refuse(where, "the instruction is empty, expected \"instruction\"");
  request.prompt = camel_prompt(task, input == nullptr ? "" : text_of(*input));
}

template <typename T>
void read_number(const json::object& fields, const char* name, T& target) {
  const json::value* value = find_field(fields, name);
  if (value == nullptr) return;
  if constexpr (std::is_floating_point_v<T>) {
    target = static_cast<T>(value->to_number<double>());
  } else {
    target = static_cast<T>(value->to_number<int64_t>());
  }
}

void read_bool(const json::object& fields, const char* name, bool& target) {
  const json::value* value = find_field(fields, name);
  if (value != nullptr) target = value->get_bool();
}

void read_logit_bias(const json::value& bias, int32_t vocab_size, const std::string& path,
                     const std::string& where, SamplingParams& params) {
  params.logit_bias.clear();
  for (const auto& member : bias.get_object()) {
    const std::string_view key(member.key().data(), member.key().size());
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocab_size) {
      refuse(where,
             fmt::format("{}logit_bias: got the key \"{}\", expected a token id from 0 to {}", path,
                         printable(key), vocab_size - 1));
    }
    params.logit_bias.emplace_back(id, static_cast<float>(member.value().to_number<double>()));
  }
}

void read_sampling(const json::object& fields, SamplingParams& params) {
  read_number(fields, "max_tokens", params.max_output_len);
  read_number(fields, "min_tokens", params.min_output_len);
  read_number(fields, "temperature", params.temperature);
  read_number(fields, "top_k", params.top_k);
  params.top_k = std::max(0, params.top_k);
  read_number(fields, "top_p", params.top_p);
  read_number(fields, "min_p", params.min_p);
  read_number(fields, "repetition_penalty", params.repetition_penalty);
  read_number(fields, "presence_penalty", params.presence_penalty);
  read_number(fields, "frequency_penalty", params.frequency_penalty);
  read_number(fields, "logprobs", params.num_logprobs);
  read_number(fields, "prompt_logprobs", params.num_prompt_logprobs);
  read_bool(fields, "ignore_eos", params.ignore_eos);
  if (const json::value* seed = find_field(fields, "seed")) {
    const auto number = seed->to_number<int64_t>();
    params.seed = number == -1 ? resolve_seed(kRandomSeed) : static_cast<uint64_t>(number);
  }
  if (const json::value* ids = find_field(fields, "stop_token_ids")) {
    params.stop_token_ids = ids_of(*ids);
  }
  if (const json::value* stop = find_field(fields, "stop")) {
    params.stop.clear();
    if (stop->is_string()) {
      params.stop.push_back(text_of(*stop));
    } else {
      for (const json::value& each : stop->get_array()) params.stop.push_back(text_of(each));
    }
  }
}

/// The schema's complaint, with the line in front.
void validate(const json::object& fields, const json::object& schema, const std::string& path,
              const std::string& where) {
  try {
    for (const auto& member : fields) {
      const json::value& field = schema.at("properties").at(member.key());
      validate_json(member.value(), field.get_object(), path + name_of(member.key()));
    }
  } catch (const ApiError& error) {
    refuse(where, error.what());
  }
}

}  // namespace

json::object line_names(const json::object& line) {
  json::object names;
  for (const char* name : {"id", "custom_id"}) {
    const json::value* value = find_field(line, name);
    if (value != nullptr && (value->is_string() || value->is_number())) names[name] = *value;
  }
  return names;
}

PromptLineParser::PromptLineParser(const ApiLimits& limits, PromptDefaults defaults)
    : defaults_(std::move(defaults)),
      vocab_size_(limits.vocab_size),
      schema_(line_schema(limits)) {}

PromptLine PromptLineParser::parse(const json::object& line, const std::string& where) const {
  if (!line.contains("body")) return parse_fields(line, "", where);
  const json::object batch{
      {"properties", json::object{{"id", names_schema()},
                                  {"custom_id", names_schema()},
                                  {"method", json::object{{"enum", json::array{"POST"}}}},
                                  {"url", json::object{{"enum", json::array{"/v1/completions"}}}},
                                  {"body", json::object{{"type", "object"}}}}}};
  check_known(line, batch.at("properties").get_object(), "", where);
  validate(line, batch, "", where);
  return parse_fields(line.at("body").get_object(), "body.", where);
}

PromptLine PromptLineParser::parse_fields(const json::object& fields, const std::string& path,
                                          const std::string& where) const {
  check_known(fields, schema_.at("properties").get_object(), path, where);
  validate(fields, schema_, path, where);
  PromptLine line;
  line.request.params = defaults_.sampling;
  line.request.parse_special = defaults_.parse_special;
  line.num_return = defaults_.num_return;
  line.truncate = defaults_.truncate;
  read_prompt(fields, defaults_, where, line.request);
  read_sampling(fields, line.request.params);
  if (const json::value* bias = find_field(fields, "logit_bias")) {
    read_logit_bias(*bias, vocab_size_, path, where, line.request.params);
  }
  read_bool(fields, "parse_special", line.request.parse_special);
  read_number(fields, "n", line.num_return);
  if (const json::value* truncate = find_field(fields, "truncate")) {
    line.truncate = text_of(*truncate);
  }
  return line;
}

ScoreLine parse_score_line(const json::object& line, bool parse_special, const std::string& where) {
  const json::object properties{
      {"text", text_schema()},
      {"prompt", text_schema()},
      {"ids", token_ids_schema({.vocab_size = std::numeric_limits<int32_t>::max()})},
      {"prompt_ids", token_ids_schema({.vocab_size = std::numeric_limits<int32_t>::max()})},
      {"parse_special", json::object{{"type", json::array{"boolean", "null"}}}},
      {"id", names_schema()},
      {"custom_id", names_schema()}};
  check_known(line, properties, "", where);
  validate(line, {{"properties", properties}}, "", where);
  Prompt prompt = prompt_of(line, {"text", "prompt", "ids", "prompt_ids"}, where);
  if (!prompt.text && !prompt.ids) refuse(where, "no text, expected \"text\" or \"ids\"");
  ScoreLine score;
  score.is_ids = prompt.ids.has_value();
  score.text = std::move(prompt.text).value_or("");
  score.ids = std::move(prompt.ids).value_or(std::vector<int32_t>());
  score.parse_special = parse_special;
  read_bool(line, "parse_special", score.parse_special);
  return score;
}

bool is_of_the_line(const Error& error) {
  return error.code() == ErrorCode::kInvalidArgument || error.code() == ErrorCode::kCorrupt ||
         error.code() == ErrorCode::kUnsupported || error.code() == ErrorCode::kNotFound;
}

uint64_t parse_seed(const std::string& text) {
  if (text == "-1") return resolve_seed(kRandomSeed);
  uint64_t seed = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, seed);
  CARAVAN_CHECK(error == std::errc() && stop == end && !text.empty(),
                "--seed {}: expected a whole number, or -1 for a random one", printable(text));
  return seed;
}

}  // namespace caravan
