#include "server/api_server.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "server/api_error.h"
#include "server/openapi.h"
#include "server/page.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace json = boost::json;

struct ApiServer::Loaded {
  Loaded(ApiModel api_model, const ApiServerOptions& options, ServerMetrics& server_metrics)
      : model(std::move(api_model)),
        parser(model.limits, model.defaults),
        preparation(*model.tokenizer, model.chat_template, model.limits, options.overflow),
        context{.generator = model.generator,
                .tokenizer = model.tokenizer.get(),
                .metrics = &server_metrics,
                .threads = &threads,
                .max_answer_bytes = model.limits.max_answer_bytes,
                .model_name = options.served_names.front(),
                .system_fingerprint = "caravan-" + options.version + "-" + model.fingerprint},
        openapi(json::serialize(openapi_document(model.limits, options.version))) {}

  const ApiModel model;
  const RequestParser parser;
  const PromptPreparation preparation;
  const JobContext context;
  const std::string openapi;
  OutputThreads threads;  // last: their tasks use the others
};

namespace {

int64_t seconds_since_1970() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

void respond_json(HttpExchange& exchange, const json::object& body) {
  exchange.respond({.status = 200,
                    .content_type = "application/json",
                    .body = json::serialize(body),
                    .headers = {}});
}

/// For what may be large: within the budget.
void respond_json(HttpExchange& exchange, std::string body, WorkBudget& budget) {
  budget.spend(body.size());
  exchange.respond(
      {.status = 200, .content_type = "application/json", .body = std::move(body), .headers = {}});
}

void respond_json(HttpExchange& exchange, const json::object& body, WorkBudget& budget) {
  respond_json(exchange, json::serialize(body), budget);
}

/// Errors: ApiError 400 for text where there is no tokenizer.
void check_has_text(const ApiModel& model, const char* param) {
  if (model.no_text.empty()) return;
  throw_bad_request(param,
                    fmt::format("{}: this server has no tokenizer, only token ids can be used "
                                "({})",
                                param, model.no_text),
                    "no_tokenizer");
}

/// What needs the texts of tokens.
void check_has_no_text(const ApiModel& model, const GenerateRequest& request) {
  if (model.no_text.empty()) return;
  for (const PromptInput& prompt : request.prompts) {
    if (!prompt.is_ids) check_has_text(model, "prompt");
  }
  if (request.is_chat) check_has_text(model, "messages");
  if (!request.stop.empty()) check_has_text(model, "stop");
  if (request.num_logprobs >= 0) check_has_text(model, "logprobs");
  if (request.echo) check_has_text(model, "echo");
}

void respond_error(HttpExchange& exchange, const ApiError& error) {
  HttpResponse response =
      error_response(error.status(), error.what(), error.type(), error.param(), error.code());
  if (error.status() == 429) response.headers.emplace_back("retry-after", "1");
  if (error.status() == 503) response.headers.emplace_back("retry-after", "5");
  exchange.respond(std::move(response));
}

/// What follows the route's prefix: "/v1/models/a" -> "a".
std::string after(const std::string& path, std::string_view prefix) {
  return path.size() >= prefix.size() ? path.substr(prefix.size()) : "";
}

}  // namespace

ApiServer::ApiServer(ApiServerOptions options)
    : options_(std::move(options)), created_(seconds_since_1970()) {
  CARAVAN_CHECK(!options_.served_names.empty(), "no name to serve the model under");
  ticker_ = std::thread([this] { tick(); });
}

ApiServer::~ApiServer() { stop(); }

void ApiServer::stop() {
  {
    const std::lock_guard lock(ticker_mutex_);
    is_ending_ = true;
  }
  ticker_wakes_.notify_one();
  if (ticker_.joinable()) ticker_.join();
}

void ApiServer::set_model(ApiModel model) {
  loaded_ = std::make_unique<Loaded>(std::move(model), options_, metrics_);
  loaded_now_ = loaded_.get();
}

const ApiServer::Loaded& ApiServer::loaded() const {
  const Loaded* loaded = loaded_now_;
  if (loaded == nullptr) throw ApiError(503, "unavailable_error", "Loading model", "", "loading");
  return *loaded;
}

void ApiServer::check_accepting() const {
  if (is_draining_) {
    throw ApiError(503, "unavailable_error", "the server is about to stop", "", "draining");
  }
  const std::string failure = loaded().model.generator->failure();
  if (!failure.empty()) {
    throw ApiError(503, "server_error", "the engine failed: " + failure, "", "engine_failed");
  }
}

