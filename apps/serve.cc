#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <sstream>
#include <utility>

#include "apps/commands.h"
#include "apps/kv_cache_flags.h"
#include "apps/model_flags.h"
#include "apps/number_flags.h"
#include "convert/byte_size.h"
#include "core/error.h"
#include "core/log.h"
#include "core/log_thread.h"
#include "core/mapped_file.h"
#include "engine/engine_loop.h"
#include "server/api_server.h"
#include "server/engine_loop_generator.h"
#include "server/http_server.h"
#include "server/process_signals.h"
#include "server/watchdog.h"
#include "tokenizer/model_chat_template.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace {

struct ServeFlags {
  ModelFlags model;
  KvCacheFlags kv_cache;
  HttpServerOptions http;
  ApiServerOptions api;
  ApiLimits limits;
  std::string api_key_file;
  bool allows_no_auth = false;
  std::string http_memory = "256MiB";
  std::string load_format = "auto";
  int64_t max_model_len = 0;
  int64_t max_num_seqs = 0;
  int64_t max_num_batched_tokens = 0;
  bool has_prefix_caching = true;
  int64_t max_waiting = 1024;
  int64_t max_waiting_tokens = 0;
  double watchdog_s = -1;
  double drain_timeout_s = 30;
  std::string chat_template = "auto";
  std::string scheduling_policy = "fcfs";
  std::string prefix_cache_scope = "key";
  bool skips_tokenizer = false;

  bool is_gpu() const { return model.device.starts_with("cuda"); }
  /// When a step takes so long, the device hangs. A GPU's takes milliseconds; a large prompt's on
  /// the CPU may take a minute.
  double stall_s() const {
    if (watchdog_s > 0) return watchdog_s;
    return is_gpu() ? 10 : 300;
  }
};

constexpr double kForever = 1e9;  // seconds

/// A key, checked; `where` is what the message begins with.
std::string checked_key(const ServeFlags& flags, std::string key, const std::string& where) {
  constexpr size_t kMinKeyBytes = 16;
  const std::string problem = api_key_problem(key);
  CARAVAN_CHECK(problem.empty(), "{}: {}", where, problem);
  if (key.size() >= kMinKeyBytes) return key;
  // On this machine alone a short key is a convenience; elsewhere somebody will guess it.
  CARAVAN_CHECK(is_local_host(flags.http.host) || flags.allows_no_auth,
                "{}: a key of {} characters can be guessed; --host {} needs at least {}: openssl "
                "rand -hex 16",
                where, key.size(), printable(flags.http.host), kMinKeyBytes);
  log_warning("{}: a key of {} characters; use at least {}", where, key.size(), kMinKeyBytes);
  return key;
}

std::string trim_blanks(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(kBlanks) + 1 - begin));
}

/// The keys of the flag and, one a line, of the file, where blanks around a key, empty lines and
/// lines that begin with '#' are nothing.
std::vector<std::string> read_api_keys(const ServeFlags& flags) {
  constexpr size_t kMaxKeyFileBytes = size_t{1} << 20;
  std::vector<std::string> keys;
  for (const std::string& key : flags.http.api_keys) {
    keys.push_back(checked_key(flags, key, "--api-key"));
  }
  if (!flags.api_key_file.empty()) {
    const std::string file = printable(flags.api_key_file);
    std::istringstream lines(read_text_file(flags.api_key_file, kMaxKeyFileBytes));
    bool has_key = false;
    int64_t number = 0;
    for (std::string line; std::getline(lines, line);) {
      ++number;
      const std::string key = trim_blanks(line);
      if (key.empty() || key.front() == '#') continue;
      keys.push_back(
          checked_key(flags, key, fmt::format("--api-key-file {}: line {}", file, number)));
      has_key = true;
    }
    CARAVAN_CHECK(has_key, "--api-key-file {}: no key in it", file);
  }
  const char* variable = std::getenv("CARAVAN_API_KEY");
  CARAVAN_CHECK(variable == nullptr || *variable != '\0' || !keys.empty() || flags.allows_no_auth,
                "CARAVAN_API_KEY: empty; unset it to serve without a key");
  CARAVAN_CHECK(is_local_host(flags.http.host) || !keys.empty() || flags.allows_no_auth,
                "--host {}: whoever reaches this address could use the server: give --api-key or "
                "--api-key-file, or --insecure-no-auth if that is meant",
                printable(flags.http.host));
  return keys;
}

