// What a request may cost, and what a client may ask of others.

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <future>

#include "server/test_api_server.h"

namespace caravan {
namespace {

namespace json = boost::json;
using testing::ApiServerTest;
using testing::FakeReply;
using testing::output_of;
using testing::scored;
using testing::str;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kComplete = "/v1/completions";

/// A body for each route that takes one, with more than 64 bytes of text in it.
std::string body_of(const std::string& path) {
  const std::string text(100, 'x');
  if (path == kComplete) return R"({"prompt": ")" + text + "\"}";
  if (path == kChat) return R"({"messages": [{"role": "user", "content": ")" + text + "\"}]}";
  if (path == "/tokenize") return R"({"prompt": ")" + text + "\"}";
  if (path == "/detokenize") {
    return json::serialize(json::object{{"tokens", json::array(100, json::value(11))}});
  }
  return "";
}

ApiServerOptions with_budget(double timeout_s, size_t max_bytes) {
  ApiServerOptions options;
  options.version = "1.2.3";
  options.served_names = {"nano"};
  options.work_timeout_s = timeout_s;
  options.max_work_bytes = max_bytes;
  return options;
}

class TooSlowTest : public ApiServerTest {
 protected:
  TooSlowTest() : ApiServerTest(with_budget(0, SIZE_MAX)) {}
};
class TooLargeTest : public ApiServerTest {
 protected:
  TooLargeTest() : ApiServerTest(with_budget(3600, 64)) {}
};

/// Every route whose work grows with anything ends with `status`; the others, which answer a few
/// bytes that are there, answer whatever happens.
template <typename Call>
void expect_bounded(const std::vector<HttpRoute>& routes, const Call& call, int status) {
  int num_bounded = 0;
  for (const HttpRoute& route : routes) {
    const bool is_constant = route.is_public || route.path == "/version" || route.path == "/v2";
    std::string path = route.path;
    if (path == "/v1/models/*") path = "/v1/models/nano";
    if (path == "/v2/models/*") path = "/v2/models/nano/ready";
    const bool is_small = status == 413 && path == "/v2/models/nano/ready";
    const auto reply = call(route.method, path, body_of(path));
    EXPECT_EQ(reply->response.status, is_constant || is_small ? 200 : status) << path;
    num_bounded += is_constant ? 0 : 1;
  }
  EXPECT_GE(num_bounded, 9);
}

TEST_F(TooSlowTest, EveryRouteHasADeadline) {
  load();
  expect_bounded(
      routes_, [&](const auto&... args) { return call(args...); }, 504);
  EXPECT_TRUE(engine_.requests.empty());
}

TEST_F(TooLargeTest, EveryRouteHasABudgetOfBytes) {
  load();
  expect_bounded(
      routes_, [&](const auto&... args) { return call(args...); }, 413);
  EXPECT_TRUE(engine_.requests.empty());
}

TEST_F(ApiServerTest, NothingIsDoneForAClientThatHasLeft) {
  load();
  is_gone_ = true;
  for (const char* path : {kComplete, kChat, "/tokenize", "/detokenize"}) {
    EXPECT_EQ(call("POST", path, body_of(path))->response.status, 499) << path;
  }
  EXPECT_TRUE(engine_.requests.empty());
}

TEST_F(ApiServerTest, TokenizeTakesAMebibyteOfText) {
  load();
  const std::string most(size_t{1} << 20, ' ');
  EXPECT_EQ(call("POST", "/tokenize", R"({"prompt": ")" + most + "\"}")->response.status, 200);
  const auto text = call("POST", "/tokenize", R"({"prompt": ")" + most + "x\"}");
  EXPECT_EQ(text->response.status, 413);
  EXPECT_EQ(str(text->json().at("error").at("param")), "prompt");
  EXPECT_NE(str(text->json().at("error").at("message")).find("1048577 bytes"), std::string::npos);
  const auto chat =
      call("POST", "/tokenize", R"({"messages": [{"role": "user", "content": ")" + most + "x\"}]}");
  EXPECT_EQ(chat->response.status, 413);
  EXPECT_EQ(str(chat->json().at("error").at("param")), "messages");
}

TEST_F(ApiServerTest, TheBodyIsGivenBackOnceItIsRead) {
  load();
  const auto reply = complete(body_of(kComplete));
  ASSERT_EQ(engine_.requests.size(), 1u);
  EXPECT_TRUE(last_exchange_->request().body.empty());
}

std::string prompt_of(int count) {
  return json::serialize(json::array(static_cast<size_t>(count), json::value(11)));
}

