#include "server/openai_request.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <limits>
#include <utility>

#include "server/api_error.h"
#include "server/json_schema.h"

namespace caravan {
namespace {

const ApiLimits kLimits{.max_model_len = 2048, .vocab_size = 50258, .has_priorities = true};

RequestParser parser() { return {kLimits, {}}; }

std::string with(const std::string& field, const std::string& value) {
  return "{\"prompt\": \"a\", \"" + field + "\": " + value + "}";
}

/// "" when the body is accepted, else the `param` that is named.
template <typename Parse>
std::string refused_param(const Parse& parse) {
  try {
    parse();
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status(), 400);
    EXPECT_EQ(error.type(), "invalid_request_error");
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.param().empty() ? "(body)" : error.param();
  }
  return "";
}
std::string completion_refusal(const std::string& body) {
  return refused_param([&] { parser().completion(body); });
}
std::string chat_refusal(const std::string& body) {
  return refused_param([&] { parser().chat(body); });
}

TEST(RequestParserTest, DefaultsAreOpenAis) {
  const GenerateRequest request = parser().completion(R"({"prompt": "a", "n": null})");
  ASSERT_EQ(request.prompts.size(), 1u);
  EXPECT_EQ(request.prompts[0].text, "a");
  EXPECT_FALSE(request.max_tokens.has_value());
  EXPECT_FALSE(request.seed.has_value());
  EXPECT_EQ(request.params.temperature, 1.0f);
  EXPECT_EQ(request.params.top_p, 1.0f);
  EXPECT_EQ(request.params.top_k, 0);
  EXPECT_EQ(request.params.repetition_penalty, 1.0f);
  EXPECT_EQ(request.n, 1);
  EXPECT_EQ(request.best_of, 1);
  EXPECT_EQ(request.num_logprobs, -1);
  EXPECT_EQ(request.num_prompt_logprobs, -1);
  EXPECT_FALSE(request.stream || request.echo || request.includes_stop);
  EXPECT_TRUE(request.skips_special_tokens);
}

TEST(RequestParserTest, ReadsEveryField) {
  const GenerateRequest r = parser().completion(
      R"({"model": "m", "prompt": [[1, 2], [3]], "max_tokens": 5, "temperature": 0.5, "top_p": 0.9,
          "top_k": 40, "min_p": 0.1, "n": 2, "best_of": 2, "logprobs": 3, "echo": true,
          "stop": ["x", "yz"], "stop_token_ids": [7], "stream": true,
          "stream_options": {"include_usage": true, "continuous_usage_stats": true},
          "logit_bias": {"5": -100, "50257": 1.5}, "seed": -3, "presence_penalty": 0.25,
          "frequency_penalty": -2, "repetition_penalty": 1.2, "ignore_eos": true, "min_tokens": 2,
          "skip_special_tokens": false, "include_stop_str_in_output": true, "prompt_logprobs": 1,
          "truncate_prompt_tokens": -1, "priority": -4, "request_id": "a.b:c_d-1",
          "return_token_ids": true, "overflow": "middle", "overflow_keep_first": 3,
          "overflow_keep_last": 4, "response_format": {"type": "text"}, "user": "u"})");
  EXPECT_EQ(r.model, "m");
  ASSERT_EQ(r.prompts.size(), 2u);
  EXPECT_EQ(r.prompts[0].ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(r.max_tokens, 5);
  EXPECT_FLOAT_EQ(r.params.temperature, 0.5f);
  EXPECT_FLOAT_EQ(r.params.top_p, 0.9f);
  EXPECT_EQ(r.params.top_k, 40);
  EXPECT_FLOAT_EQ(r.params.min_p, 0.1f);
  EXPECT_EQ(r.n, 2);
  EXPECT_EQ(r.num_logprobs, 3);
  EXPECT_TRUE(r.echo && r.stream && r.includes_usage && r.has_continuous_usage);
  EXPECT_EQ(r.stop, (std::vector<std::string>{"x", "yz"}));
  EXPECT_EQ(r.params.stop_token_ids, std::vector<int32_t>{7});
  EXPECT_EQ(r.params.logit_bias,
            (std::vector<std::pair<int32_t, float>>{{5, -100.0f}, {50257, 1.5f}}));
  EXPECT_EQ(r.seed, -3);
  EXPECT_FLOAT_EQ(r.params.presence_penalty, 0.25f);
  EXPECT_FLOAT_EQ(r.params.frequency_penalty, -2.0f);
  EXPECT_FLOAT_EQ(r.params.repetition_penalty, 1.2f);
  EXPECT_TRUE(r.params.ignore_eos && r.includes_stop && r.returns_token_ids);
  EXPECT_FALSE(r.skips_special_tokens);
  EXPECT_EQ(r.params.min_output_len, 2);
  EXPECT_EQ(r.num_prompt_logprobs, 1);
  EXPECT_EQ(r.truncate_prompt_tokens, -1);
  EXPECT_EQ(r.priority, -4);
  EXPECT_EQ(r.request_id, "a.b:c_d-1");
  EXPECT_EQ(r.overflow, "middle");
  EXPECT_EQ(r.keep_first, 3);
  EXPECT_EQ(r.keep_last, 4);
}

TEST(RequestParserTest, ReadsAChat) {
  const GenerateRequest r = parser().chat(
      R"({"messages": [{"role": "developer", "content": "Be brief."},
                       {"role": "user", "content": [{"type": "text", "text": "a"},
                                                    {"type": "text", "text": "b"}]}],
          "max_tokens": 9, "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 2,
          "tools": [], "tool_choice": "none", "functions": null, "safety_identifier": "s",
          "prompt_cache_key": "k", "prompt_cache_retention": null})");
  ASSERT_EQ(r.messages.size(), 2u);
  EXPECT_EQ(r.messages[0].role, ChatRole::kSystem);
  EXPECT_EQ(r.messages[1].content, "ab");
  EXPECT_EQ(r.max_tokens, 5);
  EXPECT_EQ(r.num_logprobs, 2);
}