void ApiServer::check_model(const std::string& name) const {
  const std::vector<std::string>& names = options_.served_names;
  if (name.empty() || std::find(names.begin(), names.end(), name) != names.end()) return;
  throw ApiError(404, "invalid_request_error",
                 fmt::format("The model `{}` does not exist.", printable(name)), "model",
                 "model_not_found");
}

std::string ApiServer::trouble() const {
  const Loaded* loaded = loaded_now_;
  if (loaded == nullptr) return "Loading model";
  if (is_draining_) return "the server is about to stop";
  const std::string failure = loaded->model.generator->failure();
  if (!failure.empty()) return "the engine failed: " + failure;
  const double stalled_ms = loaded->model.generator->stalled_ms();
  if (stalled_ms > options_.stall_limit_ms) {
    return fmt::format("the engine has finished no step for {:.1f} s", stalled_ms / 1000);
  }
  return "";
}

void ApiServer::health(HttpExchange& exchange) const {
  const std::string reason = trouble();
  if (reason.empty()) return respond_json(exchange, {{"status", "ok"}});
  // llama.cpp's body.
  exchange.respond({.status = 503,
                    .content_type = "application/json",
                    .body = json::serialize(json::object{{"error",
                                                          {{"message", reason},
                                                           {"type", "unavailable_error"},
                                                           {"param", nullptr},
                                                           {"code", 503}}}}),
                    .headers = {}});
}

void ApiServer::kserve_ready(HttpExchange& exchange) const {
  const std::string reason = trouble();
  if (reason.empty()) return respond_json(exchange, {{"ready", true}});
  exchange.respond(error_response(503, reason, "unavailable_error"));
}

WorkBudget ApiServer::budget_of(const HttpExchange& exchange) const {
  using Clock = WorkBudget::Clock;
  const std::chrono::duration<double> time(options_.work_timeout_s);
  WorkBudget budget(options_.max_work_bytes,
                    Clock::now() + std::chrono::duration_cast<Clock::duration>(time),
                    [&exchange] { return exchange.is_gone(); });
  budget.check();
  return budget;
}

/// API key and salt; no header has a NUL.
std::string ApiServer::prefix_scope(const HttpExchange& exchange, const std::string& salt) const {
  std::string scope;
  if (options_.has_prefix_scope_of_key) {
    scope = exchange.request().header("authorization");
    scope += '\0';
  }
  return scope += salt;
}

HttpRoute ApiServer::route(const char* method, const char* path, Handler handler) {
  return {.method = method, .path = path, .handler = [this, handler](const Exchange& exchange) {
            try {
              WorkBudget budget = budget_of(*exchange);
              (this->*handler)(loaded(), *exchange, budget);
            } catch (const ApiError& error) {
              respond_error(*exchange, error);
            }
          }};
}

std::vector<HttpRoute> ApiServer::routes() {
  std::vector<HttpRoute> routes;
  for (const bool is_chat : {false, true}) {
    routes.push_back({.method = "POST",
                      .path = is_chat ? "/v1/chat/completions" : "/v1/completions",
                      .handler = [this, is_chat](const Exchange& exchange) {
                        try {
                          WorkBudget budget = budget_of(*exchange);
                          generate(loaded(), exchange, is_chat, budget);
                        } catch (const ApiError& error) {
                          respond_error(*exchange, error);
                        }
                      }});
  }
  routes.push_back(
      {.method = "GET", .path = "/", .is_public = true, .handler = [](const Exchange& exchange) {
         exchange->respond({.content_type = "text/html; charset=utf-8",
                            .body = std::string(page_html()),
                            .headers = {{"Content-Security-Policy", std::string(page_csp())},
                                        {"Referrer-Policy", "no-referrer"}}});
       }});
  for (const char* path : {"/health", "/v1/health", "/ready", "/ping"}) {
    routes.push_back({.method = "GET",
                      .path = path,
                      .is_public = true,
                      .handler = [this](const Exchange& exchange) { health(*exchange); }});
  }
  routes.push_back({.method = "GET",
                    .path = "/v2/health/live",
                    .is_public = true,
                    .handler = [](const Exchange& exchange) {
                      respond_json(*exchange, {{"live", true}});
                    }});
  routes.push_back({.method = "GET",
                    .path = "/v2/health/ready",
                    .is_public = true,
                    .handler = [this](const Exchange& exchange) { kserve_ready(*exchange); }});
  routes.push_back(
      {.method = "GET", .path = "/version", .handler = [this](const Exchange& exchange) {
         respond_json(*exchange, {{"version", options_.version}});
       }});
  routes.push_back({.method = "GET", .path = "/v2", .handler = [this](const Exchange& exchange) {
                      respond_json(*exchange, {{"name", "caravan"},
                                               {"version", options_.version},
                                               {"extensions", json::array()}});
                    }});
  routes.push_back(route("POST", "/tokenize", &ApiServer::tokenize));
  routes.push_back(route("POST", "/detokenize", &ApiServer::detokenize));
  routes.push_back(route("GET", "/v1/models", &ApiServer::list_models));
  routes.push_back(route("GET", "/v1/models/*", &ApiServer::get_model));
  routes.push_back(route("GET", "/v2/models/*", &ApiServer::kserve_model));
  routes.push_back(route("GET", "/metrics", &ApiServer::get_metrics));
  routes.back().is_public = options_.has_public_metrics;
  routes.push_back(route("GET", "/openapi.json", &ApiServer::get_openapi));
  return routes;
}

