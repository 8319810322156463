#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "server/completion_job.h"
#include "server/prompt_preparation.h"

namespace caravan {

struct ApiServerOptions {
  std::string version;
  std::vector<std::string> served_names;  // the first is what answers say
  std::string metrics_prefix = "vllm";
  bool has_public_metrics = false;  // /metrics needs no API key
  std::string overflow = "reject";  // see PromptPreparation
  /// Health is red when the engine had work and finished no step for so long.
  double stall_limit_ms = 5000;
  double request_timeout_s = 3600;  // of a whole answer
  double log_interval_s = 5;
  /// Cached prefixes are shared among the requests of one API key alone.
  bool has_prefix_scope_of_key = false;
  // What a handler may spend on one request before the engine has it, or on a whole answer.
  double work_timeout_s = 10;
  size_t max_work_bytes = size_t{64} << 20;
};

/// What the API serves, once it is loaded.
struct ApiModel {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::string
      no_text;  // why there is no tokenizer, so that prompts are token ids; "": there is one
  Generator* generator = nullptr;
  ChatTemplate chat_template;
  ApiLimits limits;
  SamplingDefaults defaults;
  std::string fingerprint;  // what the bits of answers depend on, for system_fingerprint
};

/// The routes of the API and what they share. It answers 503 until it has a model. Thread safe.
class ApiServer {
 public:
  explicit ApiServer(ApiServerOptions options);
  ~ApiServer();

  std::vector<HttpRoute> routes();
  /// Once.
  void set_model(ApiModel model);
  /// From here on requests get 503, and so do health checks; what runs goes on.
  void set_draining() { is_draining_ = true; }
  /// Ends all requests that run with this status.
  void fail_all(int status, const std::string& message);
  /// Waits until every request that the engine has ended is answered too, at most so long. Returns
  /// whether none is left.
  bool wait_until_answered(int64_t timeout_ms);
  /// No call of the generator after this, but for requests. The order of an end: the HTTP server
  /// stops, stop(), the engine ends (its last outputs come here), this object goes, then the HTTP
  /// server, whose exchanges it holds.
  void stop();

  ServerMetrics& metrics() { return metrics_; }
  /// Why health is red, or "".
  std::string trouble() const;

 private:
  struct Loaded;
  using Exchange = std::shared_ptr<HttpExchange>;
  using Handler = void (ApiServer::*)(const Loaded&, HttpExchange&, WorkBudget&);

  HttpRoute route(const char* method, const char* path, Handler handler);
  void generate(const Loaded& loaded, const Exchange& exchange, bool is_chat, WorkBudget& budget);
  WorkBudget budget_of(const HttpExchange& exchange) const;
  std::string prefix_scope(const HttpExchange& exchange, const std::string& salt) const;
  void health(HttpExchange& exchange) const;
  void kserve_ready(HttpExchange& exchange) const;
  void tokenize(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget);
  void detokenize(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget);
  void list_models(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget);
  void get_model(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget);
  void kserve_model(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget);
  void get_metrics(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget);
  void get_openapi(const Loaded& loaded, HttpExchange& exchange, WorkBudget& budget);

  const Loaded& loaded() const;
  void check_accepting() const;
  void check_model(const std::string& name) const;
  boost::json::object model_json(const Loaded& loaded, const std::string& name) const;
  void add_job(const std::shared_ptr<CompletionJob>& job);
  std::vector<std::shared_ptr<CompletionJob>> live_jobs();
  void tick();

  const ApiServerOptions options_;
  const int64_t created_;  // seconds since 1970
  ServerMetrics metrics_;
  std::atomic<bool> is_draining_{false};
  std::unique_ptr<Loaded> loaded_;
  std::atomic<const Loaded*> loaded_now_{nullptr};

  std::mutex jobs_mutex_;
  std::vector<std::weak_ptr<CompletionJob>> jobs_;

  std::mutex ticker_mutex_;
  std::condition_variable ticker_wakes_;
  bool is_ending_ = false;
  std::thread ticker_;
};

}  // namespace caravan