/// Each numeric field at min - 1, min, max, max + 1, and what no field may be.
TEST(RequestParserTest, LimitsOfEveryNumberAreExact) {
  struct Case {
    const char* field;
    std::vector<const char*> good;
    std::vector<const char*> bad;
  };
  const std::vector<Case> cases{
      {"max_tokens", {"1", "2147483647", "16.0"}, {"-1", "2147483648", "1.5"}},
      {"temperature", {"0", "2", "2.0", "1e-300", "1"}, {"-0.001", "2.001", "-1"}},
      {"top_p", {"1", "0.001"}, {"0", "-0.1", "1.001", "0.0"}},
      {"top_k", {"-1", "0", "2147483647"}, {"-2", "2147483648", "0.5"}},
      {"min_p", {"0", "1"}, {"-0.001", "1.001"}},
      {"presence_penalty", {"-2", "2"}, {"-2.001", "2.001"}},
      {"frequency_penalty", {"-2", "2"}, {"-2.001", "2.001"}},
      {"repetition_penalty", {"0.001", "10"}, {"0", "-1", "10.001"}},
      {"n", {"1", "128"}, {"0", "129", "-1", "1.5"}},
      {"best_of", {"1", "20"}, {"0", "21"}},
      {"logprobs", {"0", "20"}, {"-1", "21", "true"}},
      {"prompt_logprobs", {"0", "20"}, {"-1", "21"}},
      {"min_tokens", {"0", "2147483647"}, {"-1", "2147483648"}},
      {"priority", {"-10", "10", "0"}, {"-11", "11", "-2147483648", "1.5"}},
      {"seed",
       {"-9223372036854775808", "9223372036854775807", "0"},
       {"9223372036854775808", "-9223372036854775809", "18446744073709551616", "9.3e18", "-9.3e18",
        "0.5"}},
      {"truncate_prompt_tokens", {"-1", "1", "2048"}, {"-2", "0", "2049"}},
      {"overflow_keep_first", {"0", "2048"}, {"-1", "2049"}},
      {"overflow_keep_last", {"0", "2048"}, {"-1", "2049"}},
  };
  const std::vector<const char*> never{"\"1\"", "[]",    "{}",    "[1]", "9223372036854775808",
                                       "1e308", "1e400", "-1e400"};
  for (const Case& c : cases) {
    for (const char* value : c.good) {
      EXPECT_EQ(completion_refusal(with(c.field, value)), "") << c.field << " " << value;
    }
    for (const char* value : c.bad) {
      EXPECT_EQ(completion_refusal(with(c.field, value)), c.field) << c.field << " " << value;
    }
    for (const char* value : never) {
      const std::string param = completion_refusal(with(c.field, value));
      EXPECT_TRUE(param == c.field || param == "(body)") << c.field << " " << value << " " << param;
    }
    EXPECT_EQ(completion_refusal(with(c.field, "null")), "") << c.field;
    EXPECT_EQ(completion_refusal(with(c.field, "NaN")), "(body)") << c.field;
    EXPECT_EQ(completion_refusal(with(c.field, "Infinity")), "(body)") << c.field;
  }
}

