#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "caravan/logprobs.h"
#include "caravan/sampling_params.h"

namespace caravan {

/// What to open and how large. Lengths are tokens.
struct LlmOptions {
  std::string model;           // Hugging Face, checkpoint or engine directory
  std::string dtype = "auto";  // auto, float32, float16, bfloat16: weights as computed with
  std::string kv_cache_dtype = "auto";  // auto: as built, else the weights' dtype; also int8, fp8
  std::string device = "cpu";           // cpu, cuda, cuda:N
  std::string cpu_isa = "auto";         // auto, amx, avx512, avx2, reference
  std::string cuda_kernels = "auto";    // auto; generic: those of sm_80, whatever the GPU is
  int num_threads = 0;                  // 0: one for each core
  int64_t max_batch_size = 8;           // sequences that run at once
  int64_t max_seq_len = 0;      // prompt + output of one sequence; 0: the model's or engine's limit
  int64_t kv_cache_tokens = 0;  // of the cache; 0: max_batch_size sequences of max_seq_len
  int64_t max_num_batched_tokens = 512;  // tokens of one step; longer prompts go in chunks
  /// Compare the weights with the directory's checksums, if it has any, and refuse values that are
  /// not finite. Runs beside the first step; no token leaves before every weight was verified.
  bool verify_weights = true;
};

/// One prompt and how it is to be completed.
struct LlmRequest {
  /// Text. An empty one stands for the token that begins a text (bos_token_id of config.json).
  std::string prompt = {};
  std::vector<int32_t> prompt_ids = {};  // token ids in place of the text, when there are any
  /// "<|endoftext|>" and the like in the prompt are the tokens they name: for text that you trust.
  bool parse_special = false;
  SamplingParams params = {};
};

/// kStop: end of text, a stop token or a stop string. kAbort: cancelled. kError: it failed alone.
enum class FinishReason { kNone, kStop, kLength, kAbort, kError };

/// Milliseconds are wall time.
struct RequestTimings {
  int64_t num_prompt_tokens = 0;
  int64_t num_output_tokens = 0;
  double queue_ms = 0;    // from generate() to the first step with this prompt
  double prefill_ms = 0;  // from there to the first token
  double decode_ms = 0;   // from the first token to the last
};

struct Completion {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> output_ids;  // the end-of-text token included when it ended the output
  std::string text;  // valid UTF-8; special tokens, stop tokens and the stop string left out
  FinishReason finish_reason = FinishReason::kNone;
  std::vector<ScoredToken> output_logprobs;  // of output_ids, with num_logprobs >= 0
  std::vector<ScoredToken> prompt_logprobs;  // of prompt_ids, with num_prompt_logprobs >= 0
  RequestTimings timings;
};

/// A request of Llm::submit() that ended.
struct FinishedRequest {
  int64_t id = 0;
  Completion completion;
};

/// A loaded model that completes prompts. A model whose tokenizer is missing or cannot be read
/// takes and gives token ids alone: texts are errors that say why, and Completion::text is empty.
/// Not thread safe: one call at a time. Every member function throws std::runtime_error
/// (caravan::Error inside the library) with a one-line message that says what was found, what was
/// expected and what to do.
class Llm {
 public:
  static Llm open(const LlmOptions& options);
  Llm(Llm&&) noexcept;
  Llm& operator=(Llm&&) noexcept;
  ~Llm();

  bool has_tokenizer() const;
  /// parse_special: as in LlmRequest.
  std::vector<int32_t> encode(std::string_view text, bool parse_special = false) const;
  /// The tokens of the request's prompt.
  std::vector<int32_t> prompt_tokens(const LlmRequest& request) const;
  std::string decode(const std::vector<int32_t>& ids) const;

  /// Text of prompt `index` that became complete; called in order, whole UTF-8 characters only.
  /// What it throws ends the call and comes out of generate().
  using OnText = std::function<void(size_t index, std::string_view text)>;

  /// Completes all prompts, as many at once as fit. params: one for all, or one a prompt. Not while
  /// requests of submit() are unfinished.
  std::vector<Completion> generate(const std::vector<std::vector<int32_t>>& prompts,
                                   const std::vector<SamplingParams>& params,
                                   const OnText& on_text = nullptr);
  Completion generate(std::string_view prompt, const SamplingParams& params,
                      const OnText& on_text = nullptr);
  Completion generate(const LlmRequest& request, const OnText& on_text = nullptr);

  /// Queues a request and returns its id, 0, 1, 2, ..., all at once or while others run: with this
  /// and step() a program that reads prompts from a stream holds only those in work.
  int64_t submit(const LlmRequest& request);
  /// Runs one step of the queued requests and returns those that ended with it.
  std::vector<FinishedRequest> step();
  int64_t num_unfinished() const;

  int64_t vocab_size() const;
  int64_t max_seq_len() const;
  /// For people: "cpu (avx512, 2 threads), float16 weights".
  std::string description() const;
  /// Bytes that one decode step reads: weights, and the cache for each token of context.
  int64_t weight_bytes_per_step() const;
  int64_t kv_bytes_per_token() const;

 private:
  friend struct LlmOpener;
  struct Impl;
  explicit Llm(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace caravan