/// A list as people write it into one variable: "a,b" or "a b".
std::vector<std::string> split_names(const std::vector<std::string>& lists) {
  std::vector<std::string> names;
  for (std::string list : lists) {
    std::replace(list.begin(), list.end(), ',', ' ');
    std::istringstream words(list);
    for (std::string word; words >> word;) names.push_back(word);
  }
  return names;
}

/// A name goes into JSON and metrics, which are UTF-8.
void check_name(const std::string& name, const std::string& what) {
  bool is_clean = !name.empty();
  for (size_t i = 0; i < name.size() && is_clean;) {
    const Utf8Char c = decode_utf8(name, i);
    is_clean = c.state == Utf8Char::State::kValid && c.code_point >= 0x20 && c.code_point != 0x7f;
    i += c.num_bytes;
  }
  CARAVAN_CHECK(is_clean,
                "{} \"{}\": expected a name in UTF-8 without control characters; give "
                "--served-model-name",
                what, printable(name));
}

/// Prometheus' rule for the names of metrics.
void check_metrics_prefix(const std::string& prefix) {
  const auto is_right = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == ':';
  };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const bool is_name =
      !prefix.empty() && !is_digit(prefix.front()) &&
      std::all_of(prefix.begin(), prefix.end(), [&](char c) { return is_right(c) || is_digit(c); });
  CARAVAN_CHECK(is_name, "--metrics-prefix: got \"{}\", expected letters, digits, '_' and ':'",
                printable(prefix));
}

/// Descriptors for connections: what the limit of open files leaves beside models, logs and pipes.
int64_t connections_of(int64_t wanted, long file_limit) {
  constexpr int64_t kOtherFiles = 64;
  if (file_limit < 0) return wanted;
  const int64_t most = std::max<int64_t>(16, static_cast<int64_t>(file_limit) - kOtherFiles);
  if (wanted > most) {
    log_warning("--max-connections {}: the limit of {} open files allows {}", wanted, file_limit,
                most);
  }
  return std::min(wanted, most);
}

/// The directory's own name: "models/camel-nano/" -> "camel-nano".
std::string name_of_directory(const std::string& model) {
  const std::filesystem::path path = std::filesystem::absolute(model).lexically_normal();
  return (path.filename().empty() ? path.parent_path().filename() : path.filename()).string();
}

/// The form of chats. A model with a template of its own is not answered with another form, unless
/// somebody says so.
ChatTemplate open_chat_template(const ServeFlags& flags, const std::string& no_text) {
  if (!no_text.empty()) return ChatTemplate::absent("this server has no tokenizer: " + no_text);
  if (flags.chat_template != "auto") return ChatTemplate::open(flags.chat_template);
  const std::optional<std::string> own = model_chat_template(flags.model.model);
  if (!own) {
    log_info(
        "the model has no chat template: chats are written in camel's form; --chat-template "
        "none turns them off");
    return ChatTemplate::open("camel");
  }
  log_warning(
      "{}: the model's own chat template is not read: /v1/chat/completions answers 400 "
      "until --chat-template names a form",
      *own);
  return ChatTemplate::absent(
      fmt::format("the model has a chat template of its own ({}), which this server does not read: "
                  "use /v1/completions, or start the server with --chat-template FILE",
                  *own));
}

/// The model's tokenizer, or, with the reason in `no_text`, one without tokens.
std::shared_ptr<const Tokenizer> open_tokenizer(const ServeFlags& flags, std::string& no_text) {
  TokenizerOrReason loaded;
  if (flags.skips_tokenizer) {
    loaded.reason = "--skip-tokenizer-init";
  } else {
    loaded = try_load_tokenizer(flags.model.model);
  }
  if (loaded) return std::make_shared<const Tokenizer>(std::move(*loaded.tokenizer));
  no_text = loaded.reason;
  log_warning("no tokenizer: prompts and answers are token ids ({})", no_text);
  return std::make_shared<const Tokenizer>(Tokenizer::without_text());
}

