#include "server/http_connection.h"

#include <fmt/core.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "server/http_body.h"
#include "server/http_listener.h"

namespace caravan {

namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using State = HttpConnectionTable::State;

constexpr size_t kInputBytes = 65536;     // read ahead of what has been understood
constexpr size_t kIdleInputBytes = 4096;  // the same while an answer is made: pipelined requests
constexpr size_t kReadBytes = 16384;
constexpr size_t kWritePieces = 16;                // of one call
constexpr int kSendBufferBytes = 131072;           // bounds what the kernel keeps for a slow reader
constexpr int64_t kLargeBytes = int64_t{1} << 20;  // unsent: must go faster when memory is short
constexpr auto kLinger = std::chrono::seconds(2);  // of silence
constexpr auto kMaxLinger = std::chrono::seconds(10);  // in all
constexpr int64_t kLingerBytes = int64_t{1} << 20;     // above the largest body
constexpr int kMaxReads = 32;                          // before others have their turn
constexpr auto kGoneGrace = std::chrono::seconds(5);   // for a handler whose client has left
constexpr int kClientLeft = 499;                       // in the log only, as nginx has it
constexpr const char* kNoMemory = "the server has no memory for this request now; try again";

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

HttpResponse problem_response(const HttpProblem& problem) {
  if (problem.status == 503) return overloaded_response(problem.message);
  return error_response(problem.status, problem.message, "invalid_request_error");
}

}  // namespace

HttpShared::HttpShared(HttpServerOptions server_options, std::vector<HttpRoute> server_routes)
    : options(std::move(server_options)),
      routes(std::move(server_routes)),
      access(HttpAccessOptions{.bind_host = options.host,
                               .api_keys = options.api_keys,
                               .allowed_hosts = options.allowed_hosts,
                               .cors_origins = options.cors_origins}),
      budget(std::make_shared<MemoryBudget>(options.max_memory)),
      logged_status(routes.size()) {}

HttpConnection::HttpConnection(HttpShared& shared, Socket socket, bool is_surplus)
    : shared_(shared),
      socket_(std::move(socket)),
      wake_(socket_.get_executor()),
      is_surplus_(is_surplus),
      accepted_(Clock::now()),
      input_share_(shared.budget),
      read_limit_(kInputBytes) {
  error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);
  socket_.set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
  peer_ = peer_name(socket_);
}

void HttpConnection::start() {
  // A named closure: GCC 12 destroys temporaries of a spawned coroutine's arguments too early.
  auto run = [self = shared_from_this()]() -> asio::awaitable<void> { return self->serve(); };
  asio::co_spawn(socket_.get_executor(), std::move(run), asio::detached);
}

void HttpConnection::wake() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->wake_.cancel(); });
}

void HttpConnection::evict() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    self->is_evicted_ = self->shared_.table.is_leaving(self.get());
    self->wake_.cancel();
  });
}

void HttpConnection::read_more() {
  if (is_reading_ || has_ended_ || has_failed_ || lacks_memory_) return;
  if (input_.size() >= read_limit_) return;
  is_reading_ = true;
  socket_.async_wait(Socket::wait_read,
                     [self = shared_from_this()](error_code error) { self->on_readable(error); });
}

void HttpConnection::on_readable(error_code error) {
  is_reading_ = false;
  if (!socket_.is_open()) return;
  std::array<char, kReadBytes> buffer;
  for (int i = 0; !error && i < kMaxReads && input_.size() < read_limit_; ++i) {
    const size_t wanted = std::min(buffer.size(), read_limit_ - input_.size());
    const size_t num_bytes = socket_.read_some(asio::buffer(buffer.data(), wanted), error);
    if (is_discarding_) {
      num_discarded_ += static_cast<int64_t>(num_bytes);
    } else {
      input_.append(buffer.data(), num_bytes);
    }
  }
  // What every connection may hold is bounded by their number.
  const size_t num_counted = input_.size() > kIdleInputBytes ? input_.size() : 0;
  lacks_memory_ = !input_share_.resize(static_cast<int64_t>(num_counted));
  if (error == asio::error::eof) {
    has_ended_ = true;
  } else if (error && error != asio::error::would_block && error != asio::error::try_again) {
    has_failed_ = true;
  }
  read_more();
  wake_.cancel();
}

void HttpConnection::consume(size_t num_bytes) {
  input_.erase(0, num_bytes);
  if (input_.empty() && input_.capacity() > 1024) input_ = std::string();  // idle ones are many
  if (input_.size() <= kIdleInputBytes) input_share_.release();
  read_more();
}

