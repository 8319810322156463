#include "engine/llm_engine.h"

#include <algorithm>

#include "core/error.h"

namespace caravan {

LlmEngine::LlmEngine(const ModelDir& dir, std::unique_ptr<Backend> backend,
                     const LlmEngineOptions& options)
    : eos_token_ids_(options.eos_token_ids),
      runner_(dir, std::move(backend), options.runner),
      scheduler_({.max_batch_size = options.runner.max_batch_size,
                  .max_num_batched_tokens = options.runner.max_num_batched_tokens,
                  .block_size = runner_.cache().block_size(),
                  .num_blocks = runner_.cache().num_blocks()}),
      batch_(runner_.cache().block_size()) {}

void LlmEngine::check_request(std::span<const int32_t> prompt, const SamplingParams& params) const {
  validate(params);
  const ModelConfig& config = runner_.model().config();
  const auto num_prompt_tokens = static_cast<int64_t>(prompt.size());
  CARAVAN_CHECK(num_prompt_tokens > 0, "the prompt is empty");
  CARAVAN_CHECK(num_prompt_tokens <= runner_.max_seq_len() &&
                    params.max_output_len <= runner_.max_seq_len() - num_prompt_tokens,
                "a prompt of {} tokens with {} of output makes {}, at most {} fit: shorten one, or "
                "cut the prompt with --truncate head|tail",
                num_prompt_tokens, params.max_output_len, num_prompt_tokens + params.max_output_len,
                runner_.max_seq_len());
  for (const int32_t id : prompt) {
    CARAVAN_CHECK(id >= 0 && id < config.vocab_size, "token id {} is outside the vocabulary of {}",
                  id, config.vocab_size);
  }
}

int64_t LlmEngine::add_request(std::span<const int32_t> prompt, const SamplingParams& params) {
  check_request(prompt, params);
  const auto num_prompt_tokens = static_cast<int64_t>(prompt.size());
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->params = params;
  sequence->token_ids.reserve(static_cast<size_t>(num_prompt_tokens + params.max_output_len));
  sequence->token_ids.assign(prompt.begin(), prompt.end());
  sequence->num_prompt_tokens = num_prompt_tokens;
  const int64_t id = sequence->id;
  scheduler_.add(std::move(sequence));
  return id;
}

std::vector<std::unique_ptr<Sequence>> LlmEngine::step(const OnToken& on_token) {
  const std::vector<Sequence*> yields = scheduler_.schedule(batch_);
  const std::span<const float> logits = runner_.run(batch_);
  const auto vocab_size = static_cast<size_t>(runner_.model().config().vocab_size);
  std::vector<std::unique_ptr<Sequence>> finished;
  for (size_t i = 0; i < yields.size(); ++i) {
    Sequence& sequence = *yields[i];
    const int32_t token = sampler_.sample(logits.subspan(i * vocab_size, vocab_size),
                                          sequence.params, sequence.token_ids);
    sequence.token_ids.push_back(token);
    sequence.last_token = Sequence::Clock::now();
    if (sequence.num_output_tokens() == 1) sequence.first_token = sequence.last_token;
    const bool is_eos =
        !sequence.params.ignore_eos &&
        std::find(eos_token_ids_.begin(), eos_token_ids_.end(), token) != eos_token_ids_.end();
    const bool is_stopped = on_token && on_token(sequence, token);
    if (is_eos || is_stopped) {
      sequence.finish_reason = FinishReason::kStop;
    } else if (sequence.num_output_tokens() >= sequence.params.max_output_len) {
      sequence.finish_reason = FinishReason::kLength;
    } else {
      continue;
    }
    finished.push_back(scheduler_.remove(&sequence));
  }
  return finished;
}

}  // namespace caravan
