#include "server/api_server.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "server/test_api_server.h"

namespace caravan {
namespace {

namespace json = boost::json;
using testing::ApiServerTest;
using testing::FakeReply;
using testing::gpt2_tokenizer;
using testing::output_of;
using testing::scored;
using testing::str;

TEST_F(ApiServerTest, AnswersOneCompletion) {
  load();
  const auto reply = complete(
      R"({"model": "other/name", "prompt": "The sea", "max_tokens": 7, "temperature": 0,
          "seed": 5, "priority": 2, "request_id": "x1"})");
  ASSERT_EQ(engine_.requests.size(), 1u);
  const GenerationRequest& request = engine_.requests.at(0).request;
  EXPECT_EQ(request.prompt_ids, ids("The sea"));
  EXPECT_EQ(request.params.max_output_len, 7);
  EXPECT_EQ(request.params.temperature, 0.0f);
  EXPECT_EQ(request.params.seed, 5u);
  EXPECT_EQ(request.params.num_logprobs, -1);
  EXPECT_EQ(request.priority, 2);
  engine_.put(0, output_of(ids(" was")));
  GenerationOutput last = output_of(ids(" still"), FinishReason::kLength);
  last.num_cached_tokens = 1;
  engine_.put(0, last);
  reply->wait();
  EXPECT_EQ(reply->response.status, 200);
  const json::value body = reply->json();
  EXPECT_EQ(str(body.at("id")), "cmpl-x1");
  EXPECT_EQ(str(body.at("object")), "text_completion");
  EXPECT_EQ(str(body.at("model")), "nano");
  EXPECT_EQ(str(body.at("system_fingerprint")), "caravan-1.2.3-test");
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(str(choice.at("text")), " was still");
  EXPECT_EQ(str(choice.at("finish_reason")), "length");
  EXPECT_TRUE(choice.at("stop_reason").is_null());
  EXPECT_TRUE(choice.at("logprobs").is_null());
  EXPECT_EQ(body.at("usage").at("prompt_tokens").as_int64(), 2);
  EXPECT_EQ(body.at("usage").at("completion_tokens").as_int64(), 2);
  EXPECT_EQ(body.at("usage").at("total_tokens").as_int64(), 4);
  EXPECT_EQ(body.at("usage").at("prompt_tokens_details").at("cached_tokens").as_int64(), 1);
  EXPECT_EQ(body.at("timings").at("predicted_n").as_int64(), 2);
  EXPECT_FALSE(body.as_object().contains("caravan"));
}

TEST_F(ApiServerTest, StreamsWholeCharactersAndEndsWithUsage) {
  load();
  const auto reply =
      complete(R"({"prompt": "a", "stream": true, "stream_options": {"include_usage": true}})");
  const std::string text = "x 😀 é";
  for (const int32_t id : ids(text)) engine_.put(0, output_of({id}));
  engine_.put(0, output_of({50256}, FinishReason::kStop));
  reply->wait();
  EXPECT_EQ(reply->response.content_type, "text/event-stream; charset=utf-8");
  const std::vector<json::value> events = reply->events();
  std::string all;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    all += str(events[i].at("choices").at(0).at("text"));
    EXPECT_TRUE(events[i].at("usage").is_null());
    const bool is_last = i + 2 == events.size();
    EXPECT_EQ(events[i].at("choices").at(0).at("finish_reason").is_null(), !is_last);
    EXPECT_EQ(events[i].as_object().contains("timings"), is_last);
  }
  EXPECT_EQ(all, text);
  EXPECT_TRUE(events.back().at("choices").as_array().empty());
  EXPECT_EQ(events.back().at("usage").at("completion_tokens").as_int64(),
            static_cast<int64_t>(ids(text).size()) + 1);
}

TEST_F(ApiServerTest, ChatStreamsRoleThenContent) {
  load();
  const auto reply = start(
      "POST", "/v1/chat/completions",
      R"({"messages": [{"role": "user", "content": "Hi"}], "stream": true, "max_tokens": 4})");
  engine_.put(0, output_of(ids(" Hello")));
  engine_.put(0, output_of(ids(" you"), FinishReason::kLength));
  reply->wait();
  const std::vector<json::value> events = reply->events();
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(str(events[0].at("object")), "chat.completion.chunk");
  EXPECT_EQ(str(events[0].at("choices").at(0).at("delta").at("role")), "assistant");
  EXPECT_EQ(str(events[1].at("choices").at(0).at("delta").at("content")), " Hello");
  EXPECT_EQ(str(events[2].at("choices").at(0).at("delta").at("content")), " you");
  EXPECT_EQ(str(events[2].at("choices").at(0).at("finish_reason")), "length");
}