/// Small requests whose answers could be large, each a product of other fields.
TEST_F(ApiServerTest, LargeAnswersAreRefusedBeforeAnythingRuns) {
  ApiModel limited = model();
  limited.limits.max_answer_bytes = 1'000'000;
  api_.set_model(std::move(limited));
  const std::string text = R"({"prompt": )" + prompt_of(900) + ", ";
  std::string many = "[";
  for (int i = 0; i < 64; ++i) many += (i > 0 ? "," : "") + prompt_of(200);
  many += "]";
  const std::string chat = R"({"messages": [{"role": "user", "content": "Hi"}], )";
  const std::vector<std::pair<const char*, std::string>> large{
      {kComplete, text + R"("n": 47, "prompt_logprobs": 20, "max_tokens": 1})"},
      {kComplete, text + R"("n": 128, "prompt_logprobs": 0, "max_tokens": 1})"},
      {kComplete, text + R"("n": 47, "logprobs": 20, "echo": true, "max_tokens": 1})"},
      {kComplete, text + R"("n": 128, "logprobs": 0, "echo": true, "max_tokens": 1})"},
      {kComplete, text + R"("n": 128, "echo": true, "return_token_ids": true, "max_tokens": 100})"},
      {kComplete, text + R"("n": 20, "best_of": 20, "logprobs": 20, "max_tokens": 100})"},
      {kComplete, text + R"("n": 128, "stream": true, "prompt_logprobs": 5})"},
      {kComplete, R"({"prompt": "a", "n": 128, "max_tokens": 1000})"},
      {kComplete, R"({"prompt": "a", "n": 80, "max_tokens": 1000, "return_token_ids": true})"},
      {kComplete, R"({"prompt": "a", "n": 2, "max_tokens": 1000, "logprobs": 20})"},
      {kComplete, "{\"prompt\": " + many + R"(, "prompt_logprobs": 1, "max_tokens": 1})"},
      {kComplete, "{\"prompt\": " + many + R"(, "echo": true, "logprobs": 1, "max_tokens": 0})"},
      {kChat, chat + R"("logprobs": true, "top_logprobs": 20})"},
      {kChat, chat + R"("logprobs": true, "n": 20})"},
      {kChat, chat + R"("n": 128, "max_completion_tokens": 960})"},
      {kChat, chat + R"("n": 128, "prompt_logprobs": 20, "max_tokens": 1})"}};
  for (const auto& [path, body] : large) {
    const auto reply = call("POST", path, body);
    EXPECT_EQ(reply->response.status, 400) << body.substr(0, 60) << body.substr(body.size() / 2);
    EXPECT_NE(reply->response.body.find("at most 1000000 are allowed (--max-answer-bytes)"),
              std::string::npos);
    EXPECT_FALSE(reply->is_stream);
  }
  EXPECT_TRUE(engine_.requests.empty());
  complete(text + R"("n": 10, "prompt_logprobs": 0, "max_tokens": 1})");
  EXPECT_EQ(engine_.requests.size(), 10u);
}

TEST_F(ApiServerTest, AnswersAreAtMostAsLargeAsTheyWereEstimated) {
  load();
  const std::vector<std::string> fields{
      R"("n": 3, "prompt_logprobs": 5)",
      R"("n": 4, "logprobs": 5, "echo": true)",
      R"("n": 2, "logprobs": 0, "echo": true, "return_token_ids": true)",
      R"("n": 5, "echo": true)",
      R"("logprobs": 20)",
  };
  const std::vector<int32_t> words =
      ids(" The sea was calm and blue, he said; and nobody knew 42!");
  for (const std::string& more : fields) {
    json::array prompt;
    for (int i = 0; i < 400; ++i) prompt.emplace_back(words[static_cast<size_t>(i) % words.size()]);
    const std::string body =
        "{\"prompt\": " + json::serialize(prompt) + ", \"max_tokens\": 300, " + more + "}";
    const int64_t first = engine_.next_id;
    const auto reply = complete(body);
    const int64_t estimated = last_exchange_->num_reserved;
    const int num_top = std::atoi(std::strstr(body.c_str(), "logprobs\": ") != nullptr
                                      ? std::strstr(body.c_str(), "logprobs\": ") + 11
                                      : "0");
    std::vector<std::pair<int32_t, float>> top;
    for (int k = 0; k < num_top; ++k) {
      top.emplace_back(words[static_cast<size_t>(k) % words.size()] + k, -1.2345678f - k);
    }
    for (int64_t id = first; id < engine_.next_id; ++id) {
      GenerationOutput output;
      for (int i = 0; i < 300; ++i) {
        output.tokens.push_back(
            scored(words[static_cast<size_t>(i) % words.size()], -0.1234567f, top));
      }
      if (engine_.requests.at(id).request.params.num_prompt_logprobs >= 0) {
        for (const json::value& token : prompt) {
          output.prompt_tokens.push_back(scored(token.to_number<int32_t>(), -0.1234567f, top));
        }
        output.prompt_tokens[0].logprob.reset();
      }
      output.finish_reason = FinishReason::kLength;
      engine_.put(id, std::move(output));
    }
    reply->wait();
    EXPECT_EQ(reply->response.status, 200);
    const auto size = static_cast<int64_t>(reply->response.body.size());
    EXPECT_LE(size, estimated == 0 ? 65536 : estimated) << more;
    EXPECT_GT(size, estimated / 4) << more;  // nor is it far too small a part of it
  }
}