LlmEngineOptions engine_options(const ServeFlags& flags, const ModelDir& dir,
                                const Backend& backend) {
  LlmEngineOptions options;
  ModelRunnerOptions& runner = options.runner;
  runner.dtype = dtype_flag(flags.model.dtype, "--dtype");
  runner.kv_cache_dtype = kv_dtype_flag(flags.model.kv_cache_dtype);
  runner.verify_weights = !flags.model.skips_verification;
  const int64_t most = dir.build ? dir.build->max_batch_size : INT64_MAX;
  const int64_t usual = std::min<int64_t>(most, flags.is_gpu() ? 256 : 32);
  runner.max_batch_size = flags.max_num_seqs > 0 ? flags.max_num_seqs : usual;
  CARAVAN_CHECK(runner.max_batch_size <= most, "--max-num-seqs {}: {} was built for {}",
                runner.max_batch_size, dir.path, most);
  runner.max_num_logits = runner.max_batch_size;
  const int64_t usual_tokens = flags.is_gpu() ? 2048 : 512;
  runner.max_num_batched_tokens =
      std::max(flags.max_num_batched_tokens > 0 ? flags.max_num_batched_tokens : usual_tokens,
               runner.max_batch_size);
  runner.max_seq_len = ModelRunner::sequence_limit(dir, flags.max_model_len);
  runner.num_kv_blocks =
      kv_cache_size(flags.kv_cache, dir, flags.model, backend, runner).num_blocks;
  options.eos_token_ids = dir.config.eos_token_ids;
  options.enable_prefix_caching = flags.has_prefix_caching;
  return options;
}

/// One step of the loaded model before anybody is served: it waits until the weights are verified,
/// starts the threads that steps need, and finds a token only if its logits are numbers.
/// Errors: those of ModelRunner; kCorrupt when they are not.
void run_canary(ModelRunner& runner) {
  constexpr int64_t kMostTokens = 16;
  const int64_t vocab_size = runner.model().config().vocab_size;
  const int64_t count = std::min({kMostTokens, runner.max_seq_len(), runner.cache().block_size(),
                                  vocab_size, runner.model().limits().max_num_tokens});
  std::vector<int32_t> ids;  // from all over the vocabulary
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(i * (vocab_size / count)));
  Batch batch(runner.cache().block_size());
  const std::vector<int32_t> table{0};
  batch.add_sequence(ids.data(), count, 0, table, LogitsWanted::kLast);
  SamplingParams params;
  params.temperature = 0;
  const SampleRequest request{.params = &params,
                              .num_tokens = count,
                              .history = ids,
                              .num_prompt_tokens = count,
                              .slot = 0,
                              .is_first_output = true};
  runner.launch(batch, {&request, 1});
  CARAVAN_CHECK_CODE(runner.collect().front().token.token_id != StepOutput::kNotFinite, kCorrupt,
                     "the model computes numbers that are not finite after a prompt of {} tokens: "
                     "its weights are damaged, or too large for the dtype; try --dtype float32",
                     count);
}

std::unique_ptr<LlmEngine> load_engine(const ServeFlags& flags, const ModelDir& dir) {
  std::unique_ptr<Backend> backend = create_backend(flags.model.backend());
  const LlmEngineOptions options = engine_options(flags, dir, *backend);
  check_memory(dir, flags.model, options.runner);
  if (flags.load_format == "dummy") {
    return std::make_unique<LlmEngine>(ModelRunner::random(dir, std::move(backend), options.runner),
                                       options);
  }
  return std::make_unique<LlmEngine>(dir, std::move(backend), options);
}

/// Loads beside the thread that waits for signals: one that comes meanwhile ends the process,
/// because there is nothing to finish yet.
std::unique_ptr<EngineLoop> load_unless_stopped(const ServeFlags& flags, const ModelDir& dir,
                                                const EngineLoopOptions& options,
                                                const TerminationSignals& signals,
                                                LogThread& log_thread) {
  std::future<std::unique_ptr<EngineLoop>> loop = std::async(std::launch::async, [&] {
    return std::make_unique<EngineLoop>(load_engine(flags, dir), options);
  });
  while (loop.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    if (signals.wait(/*timeout_ms=*/50) == 0) continue;
    log_thread.flush(/*timeout_ms=*/1000);
    std::_Exit(0);
  }
  return loop.get();
}