TEST_F(ApiServerTest, ChatAnswersWithAMessage) {
  load();
  const auto reply = start("POST", "/v1/chat/completions",
                           R"({"messages": [{"role": "user", "content": "Hi"}], "logprobs": true,
                "top_logprobs": 2})");
  const GenerationRequest& request = engine_.requests.at(0).request;
  EXPECT_EQ(request.params.num_logprobs, 2);
  EXPECT_EQ(request.params.max_output_len + static_cast<int64_t>(request.prompt_ids.size()), 1024);
  const int32_t half = ids("é")[0] == ids("é").back() ? ids("😀").front() : ids("é").front();
  GenerationOutput output;
  output.tokens = {scored(ids("Yes")[0], -0.5f, {{ids("Yes")[0], -0.5f}, {half, -INFINITY}})};
  output.finish_reason = FinishReason::kLength;
  engine_.put(0, output);
  reply->wait();
  const json::value body = reply->json();
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(str(choice.at("message").at("content")), "Yes");
  EXPECT_EQ(str(choice.at("message").at("role")), "assistant");
  const json::value& token = choice.at("logprobs").at("content").at(0);
  EXPECT_EQ(str(token.at("token")), "Yes");
  EXPECT_EQ(token.at("logprob").as_double(), -0.5);
  EXPECT_EQ(json::value_to<std::vector<int>>(token.at("bytes")), (std::vector<int>{'Y', 'e', 's'}));
  ASSERT_EQ(token.at("top_logprobs").as_array().size(), 2u);
  EXPECT_EQ(token.at("top_logprobs").at(1).at("logprob").as_double(), -9999.0);
  EXPECT_EQ(str(token.at("top_logprobs").at(1).at("token")).rfind("bytes:\\x", 0), 0u);
}

TEST_F(ApiServerTest, StopStringEndsTheOutputAndIsNamed) {
  load();
  const auto reply = complete(R"({"prompt": "a", "stop": ["\n", " END"], "max_tokens": 50})");
  engine_.put(0, output_of(ids("one E")));
  engine_.put(0, output_of(ids("xtra E")));
  engine_.put(0, output_of({ids("N")[0], ids("D")[0], ids("!")[0]}));
  wait_until([&] {
    const std::lock_guard lock(engine_.mutex);
    return engine_.cancelled == std::vector<int64_t>{0};
  });
  engine_.put(0, output_of(ids(" four"), FinishReason::kAbort));  // already on its way
  reply->wait();
  const json::value body = reply->json();
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(str(choice.at("text")), "one Extra");
  EXPECT_EQ(str(choice.at("finish_reason")), "stop");
  EXPECT_EQ(str(choice.at("stop_reason")), " END");
  const size_t num_tokens = ids("one E").size() + ids("xtra E").size() + 2;
  EXPECT_EQ(body.at("usage").at("completion_tokens").as_int64(), static_cast<int64_t>(num_tokens));
}

TEST_F(ApiServerTest, StopTokenIsNamedAndNotShown) {
  load();
  const int32_t dot = ids(".")[0];
  const auto reply =
      complete("{\"prompt\": \"a\", \"stop_token_ids\": [" + std::to_string(dot) + "]}");
  engine_.put(0, output_of({ids("Yes")[0], dot}, FinishReason::kStop));
  reply->wait();
  const json::value body = reply->json();
  EXPECT_EQ(str(body.at("choices").at(0).at("text")), "Yes");
  EXPECT_EQ(body.at("choices").at(0).at("stop_reason").as_int64(), dot);
  EXPECT_EQ(body.at("usage").at("completion_tokens").as_int64(), 2);
}