void HttpConnection::set_read_limit(size_t num_bytes) {
  read_limit_ = num_bytes;
  read_more();
}

void HttpConnection::write(std::string bytes) {
  if (bytes.empty()) return;
  num_unsent_ += static_cast<int64_t>(bytes.size());
  output_.push_back(std::move(bytes));
  if (is_writing_) return;
  is_writing_ = true;
  window_begin_ = Clock::now();
  window_taken_ = num_written_;
  window_unsent_ = num_unsent_;
  write_some();
}

void HttpConnection::write_some() {
  // Most of the time the kernel takes everything at once.
  error_code error;
  while (!output_.empty() && !error) {
    std::array<asio::const_buffer, kWritePieces> pieces;
    for (size_t i = 0; i < std::min(kWritePieces, output_.size()); ++i) {
      pieces[i] = asio::buffer(output_[i]);
    }
    pieces[0] += num_front_written_;
    size_t num_bytes = socket_.write_some(pieces, error);
    num_written_ += static_cast<int64_t>(num_bytes);
    num_unsent_ -= static_cast<int64_t>(num_bytes);
    num_front_written_ += num_bytes;
    while (!output_.empty() && num_front_written_ >= output_.front().size()) {
      num_front_written_ -= output_.front().size();
      output_.pop_front();
    }
  }
  note_unsent();
  if (error == asio::error::would_block || error == asio::error::try_again) {
    socket_.async_wait(Socket::wait_write, [self = shared_from_this()](error_code wait_error) {
      if (wait_error) {
        self->has_failed_ = true;
        self->end_write();
      } else {
        self->write_some();
      }
    });
    return;
  }
  if (error) has_failed_ = true;
  end_write();
}

void HttpConnection::end_write() {
  output_.clear();
  num_front_written_ = 0;
  num_unsent_ = 0;
  is_writing_ = false;
  wake_.cancel();
}

void HttpConnection::note_unsent() {
  if (reply_ != nullptr) reply_->note_unsent(num_unsent_);
}

bool HttpConnection::is_too_slow_to_write() {
  const Clock::duration window = seconds(options().write_timeout_s);
  if (!is_writing_ || Clock::now() < window_begin_ + window) return false;
  int num_queued = 0;  // in the kernel: written, but not taken
  if (::ioctl(socket_.native_handle(), TIOCOUTQ, &num_queued) != 0) num_queued = 0;
  const int64_t taken = num_written_ - num_queued;
  double wanted = std::max(1.0, options().min_rate * options().write_timeout_s);
  if (shared_.budget->is_tight() && window_unsent_ > kLargeBytes) {
    wanted = std::max(wanted, static_cast<double>(window_unsent_) / 2);
  }
  if (static_cast<double>(taken - window_taken_) < wanted) return true;
  window_begin_ = Clock::now();
  window_taken_ = taken;
  window_unsent_ = num_unsent_;
  return false;
}