void ApiServer::generate(const Loaded& loaded, const Exchange& exchange, bool is_chat,
                         WorkBudget& budget) {
  const CompletionJob::Clock::time_point arrival = CompletionJob::Clock::now();
  check_accepting();
  GenerateRequest request;
  {
    const std::string body = exchange->take_body();
    request = is_chat ? loaded.parser.chat(body) : loaded.parser.completion(body);
  }
  check_model(request.model);
  check_has_no_text(loaded.model, request);
  if (!loaded.model.no_text.empty()) request.returns_token_ids = true;
  request.prefix_scope = prefix_scope(*exchange, request.cache_salt);
  if (is_chat) {
    for (const std::string& stop : loaded.preparation.chat_template().stop_strings()) {
      request.stop.push_back(stop);
    }
  }
  PreparedRequest prepared = loaded.preparation.prepare(request, budget);
  request.prompts = {};
  request.messages = {};
  const auto job = std::make_shared<CompletionJob>(loaded.context, std::move(request),
                                                   std::move(prepared.prompts), prepared.max_tokens,
                                                   exchange, arrival);
  try {
    job->start();
  } catch (const ApiError&) {
    check_accepting();  // a queue that is closed is not a full one
    throw;
  }
  add_job(job);
}

void ApiServer::tokenize(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget) {
  const TokenizeRequest request = loaded.parser.tokenize(exchange.take_body());
  check_model(request.model);
  check_has_text(loaded.model, request.prompt ? "prompt" : "messages");
  size_t num_bytes = request.prompt ? request.prompt->size() : 0;
  for (const ChatMessage& message : request.messages) num_bytes += message.content.size();
  const auto most = static_cast<size_t>(loaded.model.limits.max_tokenize_bytes);
  if (num_bytes > most) {
    const char* param = request.prompt ? "prompt" : "messages";
    throw ApiError(413, "invalid_request_error",
                   fmt::format("{}: got {} bytes of text, /tokenize takes at most {}: send it in "
                               "parts",
                               param, num_bytes, most),
                   param, "request_too_large");
  }
  const std::vector<int32_t> ids =
      request.prompt ? loaded.preparation.encode_text(*request.prompt, request.encoding, budget)
                     : loaded.preparation.encode_chat(request.messages, budget);
  JsonWriter answer;
  answer.begin_object().key("count").integer(static_cast<int64_t>(ids.size()));
  answer.key("max_model_len").integer(loaded.model.limits.max_model_len);
  answer.key("tokens").ids(ids).key("token_strs");
  if (request.returns_token_strings) {
    constexpr size_t kTokensACheck = 1024;
    answer.begin_array();
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i % kTokensACheck == 0) budget.check();
      answer.text(token_text(*loaded.model.tokenizer, ids[i]));
    }
    answer.end_array();
  } else {
    answer.null();
  }
  respond_json(exchange, answer.end_object().take(), budget);
}

void ApiServer::detokenize(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget) {
  const DetokenizeRequest request = loaded.parser.detokenize(exchange.take_body());
  check_model(request.model);
  check_has_text(loaded.model, "tokens");
  const std::string bytes = loaded.model.tokenizer->decode(request.tokens);
  budget.spend(bytes.size());
  std::string text;
  append_sanitized_utf8(bytes, true, text);
  JsonWriter answer;
  answer.begin_object().key("prompt").text(text).end_object();
  respond_json(exchange, answer.take(), budget);
}