TEST_F(ApiServerTest, EchoWithLogprobsScoresThePrompt) {
  load();
  const auto reply =
      complete(R"({"prompt": "é sea", "echo": true, "logprobs": 1, "max_tokens": 1})");
  const std::vector<int32_t> prompt = ids("é sea");
  EXPECT_EQ(engine_.requests.at(0).request.params.num_prompt_logprobs, 1);
  GenerationOutput output;
  output.prompt_tokens.push_back({.token_id = prompt[0], .logprob = {}, .top_logprobs = {}});
  for (size_t i = 1; i < prompt.size(); ++i) {
    output.prompt_tokens.push_back(
        scored(prompt[i], -1.0f - static_cast<float>(i), {{13, -0.25f}}));
  }
  output.tokens = {scored(ids("!")[0], -3.0f, {{13, -0.5f}})};
  output.finish_reason = FinishReason::kLength;
  engine_.put(0, output);
  reply->wait();
  const json::value body = reply->json();
  EXPECT_EQ(str(body.at("choices").at(0).at("text")), "é sea!");
  const json::value& logprobs = body.at("choices").at(0).at("logprobs");
  const size_t count = prompt.size() + 1;
  ASSERT_EQ(logprobs.at("tokens").as_array().size(), count);
  ASSERT_EQ(logprobs.at("token_logprobs").as_array().size(), count);
  ASSERT_EQ(logprobs.at("top_logprobs").as_array().size(), count);
  EXPECT_TRUE(logprobs.at("token_logprobs").at(0).is_null());
  EXPECT_EQ(logprobs.at("token_logprobs").at(1).as_double(), -2.0);
  EXPECT_EQ(logprobs.at("token_logprobs").at(count - 1).as_double(), -3.0);
  EXPECT_EQ(logprobs.at("top_logprobs").at(count - 1).as_object().size(), 2u);
  EXPECT_EQ(logprobs.at("text_offset").at(count - 1).as_int64(), 5);  // code points, not bytes
}

TEST_F(ApiServerTest, ManyPromptsAndChoicesKeepTheirOrder) {
  load();
  const auto reply = complete(R"({"prompt": [[10], [11, 12]], "n": 2, "seed": 7})");
  ASSERT_EQ(engine_.requests.size(), 4u);
  for (int64_t i = 0; i < 4; ++i) {
    const GenerationRequest& request = engine_.requests.at(i).request;
    EXPECT_EQ(request.params.seed, 7u + static_cast<uint64_t>(i % 2));
    EXPECT_EQ(request.prompt_ids,
              i < 2 ? (std::vector<int32_t>{10}) : (std::vector<int32_t>{11, 12}));
  }
  for (const int64_t id : {3, 1, 0, 2}) {
    engine_.put(id, output_of(ids("t" + std::to_string(id)), FinishReason::kLength));
  }
  reply->wait();
  const json::value body = reply->json();
  for (size_t i = 0; i < 4; ++i) {
    const json::value& choice = body.at("choices").at(i);
    EXPECT_EQ(choice.at("index").as_int64(), static_cast<int64_t>(i));
    EXPECT_EQ(str(choice.at("text")), "t" + std::to_string(i));
  }
  EXPECT_EQ(body.at("usage").at("prompt_tokens").as_int64(), 3);
}

TEST_F(ApiServerTest, BestOfTakesTheHighestMeanLogProbability) {
  load();
  const auto reply = complete(R"({"prompt": "a", "n": 2, "best_of": 3, "max_tokens": 3})");
  const float means[] = {-2.0f, -1.0f, -1.5f};
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(engine_.requests.at(i).request.params.num_logprobs, 0);
    GenerationOutput output;
    // The first has the highest sum and the lowest mean.
    const int count = i == 0 ? 1 : 3;
    for (int k = 0; k < count; ++k)
      output.tokens.push_back(scored(ids(std::to_string(i))[0], means[i]));
    output.finish_reason = FinishReason::kLength;
    engine_.put(i, output);
  }
  reply->wait();
  const json::value body = reply->json();
  ASSERT_EQ(body.at("choices").as_array().size(), 2u);
  EXPECT_EQ(str(body.at("choices").at(0).at("text")), "111");
  EXPECT_EQ(str(body.at("choices").at(1).at("text")), "222");
  EXPECT_EQ(body.at("choices").at(1).at("index").as_int64(), 1);
  EXPECT_TRUE(body.at("choices").at(0).at("logprobs").is_null());
}