std::string repeated(const std::string& item, size_t count) {
  std::string text = "[";
  for (size_t i = 0; i < count; ++i) text += (i > 0 ? "," : "") + item;
  return text + "]";
}

TEST(RequestParserTest, LimitsOfListsAndTextsAreExact) {
  const auto stops = [](size_t count, size_t length) {
    return with("stop", repeated("\"" + std::string(length, 'x') + "\"", count));
  };
  EXPECT_EQ(completion_refusal(stops(16, 256)), "");
  EXPECT_EQ(completion_refusal(stops(17, 1)), "stop");
  EXPECT_EQ(completion_refusal(stops(2, 257)), "stop[0]");
  EXPECT_EQ(completion_refusal(with("stop", "\"\"")), "stop");
  EXPECT_EQ(completion_refusal(with("stop", "[]")), "");
  EXPECT_EQ(completion_refusal(with("stop", "[1]")), "stop");
  EXPECT_EQ(completion_refusal(with("stop_token_ids", repeated("1", 16))), "");
  EXPECT_EQ(completion_refusal(with("stop_token_ids", repeated("1", 17))), "stop_token_ids");
  EXPECT_EQ(completion_refusal(with("stop_token_ids", "[50257]")), "");
  EXPECT_EQ(completion_refusal(with("stop_token_ids", "[50258]")), "stop_token_ids[0]");
  EXPECT_EQ(completion_refusal(with("request_id", "\"" + std::string(128, 'a') + "\"")), "");
  EXPECT_EQ(completion_refusal(with("request_id", "\"" + std::string(129, 'a') + "\"")),
            "request_id");
  EXPECT_EQ(completion_refusal(with("request_id", "\"a b\"")), "request_id");
  EXPECT_EQ(completion_refusal(with("request_id", "\"a\\n\"")), "request_id");

  const auto bias = [](int first, int count, const char* value) {
    std::string text = "{";
    for (int i = 0; i < count; ++i) {
      text += (i > 0 ? ",\"" : "\"") + std::to_string(first + i) + "\":" + value;
    }
    return with("logit_bias", text + "}");
  };
  EXPECT_EQ(completion_refusal(bias(0, 1024, "1")), "");
  EXPECT_EQ(completion_refusal(bias(0, 1025, "1")), "logit_bias");
  EXPECT_EQ(completion_refusal(bias(50257, 1, "-100")), "");
  EXPECT_EQ(completion_refusal(bias(50258, 1, "1")), "logit_bias");
  EXPECT_EQ(completion_refusal(bias(-1, 1, "1")), "logit_bias");
  EXPECT_EQ(completion_refusal(bias(1, 1, "100.001")), "logit_bias.1");
  EXPECT_EQ(completion_refusal(bias(1, 1, "1e400")), "logit_bias.1");
  EXPECT_EQ(completion_refusal(with("logit_bias", R"({"01": 1})")), "logit_bias");
  EXPECT_EQ(completion_refusal(with("logit_bias", R"({"99999999999": 1})")), "logit_bias");
  EXPECT_EQ(completion_refusal(with("logit_bias", R"({"a": 1})")), "logit_bias");

  EXPECT_EQ(completion_refusal("{\"prompt\": " + repeated("\"a\"", 64) + "}"), "");
  EXPECT_EQ(completion_refusal("{\"prompt\": " + repeated("\"a\"", 65) + "}"), "prompt");
  EXPECT_EQ(completion_refusal("{\"prompt\": " + repeated("[1]", 65) + "}"), "prompt");
  EXPECT_EQ(completion_refusal("{\"n\": 2, \"prompt\": " + repeated("\"a\"", 64) + "}"), "");
  EXPECT_EQ(completion_refusal("{\"n\": 3, \"prompt\": " + repeated("\"a\"", 64) + "}"), "n");
  EXPECT_EQ(completion_refusal(R"({"prompt": []})"), "prompt");
  EXPECT_EQ(completion_refusal(R"({"prompt": ""})"), "prompt");
  EXPECT_EQ(completion_refusal(R"({"prompt": ["a", ""]})"), "prompt[1]");
  EXPECT_EQ(completion_refusal(R"({"prompt": [[]]})"), "prompt[0]");
  EXPECT_EQ(completion_refusal(R"({"prompt": [1, "a"]})"), "prompt[1]");
  EXPECT_EQ(completion_refusal(R"({"prompt": [1, 50258]})"), "prompt[1]");
  EXPECT_EQ(completion_refusal(R"({"prompt": [[1], [-1]]})"), "prompt[1][0]");
  EXPECT_EQ(completion_refusal(R"({"prompt": null})"), "prompt");
  EXPECT_EQ(completion_refusal("{}"), "prompt");

  const std::string message = R"({"role": "user", "content": "a"})";
  EXPECT_EQ(chat_refusal("{\"messages\": " + repeated(message, 256) + "}"), "");
  EXPECT_EQ(chat_refusal("{\"messages\": " + repeated(message, 257) + "}"), "messages");
  EXPECT_EQ(chat_refusal(R"({"messages": []})"), "messages");
  EXPECT_EQ(chat_refusal(R"({"messages": [{"role": "robot", "content": "a"}]})"),
            "messages[0].role");
  EXPECT_EQ(chat_refusal(R"({"messages": [{"role": "user"}]})"), "messages[0].content");
  EXPECT_EQ(chat_refusal(R"({"messages": [{"role": "user", "content": null}]})"),
            "messages[0].content");
  EXPECT_EQ(chat_refusal(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"),
            "messages[0].content[0]");
}

TEST(RequestParserTest, FieldsThatContradictEachOtherAreRefused) {
  EXPECT_EQ(completion_refusal(with("stream_options", R"({"include_usage": true})")),
            "stream_options");
  EXPECT_EQ(completion_refusal(R"({"prompt": "a", "n": 3, "best_of": 2})"), "best_of");
  EXPECT_EQ(completion_refusal(R"({"prompt": "a", "stream": true, "best_of": 2})"), "best_of");
  EXPECT_EQ(completion_refusal(R"({"prompt": "a", "max_tokens": 0})"), "max_tokens");
  EXPECT_EQ(completion_refusal(R"({"prompt": "a", "max_tokens": 0, "echo": true})"), "");
  EXPECT_EQ(completion_refusal(with("suffix", "\"b\"")), "suffix");
  EXPECT_EQ(completion_refusal(with("response_format", R"({"type": "json_object"})")),
            "response_format.type");
  EXPECT_EQ(completion_refusal(with("temprature", "1")), "temprature");
  EXPECT_EQ(completion_refusal(with("overflow", "\"left\"")), "overflow");
  const auto chat = [](const std::string& more) {
    return chat_refusal(R"({"messages": [{"role": "user", "content": "a"}], )" + more + "}");
  };
  EXPECT_EQ(chat(R"("top_logprobs": 2)"), "top_logprobs");
  EXPECT_EQ(chat(R"("tools": [{"type": "function"}])"), "tools");
  EXPECT_EQ(chat(R"("max_completion_tokens": 0)"), "max_completion_tokens");
  EXPECT_EQ(chat(R"("echo": true)"), "echo");
}

std::string chat_of(const std::string& messages, const std::string& more = "") {
  return "{\"messages\": [" + messages + "]" + more + "}";
}
const std::string kUserTurn = R"({"role": "user", "content": "a"})";

TEST(RequestParserTest, NullIsAbsentAtEveryLevelWhateverItsName) {
  for (const char* name : {"guided_json", "prompt_embeds", "no_such_field", "suffix", "stop",
                           "seed", "stream_options", "logit_bias", "response_format"}) {
    EXPECT_EQ(completion_refusal(with(name, "null")), "") << name;
  }
  for (const char* name : {"audio", "prediction", "tools", "function_call", "chat_template"}) {
    EXPECT_EQ(chat_refusal(chat_of(kUserTurn, ", \"" + std::string(name) + "\": null")), "")
        << name;
  }
  // OpenAI's message, dumped.
  EXPECT_EQ(chat_refusal(chat_of(
                kUserTurn +
                R"(,{"role": "assistant", "content": "b", "refusal": null, "annotations": null,
                     "audio": null, "function_call": null, "tool_calls": null, "name": null,
                     "reasoning_content": null, "x": null},)" +
                kUserTurn)),
            "");
  EXPECT_EQ(chat_refusal(chat_of(
                R"({"role": "user", "content": [{"type": "text", "text": "a", "image_url": null,
                    "cache_control": null}]})")),
            "");
  EXPECT_EQ(completion_refusal(
                R"({"prompt": "a", "stream": true, "stream_options": {"x": null,
                    "include_usage": null}, "response_format": {"type": "text",
                    "json_schema": null}, "logit_bias": {"5": null}})"),
            "");
  EXPECT_TRUE(parser().completion(with("logit_bias", R"({"5": null})")).params.logit_bias.empty());
  EXPECT_EQ(refused_param([] {
              parser().tokenize(R"({"prompt": null, "messages": [{"role": "user", "content": "b"}],
                                    "x": null})");
            }),
            "");
  // Other values of unknown names stay errors, at every level too.
  EXPECT_EQ(completion_refusal(with("no_such_field", "false")), "no_such_field");
  EXPECT_EQ(chat_refusal(chat_of(R"({"role": "user", "content": "a", "x": 1})")), "messages[0].x");
  EXPECT_EQ(completion_refusal(R"({"prompt": "a", "stream": true, "stream_options": {"x": true}})"),
            "stream_options.x");
  // What is required is not there when it is null.
  EXPECT_EQ(chat_refusal(R"({"messages": null})"), "messages");
  EXPECT_EQ(chat_refusal(chat_of(R"({"role": null, "content": "a"})")), "messages[0].role");
}

