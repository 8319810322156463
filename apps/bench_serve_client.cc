#include "apps/bench_serve_client.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <chrono>
#include <optional>

#include "apps/sse_parser.h"
#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"

namespace caravan {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr size_t kMaxErrorBytes = 4096;

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// The whole load on one io_context.
class LoadRun {
 public:
  LoadRun(const LoadOptions& options, const std::vector<LoadRequest>& requests,
          const std::function<void()>& on_done)
      : options_(options),
        address_(parse_server_url(options.base_url)),
        requests_(requests),
        on_done_(on_done),
        results_(requests.size()) {
    asio::ip::tcp::resolver resolver(io_);
    error_code error;
    const auto found = resolver.resolve(address_.host, address_.port, error);
    CARAVAN_CHECK(!error, "{}: {}", options.base_url, error.message());
    for (const auto& entry : found) endpoints_.push_back(entry.endpoint());
  }

  std::vector<LoadResult> run() {
    const size_t count =
        options_.max_concurrency > 0
            ? std::min(requests_.size(), static_cast<size_t>(options_.max_concurrency))
            : requests_.size();
    began_ = Clock::now();
    for (size_t i = 0; i < count; ++i) {
      auto client = [this]() -> asio::awaitable<void> { return send_requests(); };
      asio::co_spawn(io_, std::move(client), asio::detached);
    }
    io_.run();
    return std::move(results_);
  }

 private:
  using Stream = beast::tcp_stream;
  struct Attempt {
    bool has_status = false;  // the server began to answer
    bool is_kept_alive = false;
    bool is_late = false;  // its time was over
  };

  asio::awaitable<void> send_requests() {
    std::optional<Stream> stream;
    while (next_ < requests_.size()) {
      const size_t index = next_++;
      asio::steady_timer timer(io_, began_ + seconds(requests_[index].start_s));
      error_code ignored;
      co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      LoadResult& result = results_[index];
      const bool was_open = stream.has_value();
      Attempt attempt;
      co_await send_one(requests_[index], stream, result, attempt);
      // The server may have closed a connection that was idle: that is no failure of the request.
      if (was_open && !result.error.empty() && !attempt.has_status && !attempt.is_late) {
        stream.reset();
        co_await send_one(requests_[index], stream, result, attempt);
      }
      if (!result.error.empty()) stream.reset();
      result.is_done = true;
      if (on_done_) on_done_();
    }
  }

  asio::awaitable<void> send_one(const LoadRequest& request, std::optional<Stream>& stream,
                                 LoadResult& result, Attempt& attempt) {
    result = LoadResult();
    attempt = Attempt();
    error_code error;
    const Clock::time_point sent = Clock::now();
    result.sent_s = seconds_between(began_, sent);
    if (!stream) {
      stream.emplace(io_);
      stream->expires_after(seconds(options_.timeout_s));
      co_await stream->async_connect(endpoints_, asio::redirect_error(asio::use_awaitable, error));
      if (error) {
        attempt.is_late = error == beast::error::timeout;
        result.error = attempt.is_late ? "timeout" : "connect: " + error.message();
        co_return;
      }
      stream->socket().set_option(asio::ip::tcp::no_delay(true), error);
    }
    stream->expires_after(seconds(options_.timeout_s));
    http::request<http::string_body> message{http::verb::post, address_.prefix + options_.endpoint,
                                             11};
    message.set(http::field::host, address_.authority);
    message.set(http::field::content_type, "application/json");
    message.set(http::field::accept, "text/event-stream");
    if (!options_.api_key.empty()) {
      message.set(http::field::authorization, "Bearer " + options_.api_key);
    }
    message.body() = request.body;
    message.prepare_payload();
    co_await http::async_write(*stream, message, asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      attempt.is_late = error == beast::error::timeout;
      result.error = attempt.is_late ? "timeout" : "send: " + error.message();
      co_return;
    }
    co_await read_response(*stream, sent, result, attempt, error);
    if (!error && !result.error.empty()) co_return;
    if (error) {
      attempt.is_late = error == beast::error::timeout;
      result.error = attempt.is_late ? "timeout" : "receive: " + error.message();
    } else if (!attempt.is_kept_alive) {
      stream.reset();
    }
  }