asio::awaitable<void> HttpConnection::sleep_until(Clock::time_point deadline) {
  error_code ignored;
  wake_.expires_at(deadline);
  co_await wake_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

asio::awaitable<void> HttpConnection::serve() {
  Next next = Next::kClose;
  try {
    read_more();
    bool is_first = true;
    do {
      if (!is_first && !input_.empty())
        co_await asio::post(socket_.get_executor(), asio::use_awaitable);
      next = co_await serve_request(is_first);
      is_first = false;
      if (next == Next::kRequest) shared_.table.set_state(this, State::kKept);
    } while (next == Next::kRequest);
    shared_.table.set_state(this, State::kKept);
    if (next == Next::kLinger) co_await linger();
  } catch (const std::exception& error) {
    log_warning("connection of {}: {}", peer_, error.what());
  }
  error_code ignored;
  socket_.close(ignored);
  input_share_.release();
  shared_.table.remove(this);
}

asio::awaitable<std::optional<HttpProblem>> HttpConnection::read_head(HttpHead& head,
                                                                      bool is_first) {
  HttpHeadScanner scanner;
  bool has_begun = false;
  // Whoever connects is about to ask; a connection that was of use may be kept for longer.
  Clock::time_point deadline = is_first ? accepted_ + seconds(options().header_timeout_s)
                                        : Clock::now() + seconds(options().idle_timeout_s);
  set_read_limit(kInputBytes);
  for (;;) {
    if (std::optional<HttpProblem> problem = scanner.scan(input_)) co_return problem;
    if (scanner.is_complete()) break;
    if (!has_begun && !input_.empty()) {
      has_begun = true;
      began_ = Clock::now();
      if (!is_first) deadline = began_ + seconds(options().header_timeout_s);
    }
    const bool is_late = Clock::now() >= deadline;
    const bool is_unwanted = is_ending() || is_evicted_ || (!has_begun && shared_.is_draining);
    if (has_failed_ || is_unwanted || (!has_begun && (has_ended_ || is_late))) {
      co_return HttpProblem{0, ""};  // nobody waits for an answer
    }
    if (has_ended_) co_return HttpProblem{400, "the request ends within its head"};
    if (is_late) co_return HttpProblem{408, "the head took too long"};
    if (lacks_memory_) co_return HttpProblem{503, kNoMemory};
    co_await sleep_until(deadline);
  }
  if (!has_begun) began_ = Clock::now();
  const std::string block = input_.substr(scanner.begin(), scanner.end() - scanner.begin());
  consume(scanner.end());
  co_return parse_http_head(block, head);
}

asio::awaitable<std::optional<HttpProblem>> HttpConnection::read_body(HttpHead& head,
                                                                      MemoryShare& share) {
  HttpBodyReader reader(head, options().max_body_bytes, options().max_chunks);
  const Clock::time_point begin = Clock::now();
  const double min_rate = options().min_rate;
  int64_t num_bytes = 0;
  for (;;) {
    const size_t num_taken = reader.put(input_);
    num_bytes += static_cast<int64_t>(num_taken);
    consume(num_taken);
    if (reader.problem()) co_return reader.problem();
    if (lacks_memory_ || !share.resize(reader.num_bytes_held())) {
      co_return HttpProblem{503, kNoMemory};
    }
    if (reader.is_done()) break;
    if (has_failed_ || is_ending() || is_evicted_) co_return HttpProblem{0, ""};
    if (has_ended_) co_return HttpProblem{400, "the request ends within its body"};
    Clock::time_point deadline = begin + seconds(options().body_timeout_s);
    if (min_rate > 0) {
      const double s = options().min_rate_grace_s + static_cast<double>(num_bytes) / min_rate;
      deadline = std::min(deadline, begin + seconds(std::min(s, options().body_timeout_s)));
    }
    if (Clock::now() >= deadline) co_return HttpProblem{408, "the body took too long"};
    co_await sleep_until(deadline);
  }
  head.request.body = reader.take_body();
  share.force(static_cast<int64_t>(head.request.body.capacity()));
  co_return std::nullopt;
}

HttpResponse HttpConnection::options_response(const HttpRouteMatch& match) const {
  HttpResponse response{.status = 204, .content_type = "", .body = "", .headers = {}};
  response.headers.emplace_back(
      "allow", match.allowed_methods.empty() ? "GET, HEAD, POST, OPTIONS" : match.allowed_methods);
  return response;
}

void HttpConnection::begin_request(const HttpHead& head) {
  method_ = head.request.method;
  target_ = head.request.path;
  request_id_ = choose_request_id(head.request.header("x-request-id"));
  cors_ = shared_.access.cors_headers(head.request);
  is_http10_ = head.minor_version == 0;
}

std::optional<HttpResponse> HttpConnection::refuse(const HttpHead& head,
                                                   const HttpRouteMatch& match) const {
  const bool is_for_all = match.route != nullptr && match.route->is_quick && match.route->is_public;
  if (is_surplus_ && !is_for_all) {
    ++shared_.num_refused;
    return overloaded_response("too many connections");
  }
  return refuse_request(shared_.access, match, head, options().max_body_bytes);
}

asio::awaitable<HttpConnection::Next> HttpConnection::serve_request(bool is_first) {
  method_ = target_ = request_id_ = "";
  cors_.clear();
  route_ = nullptr;
  HttpHead head;
  std::optional<HttpProblem> problem = co_await read_head(head, is_first);
  if (problem && problem->status == 0) co_return Next::kClose;
  if (problem) co_return co_await send_refusal(problem_response(*problem), false);
  head.request.path = normal_path(head.request.path);
  begin_request(head);
  const HttpRouteMatch match = match_route(shared_.routes, head.request.method, head.request.path);
  if (std::optional<HttpResponse> refused = refuse(head, match)) {
    // The body of a refused request is not read, so nothing can follow it.
    const bool keep_alive = head.keep_alive && !head.has_body() && !is_surplus_;
    co_return co_await send_refusal(std::move(*refused), keep_alive);
  }
  MemoryShare body_share(shared_.budget);
  if (head.has_body()) {
    if (head.expects_continue && input_.empty()) write("HTTP/1.1 100 Continue\r\n\r\n");
    problem = co_await read_body(head, body_share);
    if (problem && problem->status == 0) co_return Next::kClose;
    if (problem) {
      body_share.release();
      co_return co_await send_refusal(problem_response(*problem), false);
    }
  }
  set_read_limit(kIdleInputBytes);
  if (match.route == nullptr) {
    co_return co_await send_refusal(options_response(match), head.keep_alive);
  }
  co_return co_await answer_request(*match.route, head, body_share);
}

asio::awaitable<HttpConnection::Next> HttpConnection::answer_request(const HttpRoute& route,
                                                                     HttpHead& head,
                                                                     MemoryShare& body_share) {
  shared_.table.set_state(this, State::kBusy);
  is_evicted_ = false;
  route_ = &route;
  keep_alive_ = head.keep_alive && !is_surplus_;
  auto& headers = head.request.headers;
  std::erase_if(headers, [](const auto& header) { return header.first == "x-request-id"; });
  headers.emplace_back("x-request-id", request_id_);

  auto reply =
      std::make_shared<HttpReply>(HttpReplyLimits{.max_backlog = options().max_stream_backlog,
                                                  .backlog_grace_s = options().stream_grace_s,
                                                  .budget = shared_.budget});
  reply->attach([self = shared_from_this()] { self->wake(); });
  shared_.run_handler(route, std::move(head.request), std::move(body_share), reply);
  Next next = Next::kClose;
  try {
    next = co_await send_reply(reply);
  } catch (...) {
    reply->disconnect();
    reply->detach();
    throw;
  }
  if (next == Next::kClose) {
    ++shared_.num_disconnects;
    log_request(kClientLeft, 0);
    reply->disconnect();
  }
  reply->detach();
  co_return next;
}

void HttpConnection::add_headers(HttpResponse& response) const {
  if (!request_id_.empty()) response.headers.emplace_back("x-request-id", request_id_);
  response.headers.insert(response.headers.end(), cors_.begin(), cors_.end());
}

void HttpConnection::log_request(int status, int64_t num_bytes) const {
  ++shared_.num_requests;
  if (!options().log_requests) return;
  if (route_ != nullptr && route_->is_quick) {
    const auto index = static_cast<size_t>(route_ - shared_.routes.data());
    if (shared_.logged_status[index].exchange(status) == status) return;  // it is polled
  }
  const double ms = method_.empty()
                        ? 0
                        : std::chrono::duration<double, std::milli>(Clock::now() - began_).count();
  log_info("{} {} {} {} {} B {:.1f} ms {}", peer_, method_.empty() ? "-" : printable(method_),
           target_.empty() ? "-" : printable(target_, 256), status, num_bytes, ms,
           request_id_.empty() ? "-" : request_id_);
}

/// Waits until everything is written; false when that fails.
asio::awaitable<bool> HttpConnection::flush() {
  while (is_writing_ && !has_failed_ && !is_ending()) {
    if (is_too_slow_to_write() || is_evicted_) co_return false;
    co_await sleep_until(window_begin_ + seconds(options().write_timeout_s));
  }
  co_return !is_writing_ && !has_failed_;
}

asio::awaitable<HttpConnection::Next> HttpConnection::send_refusal(HttpResponse response,
                                                                   bool keep_alive) {
  add_headers(response);
  const Next next = after(keep_alive);
  std::string bytes =
      encode_response_head(response, HttpBodyForm::kLength, next == Next::kRequest, is_http10_);
  if (method_ != "HEAD") bytes += response.body;
  log_request(response.status, static_cast<int64_t>(response.body.size()));
  write(std::move(bytes));
  const bool is_sent = co_await flush();
  co_return is_sent ? next : Next::kClose;
}

void HttpConnection::send_head(Sending& sending, HttpReply::Output& output) {
  HttpResponse& head = *output.head;
  if (output.is_stream && is_http10_) keep_alive_ = false;
  sending.next = after(keep_alive_);
  sending.form = !output.is_stream ? HttpBodyForm::kLength
                 : is_http10_      ? HttpBodyForm::kToTheEnd
                                   : HttpBodyForm::kChunked;
  sending.status = head.status;
  sending.is_event_stream =
      output.is_stream && head.content_type.rfind("text/event-stream", 0) == 0;
  add_headers(head);
  write(encode_response_head(head, sending.form, sending.next == Next::kRequest, is_http10_));
  if (output.is_stream) return;
  sending.num_body_bytes += static_cast<int64_t>(head.body.size());
  if (method_ != "HEAD" && head.status != 204 && head.status != 304) write(std::move(head.body));
}

bool HttpConnection::send_output(Sending& sending, HttpReply& reply, bool& is_cut) {
  HttpReply::Output output = reply.take();
  const bool has_ping = sending.is_event_stream && options().ping_interval_s > 0;
  if (output.head) {
    send_head(sending, output);
    sending.last_output = Clock::now();
  } else if (has_ping && output.payload.empty() && !output.is_complete &&
             Clock::now() >= sending.last_output + seconds(options().ping_interval_s)) {
    output.payload = ": ping\n\n";
  }
  sending.num_body_bytes += static_cast<int64_t>(output.payload.size());
  if (!output.payload.empty()) sending.last_output = Clock::now();
  if (method_ != "HEAD") {
    const bool is_chunked = sending.form == HttpBodyForm::kChunked;
    if (!output.payload.empty()) {
      write(is_chunked ? encode_chunk(output.payload) : std::move(output.payload));
    }
    if (output.is_complete && is_chunked && !output.is_cut) write(std::string(kLastChunk));
  }
  note_unsent();
  sending.has_more = output.has_more;
  is_cut = output.is_cut;
  return output.is_complete;
}

asio::awaitable<HttpConnection::Next> HttpConnection::send_reply(std::shared_ptr<HttpReply> reply) {
  Sending sending;
  sending.last_output = Clock::now();
  reply_ = reply.get();
  const std::shared_ptr<void> forgets(nullptr, [this](void*) { reply_ = nullptr; });
  for (;;) {
    bool is_complete = false;
    bool is_cut = false;
    if (!is_writing_) is_complete = send_output(sending, *reply, is_cut);
    if (is_complete && sending.status != 0 && !(is_cut && sending.was_told) &&
        !reply->is_too_slow()) {
      const bool is_sent = co_await flush();
      if (is_sent) log_request(sending.status, sending.num_body_bytes);
      co_return !is_sent ? Next::kClose : is_cut ? Next::kLinger : sending.next;
    }
    if (is_complete || reply->is_too_slow() || has_failed_ || is_ending() ||
        is_too_slow_to_write() || Clock::now() >= sending.gone_deadline) {
      co_return Next::kClose;
    }
    if (has_ended_ && !sending.was_told) {
      // It may have closed only its side, and then still gets a short answer that is under way.
      sending.was_told = true;
      sending.gone_deadline = Clock::now() + kGoneGrace;
      reply->disconnect();
    }
    if (is_writing_) {
      co_await sleep_until(
          std::min(sending.gone_deadline, window_begin_ + seconds(options().write_timeout_s)));
    } else if (sending.has_more) {
      co_await asio::post(socket_.get_executor(), asio::use_awaitable);
    } else {
      const bool has_ping = sending.is_event_stream && options().ping_interval_s > 0;
      const Clock::time_point ping = sending.last_output + seconds(options().ping_interval_s);
      co_await sleep_until(has_ping ? std::min(sending.gone_deadline, ping)
                                    : sending.gone_deadline);
    }
  }
}

/// Lets the client read the last response: closing a socket that has unread input resets it. Most
/// clients send all of a body before they look at the answer, also to one that is refused.
asio::awaitable<void> HttpConnection::linger() {
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  input_ = std::string();
  input_share_.release();
  lacks_memory_ = false;
  is_discarding_ = true;
  set_read_limit(kInputBytes);
  const Clock::time_point end = Clock::now() + kMaxLinger;
  Clock::time_point deadline = Clock::now() + kLinger;
  int64_t num_seen = 0;
  while (!has_ended_ && !has_failed_ && !is_ending() && !is_evicted_ && Clock::now() < deadline &&
         num_discarded_ < options().max_body_bytes + kLingerBytes) {
    if (num_discarded_ > num_seen) deadline = std::min(end, Clock::now() + kLinger);
    num_seen = num_discarded_;
    co_await sleep_until(deadline);
  }
}

}  // namespace caravan