TEST(RequestParserTest, FieldsOfOtherServersAtValuesThatChangeNothing) {
  const std::vector<std::pair<const char*, const char*>> both{
      {"use_beam_search", "false"},
      {"length_penalty", "1.0"},
      {"length_penalty", "1"},
      {"early_stopping", "false"},
      {"detokenize", "true"},
      {"bad_words", "[]"},
      {"allowed_token_ids", "null"},
      {"n_probs", "0"},
      {"mirostat", "0"},
      {"typical_p", "1.0"},
      {"repeat_penalty", "1.0"},
      {"cache_prompt", "false"},
      {"logits_processors", "[]"},
      {"id_slot", "-1"},
      {"grammar", "\"\""},
      {"return_tokens_as_token_ids", "false"}};
  for (const auto& [name, value] : both) {
    EXPECT_EQ(completion_refusal(with(name, value)), "") << name;
    EXPECT_EQ(chat_refusal(chat_of(kUserTurn, fmt::format(", \"{}\": {}", name, value))), "")
        << name;
  }
  for (const auto& [name, value] :
       std::vector<std::pair<const char*, const char*>>{{"suffix", "\"\""},
                                                        {"add_special_tokens", "true"},
                                                        {"stream_options", "{}"},
                                                        {"parse_special", "false"},
                                                        {"echo", "false"}}) {
    EXPECT_EQ(completion_refusal(with(name, value)), "") << name;
  }
  for (const auto& [name, value] :
       std::vector<std::pair<const char*, const char*>>{{"echo", "false"},
                                                        {"add_generation_prompt", "true"},
                                                        {"modalities", "[\"text\"]"},
                                                        {"top_logprobs", "0"},
                                                        {"best_of", "1"},
                                                        {"documents", "[]"},
                                                        {"tools", "[]"},
                                                        {"chat_template_kwargs", "{}"},
                                                        {"tool_choice", "\"auto\""},
                                                        {"functions", "[]"},
                                                        {"reasoning_effort", "\"none\""},
                                                        {"add_special_tokens", "false"},
                                                        {"continue_final_message", "false"},
                                                        {"parallel_tool_calls", "true"}}) {
    EXPECT_EQ(chat_refusal(chat_of(kUserTurn, fmt::format(", \"{}\": {}", name, value))), "")
        << name;
  }
  // What would change the answer is named.
  for (const auto& [name, value] :
       std::vector<std::pair<const char*, const char*>>{{"use_beam_search", "true"},
                                                        {"length_penalty", "0.5"},
                                                        {"early_stopping", "true"},
                                                        {"detokenize", "false"},
                                                        {"bad_words", "[\"x\"]"},
                                                        {"allowed_token_ids", "[1]"},
                                                        {"suffix", "\"x\""},
                                                        {"mirostat", "2"},
                                                        {"typical_p", "0.9"},
                                                        {"grammar", "\"x\""}}) {
    EXPECT_EQ(completion_refusal(with(name, value)), name);
  }
  for (const auto& [name, value] :
       std::vector<std::pair<const char*, const char*>>{{"echo", "true"},
                                                        {"add_generation_prompt", "false"},
                                                        {"modalities", "[\"audio\"]"},
                                                        {"tools", "[{}]"},
                                                        {"tool_choice", "\"required\""},
                                                        {"best_of", "2"},
                                                        {"reasoning_effort", "\"high\""},
                                                        {"continue_final_message", "true"}}) {
    EXPECT_EQ(chat_refusal(chat_of(kUserTurn, fmt::format(", \"{}\": {}", name, value))), name);
  }
}

