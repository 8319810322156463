#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "server/generator.h"
#include "server/http.h"

namespace caravan::testing {

/// What a client got. Outlives the exchange, so that a test sees what became of it.
struct FakeReply {
  std::mutex mutex;
  std::condition_variable is_complete;
  HttpResponse response;  // of respond(), or the head of a stream
  std::vector<std::string> chunks;
  bool has_response = false;
  bool is_stream = false;
  bool is_finished = false;
  std::function<void()> on_respond;  // before it is taken; set before the call
  int num_writes_left = -1;          // then the client is gone; -1: it stays
  std::function<void()> on_disconnect;

  void wait() {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(is_complete.wait_for(lock, std::chrono::seconds(20), [this] {
      return is_finished || (has_response && !is_stream);
    }));
  }
  boost::json::value json() const { return boost::json::parse(response.body); }
  /// The data of all events, [DONE] left out; fails when it is not last, or the framing is wrong.
  std::vector<boost::json::value> events() const {
    std::string all;
    for (const std::string& chunk : chunks) all += chunk;
    std::vector<boost::json::value> result;
    bool is_done = false;
    for (size_t begin = 0; begin < all.size();) {
      const size_t end = all.find("\n\n", begin);
      EXPECT_NE(end, std::string::npos);
      EXPECT_FALSE(is_done) << "an event after [DONE]";
      if (end == std::string::npos) break;
      const std::string event = all.substr(begin, end - begin);
      EXPECT_EQ(event.rfind("data: ", 0), 0u) << event;
      if (event == "data: [DONE]") {
        is_done = true;
      } else {
        result.push_back(boost::json::parse(event.substr(6)));
      }
      begin = end + 2;
    }
    EXPECT_TRUE(is_done);
    return result;
  }
};

class FakeExchange : public HttpExchange {
 public:
  FakeExchange(HttpRequest request, std::shared_ptr<FakeReply> reply) : reply_(std::move(reply)) {
    request_ = std::move(request);
  }
  void respond(HttpResponse response) override {
    if (reply_->on_respond) reply_->on_respond();
    const std::lock_guard lock(reply_->mutex);
    EXPECT_FALSE(reply_->has_response) << "two replies: " << response.body;
    reply_->response = std::move(response);
    reply_->has_response = true;
    reply_->is_complete.notify_all();
  }
  void start_stream(HttpResponse head) override {
    const std::lock_guard lock(reply_->mutex);
    EXPECT_FALSE(reply_->has_response);
    reply_->response = std::move(head);
    reply_->has_response = reply_->is_stream = true;
  }
  bool write(std::string chunk) override {
    const std::lock_guard lock(reply_->mutex);
    EXPECT_TRUE(reply_->is_stream && !reply_->is_finished);
    if (reply_->num_writes_left == 0) return false;
    if (reply_->num_writes_left > 0) --reply_->num_writes_left;
    reply_->chunks.push_back(std::move(chunk));
    return true;
  }
  void finish() override {
    const std::lock_guard lock(reply_->mutex);
    EXPECT_FALSE(reply_->is_finished);
    reply_->is_finished = true;
    reply_->is_complete.notify_all();
  }
  void on_disconnect(std::function<void()> callback) override {
    const std::lock_guard lock(reply_->mutex);
    reply_->on_disconnect = std::move(callback);
  }
  bool is_gone() const override { return is_gone_now; }
  bool reserve(int64_t num_bytes) override {
    num_reserved += num_bytes;
    return num_reserved <= max_reserved;
  }

  bool is_gone_now = false;
  int64_t num_reserved = 0;
  int64_t max_reserved = INT64_MAX;

 private:
  std::shared_ptr<FakeReply> reply_;
};

/// An engine whose outputs the test makes: submitted requests wait in `requests` by id.
class FakeGenerator : public Generator {
 public:
  struct Pending {
    GenerationRequest request;
    EngineLoop::OnOutput on_output;
  };
  std::optional<int64_t> submit(GenerationRequest request,
                                EngineLoop::OnOutput on_output) override {
    const std::lock_guard lock(mutex);
    if (static_cast<int64_t>(requests.size()) >= max_waiting) return std::nullopt;
    requests.emplace(next_id, Pending{std::move(request), std::move(on_output)});
    return next_id++;
  }
  void check_queue(int64_t num_requests, int64_t) const override {
    CARAVAN_CHECK(num_requests <= max_queue, "{} outputs at once, at most {}", num_requests,
                  max_queue);
  }
  void cancel(int64_t id) override {
    const std::lock_guard lock(mutex);
    cancelled.push_back(id);
  }
  EngineStats stats() const override { return figures; }
  double stalled_ms() const override { return stalled; }
  std::string failure() const override { return failure_text; }

  /// One output; the request is gone when it has a finish reason.
  void put(int64_t id, GenerationOutput output) {
    EngineLoop::OnOutput on_output;
    {
      const std::lock_guard lock(mutex);
      on_output = requests.at(id).on_output;
      if (output.finish_reason != FinishReason::kNone) requests.erase(id);
    }
    on_output(std::move(output));
  }

  mutable std::mutex mutex;
  std::map<int64_t, Pending> requests;
  std::vector<int64_t> cancelled;
  int64_t next_id = 0;
  int64_t max_waiting = 1000;
  int64_t max_queue = 1000;
  EngineStats figures;
  double stalled = 0;
  std::string failure_text;
};

inline ScoredToken scored(int32_t id, float logprob,
                          std::vector<std::pair<int32_t, float>> top = {}) {
  ScoredToken token{.token_id = id, .logprob = TokenLogprob{id, logprob, 1}, .top_logprobs = {}};
  int32_t rank = 0;
  for (const auto& [other, value] : top) token.top_logprobs.push_back({other, value, ++rank});
  return token;
}

inline GenerationOutput output_of(const std::vector<int32_t>& ids,
                                  FinishReason reason = FinishReason::kNone) {
  GenerationOutput output;
  for (const int32_t id : ids)
    output.tokens.push_back({.token_id = id, .logprob = {}, .top_logprobs = {}});
  output.finish_reason = reason;
  output.timings.num_output_tokens = static_cast<int64_t>(ids.size());
  output.timings.prefill_ms = 2;
  output.timings.decode_ms = 3;
  return output;
}

}  // namespace caravan::testing