TEST_F(ApiServerTest, UnsetSeedsDiffer) {
  load();
  complete(R"({"prompt": "a", "n": 2})");
  EXPECT_NE(engine_.requests.at(0).request.params.seed, engine_.requests.at(1).request.params.seed);
}

TEST_F(ApiServerTest, AClientThatLeavesCancelsAllItsOutputs) {
  load();
  for (const bool is_stream : {false, true}) {
    engine_.cancelled.clear();
    const int64_t first = engine_.next_id;
    const auto reply = complete(std::string(R"({"prompt": "a", "n": 3, "stream": )") +
                                (is_stream ? "true}" : "false}"));
    engine_.put(first, output_of(ids("x")));
    engine_.put(first + 1, output_of(ids("x"), FinishReason::kStop));
    reply->on_disconnect();
    wait_until([&] {
      const std::lock_guard lock(engine_.mutex);
      return engine_.cancelled == std::vector<int64_t>{first, first + 2};
    });
    engine_.put(first, output_of({}, FinishReason::kAbort));
    engine_.put(first + 2, output_of({}, FinishReason::kAbort));
    EXPECT_FALSE(reply->is_finished);
  }
}

TEST_F(ApiServerTest, AClientThatReadsTooSlowlyIsCancelled) {
  load();
  const auto reply = start("POST", "/v1/completions", R"({"prompt": "a", "stream": true})", 1);
  engine_.put(0, output_of(ids("x")));
  engine_.put(0, output_of(ids("y")));
  wait_until([&] {
    const std::lock_guard lock(engine_.mutex);
    return engine_.cancelled == std::vector<int64_t>{0};
  });
  EXPECT_EQ(reply->chunks.size(), 1u);
}

TEST_F(ApiServerTest, AFullQueueSubmitsAllOrNothing) {
  load();
  engine_.max_waiting = 2;
  const auto reply = call("POST", "/v1/completions", R"({"prompt": "a", "n": 3})");
  EXPECT_EQ(reply->response.status, 429);
  EXPECT_EQ(str(reply->json().at("error").at("code")), "rate_limit_exceeded");
  bool has_retry = false;
  for (const auto& [name, value] : reply->response.headers) has_retry |= name == "retry-after";
  EXPECT_TRUE(has_retry);
  EXPECT_EQ(engine_.cancelled, (std::vector<int64_t>{0, 1}));
  const auto metrics = call("GET", "/metrics");
  EXPECT_NE(metrics->response.body.find(
                "vllm:request_refused_total{model_name=\"nano\",engine=\"0\"} 1\n"),
            std::string::npos);
}

TEST_F(ApiServerTest, EngineErrorsReachTheClient) {
  load();
  GenerationOutput broken;
  broken.finish_reason = FinishReason::kError;
  broken.error = "the logits are not finite";
  const auto plain = complete(R"({"prompt": "a", "n": 2})");
  engine_.put(0, broken);
  plain->wait();
  EXPECT_EQ(plain->response.status, 500);
  EXPECT_EQ(str(plain->json().at("error").at("message")), "the logits are not finite");
  wait_until([&] {  // the reply is not held up for it
    const std::lock_guard lock(engine_.mutex);
    return engine_.cancelled == std::vector<int64_t>{0, 1};
  });

  const auto stream = complete(R"({"prompt": "a", "stream": true})");
  engine_.put(2, output_of(ids("x")));
  engine_.put(2, broken);
  stream->wait();
  const std::vector<json::value> events = stream->events();
  EXPECT_EQ(str(events.back().at("error").at("message")), "the logits are not finite");
  EXPECT_EQ(events.back().at("error").at("code").as_int64(), 500);
}

TEST_F(ApiServerTest, FailAllEndsWhatRuns) {
  load();
  const auto one = complete(R"({"prompt": "a"})");
  const auto two = complete(R"({"prompt": "a", "stream": true})");
  engine_.put(1, output_of(ids("x")));
  wait_until([&] {
    const std::lock_guard lock(two->mutex);
    return !two->chunks.empty();
  });
  api_.fail_all(503, "the engine is stuck");
  one->wait();
  two->wait();
  EXPECT_EQ(one->response.status, 503);
  EXPECT_EQ(str(two->events().back().at("error").at("message")), "the engine is stuck");
  EXPECT_EQ(engine_.cancelled, (std::vector<int64_t>{0, 1}));
}

