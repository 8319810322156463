#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "caravan/sampling_params.h"
#include "models/batch.h"
#include "sampling/logprobs.h"
#include "sampling/sampler.h"

namespace caravan {

/// What the row of a sequence needs to choose its next token.
struct SampleRequest {
  const SamplingParams* params = nullptr;
  int64_t num_tokens = 0;  // of the sequence so far, tokens on their way included
  /// All of them; ids on their way are negative (they can only be the last).
  std::span<const int32_t> history = {};
  int64_t num_prompt_tokens = 0;  // the first of the history
  int64_t slot = 0;               // of the sequence, in [0, max_batch_size)
  bool is_first_output = false;   // the device did not see these tokens before
  /// No end-of-text or stop token may be chosen (min_output_len); `banned` are those.
  std::span<const int32_t> banned = {};
  /// Prompt tokens of this step are scored too: Batch::add_sequence with all rows wanted.
  bool wants_prompt_logprobs = false;
};

struct StepOutput {
  static constexpr int32_t kNotFinite = Sampler::kNotFinite;
  /// The next token; of no meaning when the history goes on after the batch (a scored prompt chunk
  /// that is not the last). token_id kNotFinite: some logits of the request hold a NaN or
  /// +infinity, or nothing above -infinity.
  ScoredToken token;
  /// The tokens that the rows of a scored prompt chunk predict: positions first + 1 ... last + 1 of
  /// the chunk, without any that is not in the prompt. Empty unless they were asked for.
  std::vector<ScoredToken> prompt_tokens;
};

/// What the engine asks of a device: run batches in order, hand out the tokens.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  /// Steps that may be queued before the first is collected.
  virtual int max_steps_in_flight() const = 0;
  /// A request with these parameters has its tokens chosen by the host: a step with it can only be
  /// launched when the one before was collected, and must be collected before the next.
  virtual bool needs_host(const SamplingParams& params) const = 0;
  /// Queues one step: one request for each sequence of the batch that wants logits, in order.
  virtual void launch(const Batch& batch, std::span<const SampleRequest> requests) = 0;
  /// Outputs of the oldest step that was not collected, one a request, valid until the launch after
  /// the next. Errors: as the backend; after one the runner is of no more use.
  virtual std::span<const StepOutput> collect() = 0;
};

}  // namespace caravan