/// Ends the process when the engine is stuck or dead; its thread may never come back.
std::unique_ptr<Watchdog> start_watchdog(const ServeFlags& flags, const EngineLoop& loop,
                                         ApiServer& api) {
  WatchdogOptions options;
  // Without a limit it still looks for a failure.
  options.limit_s = flags.watchdog_s == 0 ? kForever : flags.stall_s();
  options.stalled_ms = [&loop] { return loop.stalled_ms(); };
  // Weights that somebody wrote to are noticed without a request too.
  options.failure = [&loop, &model = std::as_const(loop.engine().runner()).model()] {
    std::string failure = loop.failure();
    if (!failure.empty()) return failure;
    try {
      model.check_unchanged();
    } catch (const Error& error) {
      failure = error.what();
    }
    return failure;
  };
  options.on_trip = [&api](const std::string& reason) {
    log_line(LogLevel::kError, reason);
    api.set_draining();
    api.fail_all(503, reason);
  };
  options.on_exit = [] { std::_Exit(kWatchdogExit); };
  return std::make_unique<Watchdog>(std::move(options));
}

void run_serve(ServeFlags flags) {
  flags.http.api_keys = read_api_keys(flags);
  flags.api.version = CARAVAN_VERSION;
  flags.api.stall_limit_ms = flags.stall_s() * 1000 / 2;
  flags.api.has_prefix_scope_of_key =
      flags.prefix_cache_scope == "key" && !flags.http.api_keys.empty();
  flags.limits.has_priorities = flags.scheduling_policy == "priority";
  if (flags.api.served_names.empty()) {
    flags.api.served_names = {name_of_directory(flags.model.model)};
  }
  end_on_mapping_fault(kWatchdogExit);  // whoever restarts the server may know how to mend it
  for (const std::string& name : flags.api.served_names) check_name(name, "the model's name");
  check_metrics_prefix(flags.api.metrics_prefix);
  if (flags.api.request_timeout_s == 0) flags.api.request_timeout_s = kForever;
  flags.http.allowed_hosts = split_names(flags.http.allowed_hosts);
  flags.http.cors_origins = split_names(flags.http.cors_origins);
  flags.http.max_memory = parse_byte_size(flags.http_memory, "--http-memory");
  // What is cheap to get wrong is found out before anybody connects.
  const ModelDir dir = open_model_dir(flags.model.model);
  std::string no_text;
  const std::shared_ptr<const Tokenizer> tokenizer = open_tokenizer(flags, no_text);
  const ChatTemplate chat_template = open_chat_template(flags, no_text);
  const SamplingDefaults defaults = load_sampling_defaults(flags.model.model);

  const TerminationSignals signals;  // before the first thread
  LogThread log_thread;              // nothing here may wait for whoever reads stderr
  flags.http.max_connections = connections_of(flags.http.max_connections, raise_file_limit());
  std::unique_ptr<HttpServer> http;  // goes last, see ApiServer::stop()
  ApiServer api(flags.api);
  http = std::make_unique<HttpServer>(flags.http, api.routes());
  const std::unique_ptr<HttpServer, void (*)(HttpServer*)> stops_first(
      http.get(), [](HttpServer* server) { server->stop(); });
  api.set_http_stats([server = http.get()] { return server->stats(); });
  http->start();
  log_info("listening at {}, loading {}", http->url(), flags.model.model);

  std::unique_ptr<EngineLoop> loop = load_unless_stopped(
      flags, dir,
      {.max_waiting = flags.max_waiting,
       .max_waiting_tokens = flags.max_waiting_tokens,
       .on_step = [&api](const StepInfo& step) { api.metrics().observe_step(step); },
       .on_start = [](LlmEngine& engine) { run_canary(engine.runner()); }},
      signals, log_thread);
  EngineLoopGenerator generator(*loop);
  const ModelRunner& runner = loop->engine().runner();
  flags.limits.max_model_len = runner.max_seq_len();
  const int64_t num_tokens = no_text.empty() ? tokenizer->vocab_size() : INT32_MAX;
  flags.limits.vocab_size = static_cast<int32_t>(std::min(dir.config.vocab_size, num_tokens));
  api.set_model({.tokenizer = tokenizer,
                 .no_text = no_text,
                 .generator = &generator,
                 .chat_template = chat_template,
                 .limits = flags.limits,
                 .defaults = defaults,
                 .fingerprint = fmt::format("{}-{}", flags.is_gpu() ? "cuda" : "cpu",
                                            dtype_name(runner.model().weight_dtype()))});
  std::unique_ptr<Watchdog> watchdog = start_watchdog(flags, *loop, api);
  const EngineStats stats = loop->stats();
  log_info("{}; {} KV blocks of {} tokens; at most {} tokens a sequence, {} sequences at once",
           runner.backend().description(), stats.num_blocks, stats.block_size, runner.max_seq_len(),
           loop->engine().limits().scheduler.max_batch_size);
  log_info("ready: {}", http->url());
  notify_systemd("READY=1");

  while (signals.wait(/*timeout_ms=*/60000) == 0) {
  }
  notify_systemd("STOPPING=1");
  signals.exit_on_next();  // a second signal does not wait
  api.set_draining();
  const EngineStats last = loop->stats();
  log_info("stopping: {} requests to finish", last.num_running + last.num_waiting);
  const bool is_done = loop->drain(static_cast<int64_t>(flags.drain_timeout_s * 1000));
  if (is_done) api.wait_until_answered(5000);  // its last outputs are on their way to the clients
  api.fail_all(503, "the server stops");
  http->drain(2000);  // answers on their way
  http->stop();
  watchdog.reset();
  api.stop();
  loop.reset();
  log_info("stopped");
}