TEST_F(ApiServerTest, WaitsForAnswersOnTheirWay) {
  load();
  EXPECT_TRUE(api_.wait_until_answered(0));
  const auto reply = complete(R"({"prompt": "a"})");
  EXPECT_FALSE(api_.wait_until_answered(10));
  engine_.put(0, output_of(ids("x"), FinishReason::kLength));
  EXPECT_TRUE(api_.wait_until_answered(20000));
  const std::lock_guard lock(reply->mutex);
  EXPECT_TRUE(reply->has_response);
}

TEST_F(ApiServerTest, HealthIsRedUntilReadyAndWhenStuck) {
  for (const char* path : {"/health", "/v1/health", "/ready", "/ping", "/v2/health/ready"}) {
    EXPECT_EQ(call("GET", path)->response.status, 503) << path;
  }
  EXPECT_EQ(str(call("GET", "/health")->json().at("error").at("message")), "Loading model");
  EXPECT_EQ(call("GET", "/v2/health/live")->response.status, 200);
  EXPECT_EQ(call("POST", "/v1/completions", R"({"prompt": "a"})")->response.status, 503);
  EXPECT_EQ(call("GET", "/v1/models")->response.status, 503);
  load();
  EXPECT_EQ(call("GET", "/health")->response.body, R"({"status":"ok"})");
  engine_.stalled = 5001;
  EXPECT_EQ(call("GET", "/health")->response.status, 503);
  EXPECT_EQ(call("GET", "/v2/models/nano/ready")->response.status, 503);
  engine_.stalled = 0;
  engine_.failure_text = "device lost";
  EXPECT_EQ(call("GET", "/ready")->response.status, 503);
  EXPECT_EQ(call("POST", "/v1/completions", R"({"prompt": "a"})")->response.status, 503);
  engine_.failure_text = "";
  EXPECT_EQ(call("GET", "/ready")->response.status, 200);
  api_.set_draining();
  EXPECT_EQ(call("GET", "/ready")->response.status, 503);
  EXPECT_EQ(call("POST", "/v1/completions", R"({"prompt": "a"})")->response.status, 503);
}

TEST_F(ApiServerTest, ModelsByAllTheirNames) {
  load();
  const json::value list = call("GET", "/v1/models")->json();
  ASSERT_EQ(list.at("data").as_array().size(), 2u);
  EXPECT_EQ(str(list.at("data").at(1).at("id")), "other/name");
  EXPECT_EQ(list.at("data").at(0).at("max_model_len").as_int64(), 1024);
  EXPECT_EQ(str(call("GET", "/v1/models/other/name")->json().at("id")), "other/name");
  EXPECT_EQ(call("GET", "/v1/models/none")->response.status, 404);
  EXPECT_EQ(call("GET", "/v2/models/nano/ready")->response.status, 200);
  EXPECT_EQ(call("GET", "/v2/models/none/ready")->response.status, 404);
  const auto wrong = call("POST", "/v1/completions", R"({"prompt": "a", "model": "gpt-4"})");
  EXPECT_EQ(wrong->response.status, 404);
  EXPECT_EQ(str(wrong->json().at("error").at("code")), "model_not_found");
}

TEST_F(ApiServerTest, ThePageIsThereWhileLoadingAndBringsItsPolicy) {
  const auto page = call("GET", "/");
  EXPECT_EQ(page->response.status, 200);
  EXPECT_EQ(page->response.content_type, "text/html; charset=utf-8");
  EXPECT_NE(page->response.body.find("</html>"), std::string::npos);
  std::string policy;
  for (const auto& [name, value] : page->response.headers) {
    if (name == "Content-Security-Policy") policy = value;
  }
  EXPECT_EQ(policy.rfind("default-src 'none'; script-src 'sha256-", 0), 0u) << policy;
  // What a key does not guard: the page, and health.
  for (const HttpRoute& route : routes_) {
    const bool is_health = route.path.find("health") != std::string::npos ||
                           route.path == "/ready" || route.path == "/ping";
    EXPECT_EQ(route.is_public, is_health || route.path == "/") << route.path;
  }
}

