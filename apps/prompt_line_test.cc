#include "apps/prompt_line.h"

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"
#include "engine/prompt_template.h"

namespace caravan {
namespace {

using Ids = std::vector<int32_t>;

PromptLineParser parser(PromptDefaults defaults = {}) {
  return PromptLineParser({.max_model_len = 1024, .vocab_size = 100, .max_logprobs = 1000},
                          std::move(defaults));
}

PromptLine parse(std::string_view text, PromptDefaults defaults = {}) {
  return parser(std::move(defaults)).parse(parse_json(text, "f:7").get_object(), "f:7");
}

/// What is wrong with the line.
std::string refusal(std::string_view text, PromptDefaults defaults = {}) {
  try {
    parse(text, std::move(defaults));
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(PromptLineTest, FieldsGoBeforeTheFlags) {
  PromptDefaults flags{.parse_special = true, .truncate = "head", .num_return = 4};
  flags.sampling.max_output_len = 9;
  flags.sampling.temperature = 0.25f;
  flags.sampling.stop = {"flag"};
  const PromptLine plain = parse(R"({"prompt": "a", "temperature": null, "n": null})", flags);
  EXPECT_EQ(plain.request.prompt, "a");
  EXPECT_TRUE(plain.request.parse_special);
  EXPECT_EQ(plain.request.params.max_output_len, 9);
  EXPECT_EQ(plain.request.params.temperature, 0.25f);
  EXPECT_EQ(plain.request.params.stop, std::vector<std::string>{"flag"});
  EXPECT_EQ(plain.truncate, "head");
  EXPECT_EQ(plain.num_return, 4);

  const PromptLine own = parse(R"({
      "id": 1, "prompt": "a", "max_tokens": 3, "min_tokens": 2, "temperature": 1.5, "top_k": 5,
      "top_p": 0.5, "min_p": 0.25, "repetition_penalty": 1.25, "presence_penalty": -1,
      "frequency_penalty": 2, "logit_bias": {"7": -100, "99": 1.5}, "seed": 12, "ignore_eos": true,
      "stop_token_ids": [1, 2], "stop": ["x", "y"], "logprobs": 2, "prompt_logprobs": 1, "n": 2,
      "parse_special": false, "truncate": "tail"})",
                               flags);
  const SamplingParams& params = own.request.params;
  EXPECT_EQ(params.max_output_len, 3);
  EXPECT_EQ(params.min_output_len, 2);
  EXPECT_EQ(params.temperature, 1.5f);
  EXPECT_EQ(params.top_k, 5);
  EXPECT_EQ(params.top_p, 0.5f);
  EXPECT_EQ(params.min_p, 0.25f);
  EXPECT_EQ(params.repetition_penalty, 1.25f);
  EXPECT_EQ(params.presence_penalty, -1.0f);
  EXPECT_EQ(params.frequency_penalty, 2.0f);
  EXPECT_EQ(params.logit_bias, (std::vector<std::pair<int32_t, float>>{{7, -100}, {99, 1.5f}}));
  EXPECT_EQ(params.seed, 12u);
  EXPECT_TRUE(params.ignore_eos);
  EXPECT_EQ(params.stop_token_ids, Ids({1, 2}));
  EXPECT_EQ(params.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(params.num_logprobs, 2);
  EXPECT_EQ(params.num_prompt_logprobs, 1);
  EXPECT_EQ(own.num_return, 2);
  EXPECT_FALSE(own.request.parse_special);
  EXPECT_EQ(own.truncate, "tail");
  EXPECT_EQ(parse(R"({"prompt": "a", "stop": "one"})").request.params.stop,
            std::vector<std::string>{"one"});
  EXPECT_NE(parse(R"({"prompt": "a", "seed": -1})").request.params.seed,
            parse(R"({"prompt": "a", "seed": -1})").request.params.seed);
}

TEST(PromptLineTest, APromptHasSeveralNames) {
  using namespace std::string_literals;
  EXPECT_EQ(parse(R"({"text": "a\u0000b"})").request.prompt, "a\0b"s);
  EXPECT_EQ(parse(R"({"prompt": "a", "text": "a"})").request.prompt, "a");
  EXPECT_EQ(parse(R"({"prompt": ""})").request.prompt, "");
  for (const char* ids : {R"({"ids": [5, 6]})", R"({"prompt_ids": [5, 6]})",
                          R"({"prompt": [5, 6]})", R"({"ids": [5, 6], "prompt_ids": [5, 6]})"}) {
    EXPECT_EQ(parse(ids).request.prompt_ids, Ids({5, 6})) << ids;
  }
  EXPECT_EQ(refusal("{}"), "f:7: no prompt, expected \"prompt\" or \"prompt_ids\"");
  EXPECT_EQ(refusal(R"({"prompt": "a", "text": "b"})"),
            "f:7: \"text\" is a second prompt, expected one");
  EXPECT_EQ(refusal(R"({"prompt": "a", "ids": [1]})"),
            "f:7: \"ids\" is a second prompt, expected one");
  EXPECT_EQ(refusal(R"({"ids": [1], "prompt_ids": [2]})"),
            "f:7: \"prompt_ids\" is a second prompt, expected one");
  EXPECT_EQ(refusal(R"({"ids": []})"), "f:7: \"ids\" is empty, expected token ids");
}

TEST(PromptLineTest, TheTemplateTakesInstructions) {
  const PromptDefaults camel{.is_camel = true};
  EXPECT_EQ(parse(R"({"instruction": "a", "input": "b"})", camel).request.prompt,
            camel_prompt("a", "b"));
  EXPECT_EQ(parse(R"({"prompt": "a"})", camel).request.prompt, camel_prompt("a", ""));
  EXPECT_NE(refusal(R"({"ids": [1]})", camel).find("go into no template"), std::string::npos);
  EXPECT_NE(refusal(R"({"instruction": ""})", camel).find("is empty"), std::string::npos);
  EXPECT_NE(refusal(R"({"instruction": "a", "prompt": "b"})", camel).find("expected one"),
            std::string::npos);
  EXPECT_EQ(refusal(R"({"instruction": "a"})"), "f:7: \"instruction\" needs --template camel");
  EXPECT_EQ(refusal(R"({"prompt": "a", "input": "b"})"), "f:7: \"input\" needs --template camel");
}

TEST(PromptLineTest, ReadsOpenAisBatchFormat) {
  const PromptLine line = parse(R"({"custom_id": "r", "method": "POST", "url": "/v1/completions",
      "body": {"model": "any", "prompt": "a", "max_tokens": 3, "user": "u", "stream": false}})");
  EXPECT_EQ(line.request.prompt, "a");
  EXPECT_EQ(line.request.params.max_output_len, 3);
  EXPECT_NE(refusal(R"({"url": "/v1/chat/completions", "body": {}})").find("f:7: url: got"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"method": "GET", "body": {}})").find("f:7: method: got"),
            std::string::npos);
  EXPECT_EQ(refusal(R"({"body": {"prompt": "a", "max_token": 3}})"),
            "f:7: unknown field \"body.max_token\"");
  EXPECT_EQ(refusal(R"({"extra": 1, "body": {"prompt": "a"}})"), "f:7: unknown field \"extra\"");
  EXPECT_NE(refusal(R"({"body": "a"})").find("f:7: body: got"), std::string::npos);
}

TEST(PromptLineTest, NothingIsIgnored) {
  EXPECT_EQ(refusal(R"({"prompt": "a", "max_new_tokens": 3})"),
            "f:7: unknown field \"max_new_tokens\"");
  EXPECT_NE(refusal(R"({"messages": []})").find("f:7: messages: run completes prompts"),
            std::string::npos);
  for (const char* line : {R"("stream": true)",
                           R"("echo": true)",
                           R"("skip_special_tokens": false)",
                           R"("include_stop_str_in_output": true)",
                           R"("suffix": "x")",
                           R"("temperature": "hot")",
                           R"("temperature": -1)",
                           R"("top_p": 0)",
                           R"("max_tokens": 1.5)",
                           R"("seed": 1.5)",
                           R"("stop": [1])",
                           R"("stop_token_ids": [100])",
                           R"("truncate": "middle")",
                           R"("n": 0)",
                           R"("logit_bias": {"100": 1})",
                           R"("logit_bias": {"x": 1})",
                           R"("parse_special": 1)",
                           R"("id": [])",
                           R"("ignore_eos": 1)",
                           R"("response_format": {"type": "json_object"})"}) {
    const std::string name(line, 1, std::string_view(line).find('"', 1) - 1);
    const std::string error = refusal(R"({"prompt": "a", )" + std::string(line) + "}");
    EXPECT_TRUE(error.starts_with("f:7: " + name)) << line << ": " << error;
  }
  EXPECT_NE(refusal(R"({"ids": [100]})").find("f:7: ids[0]: got the number 100"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"prompt": 3})").find("f:7: prompt: got the number 3"), std::string::npos);
}

TEST(PromptLineTest, ScoreLines) {
  const auto score = [](std::string_view text) {
    return parse_score_line(parse_json(text, "f:7").get_object(), false, "f:7");
  };
  EXPECT_EQ(score(R"({"text": "a", "prompt": "a"})").text, "a");
  EXPECT_EQ(score(R"({"ids": [1, 2]})").ids, Ids({1, 2}));
  EXPECT_TRUE(score(R"({"text": "a", "parse_special": true})").parse_special);
  EXPECT_THROW(score(R"({"text": "a", "max_tokens": 3})"), Error);
  EXPECT_THROW(score(R"({"text": "a", "prompt": "b"})"), Error);
  EXPECT_THROW(score(R"({"id": 3})"), Error);
}

TEST(PromptLineTest, NamesComeBackAsTheyWere) {
  const auto names = [](std::string_view text) {
    return boost::json::serialize(line_names(parse_json(text, "").get_object()));
  };
  EXPECT_EQ(names(R"({"id": 7, "custom_id": "x", "prompt": "a"})"), R"({"id":7,"custom_id":"x"})");
  EXPECT_EQ(names(R"({"id": null, "custom_id": ["x"]})"), "{}");
}

TEST(PromptLineTest, Seeds) {
  EXPECT_EQ(parse_seed("18446744073709551615"), 18446744073709551615u);
  EXPECT_NE(parse_seed("-1"), parse_seed("-1"));
  for (const char* text : {"", "-2", "1.5", "x", "18446744073709551616"}) {
    EXPECT_THROW(parse_seed(text), Error) << text;
  }
}

}  // namespace
}  // namespace caravan
