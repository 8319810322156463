#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/api_server.h"
#include "server/test_fakes.h"

namespace caravan::testing {

inline std::shared_ptr<const Tokenizer> gpt2_tokenizer() {
  static const auto tokenizer = std::make_shared<const Tokenizer>(
      Tokenizer::from_directory(CARAVAN_SOURCE_DIR "/models/camel-nano"));
  return tokenizer;
}

inline std::string str(const boost::json::value& value) {
  return boost::json::value_to<std::string>(value);
}

class ApiServerTest : public ::testing::Test {
 protected:
  explicit ApiServerTest(const ApiServerOptions& given = options())
      : api_(given), routes_(api_.routes()) {}
  ~ApiServerTest() override {
    last_exchange_ = nullptr;
    api_.stop();
  }

  static ApiServerOptions options() {
    ApiServerOptions options;
    options.version = "1.2.3";
    options.served_names = {"nano", "other/name"};
    return options;
  }
  ApiModel model() {
    return {.tokenizer = gpt2_tokenizer(),
            .no_text = "",
            .generator = &engine_,
            .chat_template = ChatTemplate::open("camel"),
            .limits = {.max_model_len = 1024, .vocab_size = 50258, .has_priorities = true},
            .defaults = {},
            .fingerprint = "test"};
  }
  void load() { api_.set_model(model()); }

  std::shared_ptr<FakeReply> start(const std::string& method, const std::string& path,
                                   const std::string& body = "", int num_writes = -1) {
    const auto reply = std::make_shared<FakeReply>();
    reply->num_writes_left = num_writes;
    const HttpRequest request{
        .method = method, .path = path, .query = "", .headers = headers_, .body = body};
    for (const HttpRoute& route : routes_) {
      const bool is_prefix = route.path.ends_with("/*");
      const std::string_view prefix(route.path.data(), route.path.size() - (is_prefix ? 1 : 0));
      if (route.method != method || (is_prefix ? path.rfind(prefix, 0) != 0 : path != prefix)) {
        continue;
      }
      last_exchange_ = std::make_shared<FakeExchange>(request, reply);
      last_exchange_->is_gone_now = is_gone_;
      route.handler(last_exchange_);
      return reply;
    }
    ADD_FAILURE() << "no route " << path;
    return reply;
  }
  std::shared_ptr<FakeReply> call(const std::string& method, const std::string& path,
                                  const std::string& body = "") {
    const auto reply = start(method, path, body);
    reply->wait();
    return reply;
  }
  std::shared_ptr<FakeReply> complete(const std::string& body) {
    return start("POST", "/v1/completions", body);
  }
  static std::vector<int32_t> ids(const std::string& text) {
    return gpt2_tokenizer()->encode(text);
  }
  /// Waits until the output thread has done what is there now.
  template <typename Condition>
  static void wait_until(const Condition& condition) {
    for (int i = 0; i < 4000 && !condition(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ASSERT_TRUE(condition());
  }

  HttpHeaders headers_;
  bool is_gone_ = false;
  std::shared_ptr<FakeExchange> last_exchange_;
  FakeGenerator engine_;
  ApiServer api_;
  std::vector<HttpRoute> routes_;
};

}  // namespace caravan::testing