TEST_F(ApiServerTest, TokenizesAndBack) {
  load();
  const json::value tokens =
      call("POST", "/tokenize", R"({"prompt": "a <|endoftext|>", "return_token_strs": true})")
          ->json();
  EXPECT_EQ(json::value_to<std::vector<int32_t>>(tokens.at("tokens")), ids("a <|endoftext|>"));
  EXPECT_EQ(tokens.at("count").as_int64(),
            static_cast<int64_t>(tokens.at("token_strs").as_array().size()));
  EXPECT_EQ(tokens.at("max_model_len").as_int64(), 1024);
  const auto text =
      call("POST", "/detokenize", json::serialize(json::object{{"tokens", tokens.at("tokens")}}));
  EXPECT_EQ(str(text->json().at("prompt")), "a <|endoftext|>");
  const json::value chat =
      call("POST", "/tokenize", R"({"messages": [{"role": "user", "content": "Hi"}]})")->json();
  EXPECT_GT(chat.at("count").as_int64(), 20);
}

TEST_F(ApiServerTest, DroppedTokensAreReported) {
  load();
  const std::string text(5000, 'a');
  const auto refused = call("POST", "/v1/completions", "{\"prompt\": \"" + text + "\"}");
  EXPECT_EQ(refused->response.status, 400);
  EXPECT_EQ(str(refused->json().at("error").at("code")), "context_length_exceeded");
  EXPECT_EQ(str(refused->json().at("error").at("param")), "prompt");
  std::string prompt = "[11";
  for (int i = 1; i < 1100; ++i) prompt += ",11";
  prompt += "]";
  const auto reply =
      complete("{\"prompt\": " + prompt + ", \"overflow\": \"tail\", \"max_tokens\": 4}");
  engine_.put(0, output_of(ids("x"), FinishReason::kLength));
  reply->wait();
  EXPECT_EQ(reply->json().at("caravan").at("num_dropped_tokens").as_int64(), 1100 - 1020);
  ASSERT_EQ(reply->response.headers.size(), 1u);
  EXPECT_EQ(reply->response.headers[0].first, "x-caravan-dropped-tokens");
  EXPECT_EQ(reply->response.headers[0].second, "80");
}

TEST_F(ApiServerTest, ReturnsTokenIdsAndPromptLogprobs) {
  load();
  const auto reply = complete(
      R"({"prompt": [11, 12], "return_token_ids": true, "prompt_logprobs": 1, "max_tokens": 2})");
  GenerationOutput output = output_of({13, 14}, FinishReason::kLength);
  output.prompt_tokens = {{.token_id = 11, .logprob = {}, .top_logprobs = {}},
                          scored(12, -1.0f, {{99, -0.5f}})};
  engine_.put(0, output);
  reply->wait();
  const json::value body = reply->json();
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(json::value_to<std::vector<int>>(choice.at("token_ids")), (std::vector<int>{13, 14}));
  EXPECT_EQ(json::value_to<std::vector<int>>(choice.at("prompt_token_ids")),
            (std::vector<int>{11, 12}));
  EXPECT_TRUE(choice.at("prompt_logprobs").at(0).is_null());
  EXPECT_EQ(choice.at("prompt_logprobs").at(1).at("12").at("logprob").as_double(), -1.0);
  EXPECT_EQ(choice.at("prompt_logprobs").at(1).as_object().size(), 2u);
}

