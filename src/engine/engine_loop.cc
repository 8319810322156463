#include "engine/engine_loop.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <future>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

}  // namespace

struct EngineLoop::Impl {
  struct Submitted {
    int64_t id;
    GenerationRequest request;
    OnOutput on_output;
    Clock::time_point arrival;
  };
  /// A request that the engine has. Only the thread touches it.
  struct Live {
    int64_t id;  // that of submit()
    OnOutput on_output;
    GenerationOutput output;  // collected in this step
    bool has_output = false;
    bool has_prompt_scores = false;  // they were told
  };

  Impl(std::unique_ptr<LlmEngine> owned_engine, EngineLoopOptions loop_options)
      : engine(std::move(owned_engine)), options(std::move(loop_options)) {
    update_stats();
    last_progress = Clock::now().time_since_epoch();
    thread = std::thread([this] {
      try {
        if (options.on_start) options.on_start(*engine);
      } catch (...) {
        started.set_exception(std::current_exception());
        return;
      }
      update_stats();
      started.set_value();
      run();
    });
    try {
      started.get_future().get();
    } catch (...) {
      thread.join();
      throw;
    }
  }
  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      is_stopping = true;
    }
    wake.notify_one();
    thread.join();
  }

  // ---- of any thread ----

  std::optional<int64_t> submit(GenerationRequest request, OnOutput on_output) {
    engine->check_request(request.prompt_ids, request.params);
    const auto num_tokens = static_cast<int64_t>(request.prompt_ids.size());
    int64_t id = 0;
    {
      const std::lock_guard lock(mutex);
      // Those for whom a place is free do not count as waiting.
      const int64_t num_free = engine->limits().scheduler.max_batch_size - figures.num_running;
      if (is_draining || is_stopping || num_queued >= options.max_waiting + num_free) {
        return std::nullopt;
      }
      if (options.max_waiting_tokens > 0 && num_queued > 0 &&
          num_queued_tokens + num_tokens > options.max_waiting_tokens) {
        return std::nullopt;
      }
      if (num_unfinished == 0) last_progress = Clock::now().time_since_epoch();
      id = next_id++;
      ++num_queued;
      num_queued_tokens += num_tokens;
      ++num_unfinished;
      inbox.push_back({id, std::move(request), std::move(on_output), Clock::now()});
    }
    wake.notify_one();
    return id;
  }

  void check_queue(int64_t num_requests, int64_t num_prompt_tokens) const {
    const int64_t most = options.max_waiting + engine->limits().scheduler.max_batch_size;
    CARAVAN_CHECK(
        num_requests <= most,
        "{} outputs at once, the server runs and queues at most {}: ask for fewer prompts "
        "or choices",
        num_requests, most);
    CARAVAN_CHECK(options.max_waiting_tokens == 0 || num_requests == 1 ||
                      num_prompt_tokens <= options.max_waiting_tokens,
                  "the prompts of {} outputs have {} tokens, the server queues at most {}: ask for "
                  "fewer or shorter ones",
                  num_requests, num_prompt_tokens, options.max_waiting_tokens);
  }

  void cancel(int64_t id) {
    {
      const std::lock_guard lock(mutex);
      cancelled.push_back(id);
    }
    wake.notify_one();
  }

  EngineStats stats() const {
    const std::lock_guard lock(mutex);
    EngineStats result = figures;
    result.num_waiting += static_cast<int64_t>(inbox.size());
    return result;
  }

  double stalled_ms() const {
    const std::lock_guard lock(mutex);
    if (num_unfinished == 0) return 0;
    return milliseconds(Clock::time_point(last_progress), Clock::now());
  }

  std::string failure() const {
    const std::lock_guard lock(mutex);
    return failure_text;
  }

  bool drain(int64_t timeout_ms) {
    std::unique_lock lock(mutex);
    is_draining = true;
    return idle.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                         [&] { return num_unfinished == 0; });
  }

  // ---- of the thread ----

  void run() {
    for (;;) {
      std::vector<Submitted> arrived;
      std::vector<int64_t> gone;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] {
          return is_stopping || !inbox.empty() || !cancelled.empty() || !live.empty();
        });
        if (is_stopping) break;
        arrived.swap(inbox);
        gone.swap(cancelled);
      }
      take(std::move(arrived));
      for (const int64_t id : gone) abort(id);
      if (engine->has_unfinished()) run_step();
      update_stats();
    }
    stop();
  }

  /// Never throws: what goes wrong with one request ends that request.
  void take(std::vector<Submitted> arrived) {
    for (Submitted& s : arrived) {
      if (has_failed) {
        refuse(s, failure());
        continue;
      }
      try {
        const int64_t engine_id =
            engine->add_request(s.request.prompt_ids, s.request.params, s.request.priority,
                                s.arrival, s.request.prefix_scope);
        engine_ids.emplace(s.id, engine_id);
        live.emplace(engine_id,
                     Live{.id = s.id, .on_output = std::move(s.on_output), .output = {}});
      } catch (const std::exception& error) {
        refuse(s, error.what());
      }
    }
  }

  void refuse(Submitted& s, std::string error) {
    GenerationOutput output;
    output.finish_reason = FinishReason::kError;
    output.error = std::move(error);
    output.timings.num_prompt_tokens = static_cast<int64_t>(s.request.prompt_ids.size());
    output.timings.queue_ms = milliseconds(s.arrival, Clock::now());
    tell(s.on_output, std::move(output));
    s.on_output = nullptr;
    ++num_ended;
  }

  void abort(int64_t id) {
    const auto it = engine_ids.find(id);
    if (it == engine_ids.end()) return;
    end(engine->cancel(it->second), "");
  }

  /// The step's tokens go to their requests when all of them are known: one call a request.
  void run_step() {
    try {
      told.clear();
      const auto on_token = [&](const Sequence& sequence, int32_t token_id) {
        Live& request = live.at(sequence.id);
        if (!request.has_output) told.push_back(&request);
        request.has_output = true;
        if (sequence.params.num_logprobs >= 0) {
          request.output.tokens.push_back(sequence.scored.back());
        } else {
          request.output.tokens.push_back(
              {.token_id = token_id, .logprob = {}, .top_logprobs = {}});
        }
        add_prompt(sequence, request);
        return false;
      };
      std::vector<std::unique_ptr<Sequence>> finished = engine->step(on_token);
      const StepSummary& step = engine->last_step();
      CARAVAN_CHECK_CODE(step.num_tokens > 0, kInternal,
                         "{} sequences are unfinished and none can run", live.size());
      note_progress();
      for (const auto& sequence : finished) {
        live.at(sequence->id).output.finish_reason = sequence->finish_reason;
      }
      for (Live* request : told) {
        if (request->output.finish_reason != FinishReason::kNone) continue;  // below
        request->has_output = false;
        tell(request->on_output, std::exchange(request->output, {}));
      }
      for (std::unique_ptr<Sequence>& sequence : finished) {
        end(std::move(sequence), "the model computed a number that is not finite");
      }
      if (options.on_step) options.on_step({step.num_tokens, step.num_seqs, step.duration_ms});
    } catch (const std::exception& error) {
      fail(error.what());
    }
  }

  void add_prompt(const Sequence& sequence, Live& request) {
    if (request.has_prompt_scores) return;
    request.has_prompt_scores = true;
    request.output.prompt_tokens = sequence.prompt_scored;
    request.output.num_cached_tokens = sequence.num_cached_tokens;
  }

  /// The last call of a sequence that the engine gave up. `error` counts for kError alone.
  void end(std::unique_ptr<Sequence> sequence, std::string error) {
    auto node = live.extract(sequence->id);
    Live& request = node.mapped();
    engine_ids.erase(request.id);
    request.output.finish_reason = sequence->finish_reason;
    if (sequence->finish_reason == FinishReason::kError) request.output.error = std::move(error);
    add_prompt(*sequence, request);
    request.output.timings = timings_of(*sequence);
    tell(request.on_output, std::move(request.output));
    ++num_ended;
  }

  void fail(const char* what) {
    has_failed = true;
    {
      const std::lock_guard lock(mutex);
      failure_text = what;
    }
    log_line(LogLevel::kError, fmt::format("the engine stopped: {}", what));
    end_all();
  }

  /// After a failure: every request ends with it.
  void end_all() { end_each(FinishReason::kError, failure()); }

  void end_each(FinishReason reason, const std::string& error) {
    while (!live.empty()) {
      const int64_t id = live.begin()->first;
      std::unique_ptr<Sequence> sequence = engine->cancel(id);
      if (sequence == nullptr) {  // the step that failed had taken it out already
        sequence = std::make_unique<Sequence>();
        sequence->id = id;
        sequence->arrival = Clock::now();
      }
      sequence->finish_reason = reason;
      end(std::move(sequence), error);
    }
  }

  void stop() {
    end_each(FinishReason::kAbort, "");
    std::vector<Submitted> left;
    {
      const std::lock_guard lock(mutex);
      left.swap(inbox);
    }
    for (Submitted& s : left) {
      GenerationOutput output;
      output.finish_reason = FinishReason::kAbort;
      output.timings.num_prompt_tokens = static_cast<int64_t>(s.request.prompt_ids.size());
      tell(s.on_output, std::move(output));
      s.on_output = nullptr;
      ++num_ended;
    }
    update_stats();
  }

  static void tell(const OnOutput& on_output, GenerationOutput output) {
    if (!on_output) return;
    try {
      on_output(std::move(output));
    } catch (const std::exception& error) {
      log_warning("a request's callback threw: {}", error.what());
    }
  }

  void note_progress() {
    const std::lock_guard lock(mutex);
    last_progress = Clock::now().time_since_epoch();
  }

  void update_stats() {
    const EngineStats now = engine->stats();
    const int64_t waiting_tokens = engine->scheduler().num_waiting_tokens();
    const std::lock_guard lock(mutex);
    figures = now;
    num_queued = now.num_waiting + static_cast<int64_t>(inbox.size());
    num_queued_tokens = waiting_tokens;
    for (const Submitted& s : inbox) {
      num_queued_tokens += static_cast<int64_t>(s.request.prompt_ids.size());
    }
    num_unfinished -= std::exchange(num_ended, 0);
    if (num_unfinished == 0) idle.notify_all();
  }

  std::unique_ptr<LlmEngine> engine;  // of the thread, but for its check_request() and limits()
  EngineLoopOptions options;

  // Of the thread.
  std::unordered_map<int64_t, Live> live;           // by the engine's id
  std::unordered_map<int64_t, int64_t> engine_ids;  // by that of submit()
  std::vector<Live*> told;
  int64_t num_ended = 0;  // since the last update_stats()
  bool has_failed = false;

  mutable std::mutex mutex;  // for all below
  std::condition_variable wake;
  std::condition_variable idle;
  std::vector<Submitted> inbox;
  std::vector<int64_t> cancelled;
  EngineStats figures;
  std::string failure_text;
  Clock::duration last_progress{};
  int64_t next_id = 0;
  int64_t num_unfinished = 0;     // submitted, last output not told
  int64_t num_queued = 0;         // of them, not running
  int64_t num_queued_tokens = 0;  // of their prompts
  bool is_draining = false;
  bool is_stopping = false;

  std::promise<void> started;  // options.on_start returned
  std::thread thread;
};

EngineLoop::EngineLoop(std::unique_ptr<LlmEngine> engine, EngineLoopOptions options)
    : impl_(std::make_unique<Impl>(std::move(engine), std::move(options))) {}
EngineLoop::~EngineLoop() = default;

std::optional<int64_t> EngineLoop::submit(GenerationRequest request, OnOutput on_output) {
  return impl_->submit(std::move(request), std::move(on_output));
}
void EngineLoop::check_queue(int64_t num_requests, int64_t num_prompt_tokens) const {
  impl_->check_queue(num_requests, num_prompt_tokens);
}
void EngineLoop::cancel(int64_t id) { impl_->cancel(id); }
EngineStats EngineLoop::stats() const { return impl_->stats(); }
double EngineLoop::stalled_ms() const { return impl_->stalled_ms(); }
std::string EngineLoop::failure() const { return impl_->failure(); }
bool EngineLoop::drain(int64_t timeout_ms) { return impl_->drain(timeout_ms); }
const LlmEngine& EngineLoop::engine() const { return *impl_->engine; }

}  // namespace caravan
