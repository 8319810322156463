#pragma once

#include <cstdint>
#include <span>

#include "caravan/logprobs.h"

namespace caravan {

/// log(sum(exp(logits))), exponentials and their sum in float64, in the order of the ids.
/// logits: at least one value. Not finite when the logits are not (Sampler::is_finite).
double log_sum_exp(std::span<const float> logits);

/// Log probability (log softmax of `logits`, float64 rounded once to float32) and rank of one
/// token, and the num_top most likely tokens. Tokens rank by logit, equal ones by lower id:
/// top_logprobs[i] has rank i + 1. logits: [vocab_size], finite as Sampler::is_finite says; 0 <=
/// num_top <= vocab_size.
ScoredToken score_token(std::span<const float> logits, int32_t token_id, int32_t num_top);

}  // namespace caravan