TEST_F(ApiServerTest, ThePromptIsScoredOnceForAllChoices) {
  load();
  const auto reply =
      complete(R"({"prompt": [11, 12], "n": 3, "prompt_logprobs": 0, "max_tokens": 2, "seed": 5})");
  ASSERT_EQ(engine_.requests.size(), 3u);
  EXPECT_EQ(engine_.requests.at(0).request.params.num_prompt_logprobs, 0);
  EXPECT_EQ(engine_.requests.at(1).request.params.num_prompt_logprobs, -1);
  EXPECT_EQ(engine_.requests.at(2).request.params.num_prompt_logprobs, -1);
  engine_.put(2, output_of(ids(" c"), FinishReason::kLength));  // before the scores are there
  GenerationOutput first = output_of(ids(" a"));
  first.prompt_tokens = {{.token_id = 11, .logprob = {}, .top_logprobs = {}}, scored(12, -1.0f)};
  engine_.put(0, first);
  engine_.put(1, output_of(ids(" b"), FinishReason::kLength));
  engine_.put(0, output_of(ids("!"), FinishReason::kLength));
  reply->wait();
  const json::value body = reply->json();
  ASSERT_EQ(body.at("choices").as_array().size(), 3u);
  const char* texts[] = {" a!", " b", " c"};
  for (size_t i = 0; i < 3; ++i) {
    const json::value& choice = body.at("choices").at(i);
    EXPECT_EQ(str(choice.at("text")), texts[i]);
    EXPECT_EQ(choice.at("prompt_logprobs").at(1).at("12").at("logprob").as_double(), -1.0);
  }
}

TEST_F(ApiServerTest, TokensThatTheTokenizerDoesNotHave) {
  load();
  const auto padded = complete(R"({"prompt": "a", "logprobs": 1})");
  GenerationOutput output;
  output.tokens = {scored(ids("b")[0], -1.0f), scored(50300, -2.0f, {{50301, -0.5f}})};
  output.finish_reason = FinishReason::kLength;
  engine_.put(0, output);
  padded->wait();
  EXPECT_EQ(str(padded->json().at("choices").at(0).at("text")), "b");
  EXPECT_EQ(padded->json().at("usage").at("completion_tokens").as_int64(), 2);
  const auto impossible = complete(R"({"prompt": "a"})");
  engine_.put(1, output_of({-7}));
  impossible->wait();
  EXPECT_EQ(impossible->response.status, 500);
  wait_until([&] {
    const std::lock_guard lock(engine_.mutex);
    return engine_.cancelled == std::vector<int64_t>{1};
  });
}

TEST_F(ApiServerTest, AChatIsTruncatedAndStillFits) {
  load();
  std::string words;
  for (int i = 0; i < 3000; ++i) words += " word";
  const json::object body{{"messages", {{{"role", "user"}, {"content", words}}}},
                          {"truncate_prompt_tokens", 1000},
                          {"overflow", "head"},
                          {"max_tokens", 100}};
  start("POST", "/v1/chat/completions", json::serialize(body));
  ASSERT_EQ(engine_.requests.size(), 1u);
  EXPECT_EQ(engine_.requests.at(0).request.prompt_ids.size(), 924u);
  const std::string text = gpt2_tokenizer()->decode(engine_.requests.at(0).request.prompt_ids);
  EXPECT_TRUE(text.starts_with("Below is an instruction")) << text.substr(0, 60);
  EXPECT_TRUE(text.ends_with("### Response:")) << text.substr(text.size() - 60);
}

TEST_F(ApiServerTest, TheApiDescribesItself) {
  load();
  const json::value document = call("GET", "/openapi.json")->json();
  EXPECT_EQ(str(document.at("openapi")), "3.1.0");
  for (const HttpRoute& route : routes_) {
    if (route.path.ends_with("/*")) continue;
    const json::value* path = document.at("paths").as_object().if_contains(route.path);
    EXPECT_TRUE(path != nullptr) << route.path;
  }
  const json::object& fields =
      document.at("components").at("schemas").at("CompletionRequest").at("properties").as_object();
  EXPECT_EQ(fields.at("stop_token_ids").at("items").at("maximum").as_int64(), 50257);
  for (const auto& field : fields) {
    EXPECT_TRUE(field.value().as_object().contains("description")) << field.key();
  }
}

TEST(PublicMetricsTest, AreAskedFor) {
  for (const bool is_wanted : {false, true}) {
    ApiServerOptions options;
    options.served_names = {"nano"};
    options.has_public_metrics = is_wanted;
    ApiServer api(options);
    for (const HttpRoute& route : api.routes()) {
      if (route.path == "/metrics") {
        EXPECT_EQ(route.is_public, is_wanted);
      }
      if (route.path == "/v1/completions") {
        EXPECT_FALSE(route.is_public);
      }
    }
    api.stop();
  }
}

}  // namespace
}  // namespace caravan