void add_model_flags(CLI::App& command, ServeFlags& flags) {
  flags.model.add_to(command);
  flags.kv_cache.add_to(command);
  command
      .add_option("--load-format", flags.load_format,
                  "auto; dummy: random weights of config.json's shape, to measure speed")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  command
      .add_option("--served-model-name,--alias,-a", flags.api.served_names,
                  "Name of the model, several if given more than once; default: the directory's")
      ->allow_extra_args(false);
  command
      .add_option("--max-model-len,--ctx-size,-c", flags.max_model_len,
                  "Most tokens of a prompt and its output; 0: the model's or engine's limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--max-num-seqs,--parallel", flags.max_num_seqs,
                  "Sequences that run at once; 0: 256 on a GPU, 32 on the CPU")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--max-num-batched-tokens,--batch-size,-b", flags.max_num_batched_tokens,
                  "Tokens of one step: longer prompts are read in chunks while others go on; 0: "
                  "2048 on a GPU, 512 on the CPU")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_flag(
      "--enable-prefix-caching,!--no-enable-prefix-caching", flags.has_prefix_caching,
      "Keep the cache of prompts for others that begin alike (on unless switched off)");
  command
      .add_option("--prefix-cache-scope", flags.prefix_cache_scope,
                  "Who shares the cache of prompts: the requests of one API key, or all. That a "
                  "beginning is there can be seen in an answer's time")
      ->check(CLI::IsMember({"key", "all"}))
      ->capture_default_str();
  command
      .add_option("--scheduling-policy", flags.scheduling_policy,
                  "fcfs: requests run in the order they come; priority: a request's `priority` "
                  "counts, from -10, which is first, to 10")
      ->check(CLI::IsMember({"fcfs", "priority"}))
      ->capture_default_str();
  command
      .add_option("--max-waiting", flags.max_waiting,
                  "Requests that may wait for a place; more get status 429")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option(
          "--max-waiting-tokens", flags.max_waiting_tokens,
          "Tokens of the prompts that may wait, likewise; one prompt always may. 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--watchdog-s", flags.watchdog_s,
                  "Give up with exit status 75 when a step takes so many seconds; health is red "
                  "after half of it. 0: never; -1: 10 on a GPU, 300 on the CPU")
      ->check(number_between(-1, 86400))
      ->capture_default_str();
}