TEST(RequestParserTest, MessagesInEveryFormThatClientsSend) {
  const auto content = [](const std::string& message) {
    const std::vector<ChatMessage> messages = parser().chat(chat_of(message)).messages;
    EXPECT_EQ(messages.size(), 1u);
    return messages.at(0).content;
  };
  EXPECT_EQ(content(R"({"role": "assistant", "content": null})"), "");
  EXPECT_EQ(content(R"({"role": "assistant"})"), "");
  EXPECT_EQ(content(R"({"role": "assistant", "content": null, "refusal": "No."})"), "No.");
  EXPECT_EQ(content(R"({"role": "user", "content": ""})"), "");
  EXPECT_EQ(content(R"({"role": "user", "content": []})"), "");
  EXPECT_EQ(content(R"({"role": "user", "content": ["a", {"type": "text", "text": "b"}, "c"]})"),
            "abc");
  EXPECT_EQ(content(R"({"role": "user", "content": [{"type": "input_text", "text": "b",
                        "cache_control": {"type": "ephemeral"}}], "id": "m1", "name": "n",
                        "cache_control": {"type": "ephemeral"}})"),
            "b");
  EXPECT_EQ(content(R"({"role": "assistant", "content": [{"type": "output_text", "text": "b",
                        "annotations": []}, {"type": "refusal", "refusal": "c"}],
                        "annotations": [], "tool_calls": [], "reasoning_content": "thinking"})"),
            "bc");
  EXPECT_EQ(content(R"({"role": "assistant", "content": null, "tool_calls": [{"id": "1",
                        "type": "function", "function": {"name": "f", "arguments": "{}"}}]})"),
            R"({"name":"f","arguments":"{}"})");
  for (const char* role : {"tool", "function"}) {
    const auto messages =
        parser()
            .chat(chat_of(fmt::format(
                R"({{"role": "{}", "content": "42", "tool_call_id": "1", "name": "f"}})", role)))
            .messages;
    EXPECT_EQ(messages.at(0).role, ChatRole::kUser);
    EXPECT_EQ(messages.at(0).content, "42");
  }
  EXPECT_EQ(parser().chat(chat_of(R"({"role": "developer", "content": "a"})")).messages.at(0).role,
            ChatRole::kSystem);
  for (const char* message :
       {R"({"role": "user", "content": null})", R"({"role": "system"})", R"({"role": "tool"})",
        R"({"role": "user", "content": 5})", R"({"role": "user", "content": {"type": "text"}})",
        R"({"role": "USER", "content": "a"})", R"({"content": "a"})", R"("hi")",
        R"({"role": "user", "content": [5]})", R"({"role": "user", "content": [{"text": "a"}]})",
        R"({"role": "user", "content": [{"type": "text", "text": null}]})",
        R"({"role": "assistant", "content": "a", "audio": {"id": "x"}})"}) {
    EXPECT_TRUE(chat_refusal(chat_of(message)).starts_with("messages[0]")) << message;
  }
}