  asio::awaitable<void> read_response(Stream& stream, Clock::time_point sent, LoadResult& result,
                                      Attempt& attempt, error_code& error) {
    beast::flat_buffer buffer;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    parser.header_limit(65536);
    co_await http::async_read_header(stream, buffer, parser,
                                     asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return;
    attempt.has_status = true;
    const bool is_ok = parser.get().result() == http::status::ok;
    const auto status = parser.get().result_int();
    SseParser events;
    std::string failure;
    bool is_ended = false;
    Clock::time_point last = sent;
    const auto on_event = [&](std::string_view data) {
      if (data == "[DONE]") {
        is_ended = true;
        return;
      }
      read_event(data, sent, last, result);
    };
    std::array<char, 16384> bytes;
    while (!parser.is_done()) {
      parser.get().body().data = bytes.data();
      parser.get().body().size = bytes.size();
      parser.get().body().more = true;
      co_await http::async_read_some(stream, buffer, parser,
                                     asio::redirect_error(asio::use_awaitable, error));
      if (error == http::error::need_buffer) error = {};
      if (error) co_return;
      const std::string_view got(bytes.data(), bytes.size() - parser.get().body().size);
      if (is_ok) {
        events.push(got, on_event);
      } else if (failure.size() < kMaxErrorBytes) {
        failure += got;
      }
    }
    attempt.is_kept_alive = parser.get().keep_alive();
    result.end_s = seconds_between(sent, Clock::now());
    if (!is_ok) {
      result.error = fmt::format("status {}: {}", status, printable(failure, 200));
    } else if (!is_ended && result.error.empty()) {
      result.error = "the stream ended without [DONE]";
    } else if (result.num_output_tokens == 0 && result.error.empty()) {
      result.error = "no token came";
    }
  }

  static void read_event(std::string_view data, Clock::time_point sent, Clock::time_point& last,
                         LoadResult& result) {
    try {
      const boost::json::value event = parse_json(data, "event");
      const boost::json::object& object = event.as_object();
      if (const auto* failure = object.if_contains("error")) {
        result.error = "error event: " + printable(to_json_text(*failure), 200);
        return;
      }
      const auto* choices = object.if_contains("choices");
      if (choices != nullptr && !choices->as_array().empty()) {
        const boost::json::object& choice = choices->as_array().front().as_object();
        const auto* text = choice.if_contains("text");
        if (const auto* delta = choice.if_contains("delta")) {
          text = delta->as_object().if_contains("content");
        }
        if (text != nullptr && text->is_string() && !text->as_string().empty()) {
          const Clock::time_point now = Clock::now();
          if (result.first_token_s == 0) {
            result.first_token_s = seconds_between(sent, now);
          } else {
            result.gaps_s.push_back(seconds_between(last, now));
          }
          last = now;
          result.text += std::string_view(text->as_string());
          if (result.num_prompt_tokens < 0) ++result.num_output_tokens;
        } else if (const auto* reason = choice.if_contains("finish_reason");
                   reason != nullptr && reason->is_string() && result.first_token_s == 0) {
          result.first_token_s = seconds_between(sent, Clock::now());  // tokens without any text
        }
      }
      const auto* usage = object.if_contains("usage");
      if (usage != nullptr && usage->is_object()) {
        result.num_prompt_tokens = usage->at("prompt_tokens").to_number<int64_t>();
        result.num_output_tokens = usage->at("completion_tokens").to_number<int64_t>();
      }
    } catch (const std::exception& e) {
      result.error = fmt::format("event {}: {}", printable(data, 100), e.what());
    }
  }

  const LoadOptions& options_;
  const ServerAddress address_;
  const std::vector<LoadRequest>& requests_;
  const std::function<void()>& on_done_;
  std::vector<LoadResult> results_;
  asio::io_context io_{1};
  std::vector<asio::ip::tcp::endpoint> endpoints_;
  Clock::time_point began_;
  size_t next_ = 0;
};

}  // namespace

ServerAddress parse_server_url(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  CARAVAN_CHECK(url.rfind(kScheme, 0) == 0, "--base-url {}: expected http://HOST:PORT",
                printable(url));
  std::string rest = url.substr(kScheme.size());
  ServerAddress address;
  const size_t slash = rest.find('/');
  if (slash != std::string::npos) {
    address.prefix = rest.substr(slash);
    while (!address.prefix.empty() && address.prefix.back() == '/') address.prefix.pop_back();
    rest.resize(slash);
  }
  address.authority = rest;
  const size_t colon = rest.rfind(':');
  const bool has_port = colon != std::string::npos && rest.find(']', colon) == std::string::npos;
  address.host = rest.substr(0, has_port ? colon : std::string::npos);
  address.port = has_port ? rest.substr(colon + 1) : "80";
  if (address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']') {
    address.host = address.host.substr(1, address.host.size() - 2);
  }
  const bool is_number = !address.port.empty() && address.port.size() <= 5 &&
                         std::all_of(address.port.begin(), address.port.end(),
                                     [](char c) { return c >= '0' && c <= '9'; });
  CARAVAN_CHECK(!address.host.empty() && is_number, "--base-url {}: expected http://HOST:PORT",
                printable(url));
  return address;
}

std::vector<LoadResult> send_load(const LoadOptions& options,
                                  const std::vector<LoadRequest>& requests,
                                  const std::function<void()>& on_done) {
  return LoadRun(options, requests, on_done).run();
}

}  // namespace caravan
