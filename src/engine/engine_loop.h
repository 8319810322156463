#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "caravan/llm.h"
#include "caravan/sampling_params.h"
#include "engine/engine_stats.h"
#include "engine/llm_engine.h"
#include "sampling/logprobs.h"

namespace caravan {

struct GenerationRequest {
  std::vector<int32_t> prompt_ids;
  SamplingParams params;
  int32_t priority = 0;      // lower goes first, as vLLM's
  std::string prefix_scope;  // cached prefixes are shared within it; "": with all that have none
};

/// What happened to a request since the last time it was told.
struct GenerationOutput {
  std::vector<ScoredToken> tokens;         // new output tokens, the one that ended it included
  std::vector<ScoredToken> prompt_tokens;  // with the first output, when prompt logprobs are wanted
  int64_t num_cached_tokens = 0;           // prompt tokens that the prefix cache spared
  FinishReason finish_reason = FinishReason::kNone;  // kNone: more will come
  std::string error;                                 // of kError: one line
  RequestTimings timings;                            // when finished
};

struct StepInfo {
  int64_t num_tokens = 0;  // in the batch
  int64_t num_seqs = 0;
  double duration_ms = 0;  // from its launch, or the end of the step before, to its tokens
};

struct EngineLoopOptions {
  int64_t max_waiting = 1024;      // requests beyond the free places; submit() refuses more
  int64_t max_waiting_tokens = 0;  // of their prompts, likewise; 0: no limit
  /// Called on the loop's thread after every step; must be quick.
  std::function<void(const StepInfo&)> on_step;
  /// Called on the loop's thread before the first request. What it throws comes out of the
  /// constructor.
  std::function<void(LlmEngine&)> on_start = nullptr;
};

/// Runs an LlmEngine on a thread of its own. All public functions are thread safe.
class EngineLoop {
 public:
  /// Errors: what options.on_start throws.
  EngineLoop(std::unique_ptr<LlmEngine> engine, EngineLoopOptions options);
  /// Ends every request with kAbort, then the thread.
  ~EngineLoop();

  /// Called on the loop's thread, in order; must be quick and must not throw or call EngineLoop
  /// except cancel(). The last call has a finish_reason; after it the callback is destroyed.
  using OnOutput = std::function<void(GenerationOutput)>;
  /// Queues a request; returns its id, or nothing when the queue is full or drain() was called.
  /// Errors: kInvalidArgument for a request that can never run (LlmEngine::check_request).
  std::optional<int64_t> submit(GenerationRequest request, OnOutput on_output);
  /// Errors: kInvalidArgument when so many requests at once, of so many prompt tokens together,
  /// would find the queue too short even if it were empty.
  void check_queue(int64_t num_requests, int64_t num_prompt_tokens) const;
  /// The request ends with kAbort, its blocks are free in the next step. One that ended already, or
  /// never was: nothing happens.
  void cancel(int64_t id);

  EngineStats stats() const;
  /// Milliseconds that the loop has had work but finished no step; 0 when it is idle.
  double stalled_ms() const;
  /// Empty while the loop works; what ended it (a device error) otherwise. After that every request
  /// ends with kError.
  std::string failure() const;
  /// From here on submit() returns nothing; waits until nothing is left, at most `timeout_ms`.
  /// Returns true when nothing is left.
  bool drain(int64_t timeout_ms);

  const LlmEngine& engine() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace caravan