TEST_F(ApiServerTest, WithoutMemoryForTheAnswerNothingRuns) {
  load();
  class PoorExchange : public testing::FakeExchange {
   public:
    using FakeExchange::FakeExchange;
    bool reserve(int64_t) override { return false; }
  };
  const auto reply = std::make_shared<FakeReply>();
  const HttpRequest request{.method = "POST",
                            .path = kComplete,
                            .query = "",
                            .headers = {},
                            .body = R"({"prompt": [1], "max_tokens": 1000, "logprobs": 20})"};
  routes_.at(0).handler(std::make_shared<PoorExchange>(request, reply));
  reply->wait();
  EXPECT_EQ(reply->response.status, 503);
  EXPECT_TRUE(engine_.requests.empty());
}

/// Whoever waits for a small answer does not wait for the making of large ones.
TEST_F(ApiServerTest, LargeAnswersDoNotHoldSmallOnesUp) {
  load();
  std::promise<void> gate;
  const std::shared_future<void> is_open = gate.get_future().share();
  std::vector<std::shared_ptr<FakeReply>> large;
  for (int i = 0; i < 3; ++i) {
    const auto reply = complete(R"({"prompt": [5, 6], "max_tokens": 1000, "logprobs": 20})");
    reply->on_respond = [is_open] { is_open.wait(); };
    large.push_back(reply);
  }
  for (int64_t id = 0; id < 3; ++id) engine_.put(id, output_of({}, FinishReason::kLength));
  const auto small = complete(R"({"prompt": "a", "max_tokens": 5})");
  const auto stream = complete(R"({"prompt": "a", "max_tokens": 5, "stream": true})");
  for (int64_t id = 3; id < 5; ++id) engine_.put(id, output_of(ids("x"), FinishReason::kLength));
  small->wait();
  stream->wait();
  EXPECT_EQ(small->response.status, 200);
  for (const auto& reply : large) {
    const std::lock_guard lock(reply->mutex);
    EXPECT_FALSE(reply->has_response);
  }
  gate.set_value();
  for (const auto& reply : large) reply->wait();
}

TEST_F(ApiServerTest, AStreamBeginsWhenItsRequestIsAccepted) {
  load();
  for (const char* path : {kComplete, kChat}) {
    json::object body = json::parse(body_of(path)).as_object();
    body["stream"] = true;
    const auto reply = start("POST", path, json::serialize(body));
    const std::lock_guard lock(reply->mutex);
    EXPECT_TRUE(reply->is_stream) << path;
    EXPECT_TRUE(reply->chunks.empty());
  }
  // What goes wrong before is a status, after it an event.
  engine_.max_waiting = 0;
  const auto full = call("POST", kComplete, R"({"prompt": "a", "stream": true})");
  EXPECT_FALSE(full->is_stream);
  EXPECT_EQ(full->response.status, 429);
  engine_.max_waiting = 1000;
  const auto broken = complete(R"({"prompt": "a", "stream": true})");
  GenerationOutput error;
  error.finish_reason = FinishReason::kError;
  error.error = "it broke";
  engine_.put(engine_.next_id - 1, error);
  broken->wait();
  EXPECT_EQ(str(broken->events().back().at("error").at("message")), "it broke");
}

TEST_F(ApiServerTest, WhatCouldNeverFitTheQueueIsWrongNotEarly) {
  load();
  engine_.max_queue = 4;
  engine_.max_waiting = 0;  // full, too
  const auto reply = call("POST", kComplete, R"({"prompt": "a", "n": 5})");
  EXPECT_EQ(reply->response.status, 400);
  EXPECT_EQ(call("POST", kComplete, R"({"prompt": "a", "n": 4})")->response.status, 429);
}

ApiServerOptions with_scope_of_key() {
  ApiServerOptions options;
  options.served_names = {"nano"};
  options.has_prefix_scope_of_key = true;
  return options;
}

class PrefixScopeTest : public ApiServerTest {
 protected:
  PrefixScopeTest() : ApiServerTest(with_scope_of_key()) {}
  std::string scope(const std::string& key, const std::string& more) {
    headers_ = {{"authorization", "Bearer " + key}};
    complete("{\"prompt\": \"a\"" + more + "}");
    return engine_.requests.at(engine_.next_id - 1).request.prefix_scope;
  }
};

