#include "server/openapi.h"

#include <initializer_list>
#include <string_view>
#include <utility>

namespace caravan {

namespace json = boost::json;

namespace {

json::object ref(std::string_view name) {
  return {{"$ref", "#/components/schemas/" + std::string(name)}};
}

json::object of_type(std::string_view type) { return {{"type", type}}; }
json::object or_null(std::string_view type) { return {{"type", json::array{type, "null"}}}; }
json::object list_of(json::object items) {
  return {{"type", "array"}, {"items", std::move(items)}};
}
json::object constant(std::string_view text) {
  return {{"type", "string"}, {"enum", json::array{text}}};
}

/// An object of these members; those whose name begins with '?' may be absent.
json::object object_of(std::initializer_list<std::pair<std::string_view, json::object>> members) {
  json::object properties;
  json::array required;
  for (const auto& [name, schema] : members) {
    const bool is_optional = name.front() == '?';
    const std::string_view bare = name.substr(is_optional ? 1 : 0);
    properties[bare] = schema;
    if (!is_optional) required.push_back(json::value(bare));
  }
  return {{"type", "object"},
          {"properties", std::move(properties)},
          {"required", std::move(required)},
          {"additionalProperties", false}};
}

json::object json_content(json::object schema) {
  return {{"application/json", json::object{{"schema", std::move(schema)}}}};
}

json::object response(std::string_view description, json::object schema) {
  return {{"description", description}, {"content", json_content(std::move(schema))}};
}

/// A stream or one object, as the request says.
json::object completion_response(std::string_view description, std::string_view schema) {
  json::object content = json_content(ref(schema));
  content["text/event-stream"] = json::object{{"schema", of_type("string")}};
  return {{"description", description}, {"content", std::move(content)}};
}

json::object error_responses(bool has_key) {
  json::object responses;
  const auto add = [&](const char* status, const char* description) {
    responses[status] = response(description, ref("Error"));
  };
  add("400", "The request is not valid JSON, or a field is wrong: error.param names it.");
  if (has_key) add("401", "The API key is missing or wrong.");
  add("403", "The host or the origin is not allowed.");
  add("404", "The model, or the page, does not exist.");
  add("408", "The request took too long to arrive.");
  add("413", "The body is too large.");
  add("415", "The body is not JSON, or is encoded.");
  add("429", "The queue is full; Retry-After says when to come again.");
  add("500", "The engine failed, or this request's numbers are not finite.");
  add("503", "The model is loading, or the server is about to stop.");
  add("504", "The answer took longer than the server allows.");
  return responses;
}

json::object operation(std::string_view id, std::string_view summary, json::object ok,
                       std::string_view request_schema = "") {
  json::object responses = error_responses(true);
  responses["200"] = std::move(ok);
  json::object result{{"operationId", id},
                      {"summary", summary},
                      {"responses", std::move(responses)},
                      {"security", json::array{json::object{{"key", json::array()}}}}};
  if (!request_schema.empty()) {
    result["requestBody"] =
        json::object{{"required", true}, {"content", json_content(ref(request_schema))}};
  }
  return result;
}

/// Health checks need no key.
json::object health_operation(std::string_view id, std::string_view summary, json::object ok) {
  json::object result = operation(id, summary, std::move(ok));
  result["security"] = json::array();
  return result;
}

json::object path_parameter(std::string_view name) {
  return {{"name", name},
          {"in", "path"},
          {"required", true},
          {"schema",
           json::object{{"type", "string"}, {"pattern", "^[^\\x00-\\x1f\\x7f-\\x9f\\\\]+$"}}}};
}

json::object completion_choice() {
  return object_of({{"index", of_type("integer")},
                    {"text", of_type("string")},
                    {"logprobs", or_null("object")},
                    {"finish_reason", of_type("string")},
                    {"stop_reason", {{"type", json::array{"string", "integer", "null"}}}},
                    {"?prompt_logprobs", of_type("array")},
                    {"?token_ids", list_of(of_type("integer"))},
                    {"?prompt_token_ids", list_of(of_type("integer"))}});
}

json::object chat_choice() {
  json::object choice = completion_choice();
  json::object& properties = choice["properties"].get_object();
  properties.erase("text");
  properties["message"] = object_of({{"role", constant("assistant")},
                                     {"content", of_type("string")},
                                     {"refusal", of_type("null")}});
  json::array required;
  for (const char* name : {"index", "message", "logprobs", "finish_reason", "stop_reason"}) {
    required.push_back(name);
  }
  choice["required"] = std::move(required);
  return choice;
}

json::object completion_object(std::string_view kind, json::object choice) {
  return object_of({{"id", of_type("string")},
                    {"object", constant(kind)},
                    {"created", of_type("integer")},
                    {"model", of_type("string")},
                    {"system_fingerprint", of_type("string")},
                    {"choices", list_of(std::move(choice))},
                    {"usage", ref("Usage")},
                    {"timings", ref("Timings")},
                    {"?caravan", ref("Dropped")}});
}

json::object schemas(const ApiLimits& limits) {
  const json::object integer = of_type("integer"), number = of_type("number"),
                     text = of_type("string");
  json::object all;
  all["CompletionRequest"] = completion_schema(limits);
  all["ChatCompletionRequest"] = chat_schema(limits);
  all["TokenizeRequest"] = tokenize_schema(limits);
  all["DetokenizeRequest"] = detokenize_schema(limits);
  all["Completion"] = completion_object("text_completion", completion_choice());
  all["ChatCompletion"] = completion_object("chat.completion", chat_choice());
  all["Usage"] = object_of({{"prompt_tokens", integer},
                            {"completion_tokens", integer},
                            {"total_tokens", integer},
                            {"prompt_tokens_details", object_of({{"cached_tokens", integer}})}});
  all["Timings"] = object_of({{"cache_n", integer},
                              {"prompt_n", integer},
                              {"prompt_ms", number},
                              {"prompt_per_token_ms", number},
                              {"prompt_per_second", number},
                              {"predicted_n", integer},
                              {"predicted_ms", number},
                              {"predicted_per_token_ms", number},
                              {"predicted_per_second", number},
                              {"queue_ms", number}});
  all["Dropped"] = object_of(
      {{"num_dropped_tokens", integer}, {"num_dropped_by_prompt", list_of(of_type("integer"))}});
  all["Error"] = object_of(
      {{"error", object_of({{"message", text},
                            {"type", text},
                            {"param", or_null("string")},
                            {"code", {{"type", json::array{"string", "integer", "null"}}}}})}});
  all["Model"] = object_of({{"id", text},
                            {"object", constant("model")},
                            {"created", integer},
                            {"owned_by", text},
                            {"root", text},
                            {"parent", of_type("null")},
                            {"max_model_len", integer},
                            {"permission", list_of(of_type("object"))}});
  all["ModelList"] = object_of({{"object", constant("list")}, {"data", list_of(ref("Model"))}});
  all["Tokens"] = object_of(
      {{"count", integer},
       {"max_model_len", integer},
       {"tokens", list_of(integer)},
       {"token_strs", {{"type", json::array{"array", "null"}}, {"items", of_type("string")}}}});
  return all;
}

}  // namespace

json::object openapi_document(const ApiLimits& limits, const std::string& version) {
  json::object paths;
  const auto get = [&](const char* path, json::object what) { paths[path] = {{"get", what}}; };
  const auto post = [&](const char* path, json::object what) { paths[path] = {{"post", what}}; };
  post("/v1/completions",
       operation("createCompletion", "Completes prompts",
                 completion_response("The completions", "Completion"), "CompletionRequest"));
  post("/v1/chat/completions",
       operation("createChatCompletion", "Answers a conversation",
                 completion_response("The answers", "ChatCompletion"), "ChatCompletionRequest"));
  post("/tokenize", operation("tokenize", "Token ids of a text", response("The ids", ref("Tokens")),
                              "TokenizeRequest"));
  post("/detokenize", operation("detokenize", "Text of token ids",
                                response("The text", object_of({{"prompt", of_type("string")}})),
                                "DetokenizeRequest"));
  get("/v1/models", operation("listModels", "The model that is served, by all its names",
                              response("The names", ref("ModelList"))));
  json::object model = operation("retrieveModel", "One of these", response("It", ref("Model")));
  model["parameters"] = json::array{path_parameter("model")};
  get("/v1/models/{model}", model);
  get("/version", operation("version", "Version of the server",
                            response("It", object_of({{"version", of_type("string")}}))));
  const json::object status = response("Ready", object_of({{"status", constant("ok")}}));
  get("/health", health_operation("health", "200 when requests are answered", status));
  get("/v1/health", health_operation("healthV1", "The same", status));
  get("/ready", health_operation("ready", "The same", status));
  get("/ping", health_operation("ping", "The same", status));
  get("/v2", operation("serverMetadata", "KServe v2: the server",
                       response("It", object_of({{"name", of_type("string")},
                                                 {"version", of_type("string")},
                                                 {"extensions", of_type("array")}}))));
  get("/v2/health/live",
      health_operation("live", "KServe v2: 200 when the server answers at all",
                       response("Alive", object_of({{"live", of_type("boolean")}}))));
  get("/v2/health/ready",
      health_operation("readyV2", "KServe v2: 200 when requests are answered",
                       response("Ready", object_of({{"ready", of_type("boolean")}}))));
  json::object model_ready = operation(
      "modelReady", "KServe v2: 200 when the model answers",
      response("Ready", object_of({{"name", of_type("string")}, {"ready", of_type("boolean")}})));
  model_ready["parameters"] = json::array{path_parameter("model")};
  get("/v2/models/{model}/ready", model_ready);
  json::object metrics = operation("metrics", "Prometheus metrics", json::object());
  metrics["responses"].get_object()["200"] =
      json::object{{"description", "Text format 0.0.4"},
                   {"content", {{"text/plain", json::object{{"schema", of_type("string")}}}}}};
  get("/metrics", metrics);
  json::object page = health_operation("page", "The web page", json::object());
  page["responses"].get_object()["200"] =
      json::object{{"description", "One file that loads nothing else"},
                   {"content", {{"text/html", json::object{{"schema", of_type("string")}}}}}};
  get("/", page);
  get("/openapi.json", operation("openapi", "This document", response("It", of_type("object"))));
  return {
      {"openapi", "3.1.0"},
      {"info", json::object{{"title", "Caravan"},
                            {"version", version},
                            {"description", "OpenAI-compatible server for GPT-2-family models."},
                            {"license", {{"name", "Apache-2.0"}}}}},
      {"paths", std::move(paths)},
      {"components",
       json::object{
           {"schemas", schemas(limits)},
           {"securitySchemes", {{"key", json::object{{"type", "http"}, {"scheme", "bearer"}}}}}}}};
}

}  // namespace caravan