json::object ApiServer::model_json(const Loaded& loaded, const std::string& name) const {
  return {{"id", name},
          {"object", "model"},
          {"created", created_},
          {"owned_by", "caravan"},
          {"root", options_.served_names.front()},
          {"parent", nullptr},
          {"max_model_len", loaded.model.limits.max_model_len},
          {"permission", json::array()}};
}

void ApiServer::list_models(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget) {
  json::array models;
  for (const std::string& name : options_.served_names) models.push_back(model_json(loaded, name));
  respond_json(exchange, {{"object", "list"}, {"data", std::move(models)}}, budget);
}

void ApiServer::get_model(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget) {
  const std::string name = after(exchange.request().path, "/v1/models/");
  check_model(name.empty() ? "/" : name);
  respond_json(exchange, model_json(loaded, name), budget);
}

void ApiServer::kserve_model(const Loaded&, HttpExchange& exchange, WorkBudget& budget) {
  constexpr std::string_view kReady = "/ready";
  std::string name = after(exchange.request().path, "/v2/models/");
  if (!name.ends_with(kReady)) {
    throw ApiError(404, "invalid_request_error", "no such path; did you mean .../ready?");
  }
  name.resize(name.size() - kReady.size());
  check_model(name.empty() ? "/" : name);
  const std::string reason = trouble();
  if (!reason.empty()) throw ApiError(503, "unavailable_error", reason);
  respond_json(exchange, {{"name", name}, {"ready", true}}, budget);
}

void ApiServer::get_metrics(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget) {
  std::string text = metrics_.text(options_.metrics_prefix, options_.served_names.front(),
                                   loaded.model.generator->stats());
  budget.spend(text.size());
  exchange.respond({.status = 200,
                    .content_type = "text/plain; version=0.0.4; charset=utf-8",
                    .body = std::move(text),
                    .headers = {}});
}

void ApiServer::get_openapi(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget) {
  respond_json(exchange, loaded.openapi, budget);
}

void ApiServer::add_job(const std::shared_ptr<CompletionJob>& job) {
  const std::lock_guard lock(jobs_mutex_);
  jobs_.push_back(job);
}

std::vector<std::shared_ptr<CompletionJob>> ApiServer::live_jobs() {
  std::vector<std::shared_ptr<CompletionJob>> live;
  const std::lock_guard lock(jobs_mutex_);
  for (const std::weak_ptr<CompletionJob>& weak : jobs_) {
    std::shared_ptr<CompletionJob> job = weak.lock();
    if (job && !job->is_over()) live.push_back(std::move(job));
  }
  jobs_.assign(live.begin(), live.end());
  return live;
}

void ApiServer::fail_all(int status, const std::string& message) {
  for (const std::shared_ptr<CompletionJob>& job : live_jobs()) {
    job->fail(status, "server_error", message);
  }
}

bool ApiServer::wait_until_answered(int64_t timeout_ms) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kPoll(5);
  const Clock::time_point end = Clock::now() + std::chrono::milliseconds(timeout_ms);
  while (!live_jobs().empty()) {
    if (Clock::now() >= end) return false;
    std::this_thread::sleep_for(kPoll);
  }
  return true;
}

void ApiServer::tick() {
  using Clock = ThroughputLog::Clock;
  constexpr std::chrono::seconds kTick(1);
  ThroughputLog log;
  Clock::time_point next_line = Clock::now();
  const std::chrono::duration<double> interval(options_.log_interval_s);
  std::unique_lock lock(ticker_mutex_);
  while (!ticker_wakes_.wait_for(lock, kTick, [this] { return is_ending_; })) {
    const Loaded* loaded = loaded_now_;
    const Clock::time_point now = Clock::now();
    for (const std::shared_ptr<CompletionJob>& job : live_jobs()) {
      const std::chrono::duration<double> age = now - job->arrival();
      if (age.count() < options_.request_timeout_s) continue;
      job->fail(504, "timeout_error", "the answer took longer than the server allows");
    }
    if (loaded == nullptr || now < next_line) continue;
    next_line = now + std::chrono::duration_cast<Clock::duration>(interval);
    if (const auto line = log.line(loaded->model.generator->stats(), now)) log_info("{}", *line);
  }
}

}  // namespace caravan