TEST_F(PrefixScopeTest, IsThatOfKeyAndSalt) {
  load();
  const std::string salt = R"(, "cache_salt": "s")";
  EXPECT_EQ(scope("k1", ""), scope("k1", ""));
  EXPECT_EQ(scope("k1", salt), scope("k1", salt));
  EXPECT_NE(scope("k1", ""), scope("k2", ""));
  EXPECT_NE(scope("k1", salt), scope("k2", salt));
  EXPECT_NE(scope("k1", salt), scope("k1", ""));
  EXPECT_NE(scope("k1", ""), scope("k", R"(, "cache_salt": "1")"));
}

TEST_F(ApiServerTest, WithoutScopesOfKeysTheSaltIsAllThereIs) {
  load();
  headers_ = {{"authorization", "Bearer x"}};
  complete(R"({"prompt": "a"})");
  complete(R"({"prompt": "a", "cache_salt": "s"})");
  EXPECT_EQ(engine_.requests.at(0).request.prefix_scope, "");
  EXPECT_EQ(engine_.requests.at(1).request.prefix_scope, "s");
}

TEST_F(ApiServerTest, SpecialTokensInPromptsAreAskedFor) {
  load();
  const auto prompt = [&](const std::string& more) {
    complete(R"({"prompt": "a<|endoftext|>")" + more + "}");
    return engine_.requests.at(engine_.next_id - 1).request.prompt_ids;
  };
  EXPECT_EQ(prompt(""), ids("a<|endoftext|>"));
  EXPECT_EQ(prompt(R"(, "parse_special": true)"), (std::vector<int32_t>{ids("a")[0], 50256}));
  const auto tokens =
      call("POST", "/tokenize", R"({"prompt": "a<|endoftext|>", "parse_special": true})");
  EXPECT_EQ(tokens->json().at("count").as_int64(), 2);
}

TEST_F(ApiServerTest, WithoutATokenizerItTakesAndGivesTokenIds) {
  ApiModel bare = model();
  bare.tokenizer = std::make_shared<const Tokenizer>(Tokenizer::without_text());
  bare.no_text = "/m/vocab.txt is of another kind";
  bare.chat_template = ChatTemplate::absent("no tokenizer");
  api_.set_model(std::move(bare));
  const auto reply = complete(R"({"prompt": [464, 5417], "prompt_logprobs": 1, "max_tokens": 3})");
  GenerationOutput output = output_of({1, 2, 50000}, FinishReason::kLength);
  output.prompt_tokens = {{.token_id = 464, .logprob = {}, .top_logprobs = {}},
                          scored(5417, -1.0f, {{7, -0.5f}})};
  engine_.put(0, output);
  reply->wait();
  const json::value body = reply->json();
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(str(choice.at("text")), "");
  EXPECT_EQ(json::value_to<std::vector<int>>(choice.at("token_ids")),
            (std::vector<int>{1, 2, 50000}));
  EXPECT_EQ(choice.at("prompt_logprobs").at(1).at("7").at("logprob").as_double(), -0.5);
  const std::vector<std::tuple<const char*, const char*, const char*>> refused{
      {kComplete, R"({"prompt": "text"})", "prompt"},
      {kComplete, R"({"prompt": ["text"]})", "prompt"},
      {kComplete, R"({"prompt": [1], "stop": "x"})", "stop"},
      {kComplete, R"({"prompt": [1], "logprobs": 1})", "logprobs"},
      {kComplete, R"({"prompt": [1], "echo": true})", "echo"},
      {kChat, R"({"messages": [{"role": "user", "content": "a"}]})", "messages"},
      {"/tokenize", R"({"prompt": "a"})", "prompt"},
      {"/tokenize", R"({"messages": [{"role": "user", "content": "a"}]})", "messages"},
      {"/detokenize", R"({"tokens": [1]})", "tokens"}};
  for (const auto& [path, text, param] : refused) {
    const auto refusal = call("POST", path, text);
    EXPECT_EQ(refusal->response.status, 400) << path << text;
    EXPECT_EQ(str(refusal->json().at("error").at("param")), param);
    EXPECT_NE(refusal->response.body.find("vocab.txt is of another kind"), std::string::npos);
  }
}

TEST_F(ApiServerTest, AModelWithATemplateOfItsOwnIsNotAnsweredWithAnother) {
  ApiModel own = model();
  own.chat_template = ChatTemplate::absent("the model has a chat template of its own");
  api_.set_model(std::move(own));
  const std::string messages = R"({"messages": [{"role": "user", "content": "Hi"}]})";
  for (const char* path : {kChat, "/tokenize"}) {
    const auto reply = call("POST", path, messages);
    EXPECT_EQ(reply->response.status, 400) << path;
    EXPECT_NE(reply->response.body.find("of its own"), std::string::npos);
  }
  complete(R"({"prompt": "a"})");
  EXPECT_EQ(engine_.requests.size(), 1u);
}

}  // namespace
}  // namespace caravan