void add_api_flags(CLI::App& command, ServeFlags& flags) {
  command
      .add_option(
          "--chat-template", flags.chat_template,
          "camel; plain: User: and Assistant: lines; none; or a file with {system}, "
          "{user} and {assistant}; auto: none for a model with a template of its own, which "
          "is not read, else camel")
      ->capture_default_str();
  command
      .add_option("--overflow", flags.api.overflow,
                  "A prompt that does not fit: reject, or leave out its head, tail or middle; a "
                  "request's own field goes first")
      ->check(CLI::IsMember({"reject", "head", "tail", "middle"}))
      ->capture_default_str();
  command
      .add_option("--timeout", flags.api.request_timeout_s,
                  "Seconds that one answer may take; 0: no limit")
      ->check(number_between(0, kForever))
      ->capture_default_str();
  command
      .add_option("--drain-timeout", flags.drain_timeout_s,
                  "Seconds that running requests get after SIGTERM or SIGINT")
      ->check(number_between(0, 1e6))
      ->capture_default_str();
  command
      .add_option("--metrics-prefix", flags.api.metrics_prefix,
                  "What the names in /metrics begin with")
      ->capture_default_str();
  command.add_flag("--public-metrics", flags.api.has_public_metrics,
                   "/metrics needs no API key, for collectors that have none");
  command.add_flag("--skip-tokenizer-init", flags.skips_tokenizer,
                   "Load no tokenizer: prompts and answers are token ids");
  command
      .add_option(
          "--max-answer-bytes", flags.limits.max_answer_bytes,
          "Largest answer, as estimated from prompts, choices, tokens and log probabilities "
          "before anything runs")
      ->check(CLI::Range(int64_t{65536}, int64_t{1} << 31))
      ->capture_default_str();
  command
      .add_option("--max-logprobs", flags.limits.max_logprobs,
                  "Most log probabilities that a request may ask for at each token")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
}

void add_http_flags(CLI::App& command, ServeFlags& flags) {
  HttpServerOptions& http = flags.http;
  command.add_option("--host", http.host, "Address to listen at, or a path that ends in .sock")
      ->capture_default_str();
  command.add_option("--port", http.port, "Port to listen at; 0: any that is free")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command.add_flag("--reuse-port", http.reuse_port,
                   "Share the port with other servers; the kernel deals connections out");
  command
      .add_option("--api-key", http.api_keys,
                  "Key that requests must bring (Authorization: Bearer KEY); may be repeated")
      ->allow_extra_args(false);
  command.add_option("--api-key-file", flags.api_key_file, "File of such keys, one a line");
  command.add_flag("--insecure-no-auth", flags.allows_no_auth,
                   "Listen at an address that others reach without asking for a key");
  command
      .add_option("--allowed-host", http.allowed_hosts,
                  "Name under which the server may be addressed, beside its own; *: any")
      ->allow_extra_args(false);
  command
      .add_option("--cors-origin", http.cors_origins,
                  "Origin whose web pages may use the server, such as https://a.example; *: any")
      ->allow_extra_args(false);
  command
      .add_option("--max-connections", http.max_connections,
                  "Connections at once; then the idlest is closed for a new one, and when all are "
                  "busy more get status 503")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command.add_option("--max-body-bytes", http.max_body_bytes, "Largest body of a request")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->capture_default_str();
  command
      .add_option("--http-memory", flags.http_memory,
                  "Memory for all bodies, answers and what clients have not read, e.g. 1GiB; above "
                  "it large ones get status 503")
      ->capture_default_str();
  command
      .add_option("--min-rate", http.min_rate,
                  "Bytes a second that a client must send of a body, after 5 s, and read of an "
                  "answer, over 30 s; 0: any")
      ->check(number_between(0, 1e9))
      ->capture_default_str();
  command.add_flag("!--no-request-log,--request-log", http.log_requests,
                   "One line a request on stderr");
}

}  // namespace

void add_serve_command(CLI::App& app) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command = app.add_subcommand(
      "serve", "OpenAI-compatible HTTP server with continuous batching, metrics and a web page");
  add_model_flags(*command, *flags);
  add_http_flags(*command, *flags);
  add_api_flags(*command, *flags);
  command->callback([flags] { run_serve(*flags); });
}

}  // namespace caravan