TEST(RequestParserTest, PrioritiesWantTheServersFlag) {
  const RequestParser fcfs({.max_model_len = 2048, .vocab_size = 50258}, {});
  EXPECT_EQ(fcfs.completion(with("priority", "0")).priority, 0);
  EXPECT_EQ(refused_param([&] { fcfs.completion(with("priority", "1")); }), "priority");
  EXPECT_EQ(refused_param([&] { fcfs.chat(chat_of(kUserTurn, ", \"priority\": -1")); }),
            "priority");
}

TEST(RequestParserTest, CacheSaltIsATextThatIsNotEmpty) {
  EXPECT_EQ(parser().completion(with("cache_salt", "\"s\"")).cache_salt, "s");
  EXPECT_EQ(parser().completion(with("cache_salt", "null")).cache_salt, "");
  for (const char* value : {"\"\"", "5", "[]", "true"}) {
    EXPECT_EQ(completion_refusal(with("cache_salt", value)), "cache_salt") << value;
  }
}

TEST(RequestParserTest, WhatIsNotJsonIsRefused) {
  std::string deep(100000, '[');
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"), std::string("1"),
        std::string("{\"prompt\": \"a\"} x"), std::string("{\"prompt\": \"a\",}"),
        std::string("{\"prompt\": \"a\", \"prompt\": \"b\"}"),
        std::string("{\"prompt\": \"\xff\"}"), std::string("{\"prompt\": \"\xc0\x80\"}"),
        std::string("{\"prompt\": \"\xed\xa0\x80\"}"), std::string("{\"prompt\": \"\\ud800\"}"),
        std::string("{\"prompt\": \"\\udc00\"}"), std::string("{\"prompt\": \"\\ud800\\u0041\"}"),
        std::string("{\"prompt\": \"a\nb\"}"), std::string("{'prompt': 'a'}"),
        std::string("{\"prompt\": \"a\"}\0", 16), deep, "{\"prompt\": " + deep}) {
    EXPECT_EQ(completion_refusal(body), "(body)") << body.substr(0, 60);
  }
  EXPECT_EQ(completion_refusal("{\"prompt\": \"\\ud83d\\ude00 \\u0000\"}"), "");
}

TEST(RequestParserTest, TinyNumbersStayInTheRangeOfFloats) {
  const GenerateRequest r = parser().completion(
      R"({"prompt": "a", "top_p": 1e-320, "repetition_penalty": 1e-320, "temperature": 1e-6})");
  EXPECT_GT(r.params.top_p, 0.0f);
  EXPECT_GT(r.params.repetition_penalty, 0.0f);
  EXPECT_EQ(r.params.temperature, 0.0f);
}

TEST(RequestParserTest, TokenizeWantsOneOfTwo) {
  EXPECT_EQ(parser().tokenize(R"({"prompt": ""})").prompt, "");
  EXPECT_EQ(refused_param([] { parser().tokenize("{}"); }), "(body)");
  EXPECT_EQ(
      refused_param([] {
        parser().tokenize(R"({"prompt": "a", "messages": [{"role": "user", "content": "b"}]})");
      }),
      "messages");
  EXPECT_EQ(parser().detokenize(R"({"tokens": [1, 2]})").tokens, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(refused_param([] { parser().detokenize(R"({"tokens": [50258]})"); }), "tokens[0]");
}

}  // namespace
}  // namespace caravan
