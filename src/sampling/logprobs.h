#pragma once

#include <cstdint>
#include <span>

#include "caravan/logprobs.h"

namespace caravan {

/// Log probability and rank of one token, and the num_top most likely tokens. Log softmax of
/// `logits`: exponentials and their sum in float64, in the order of the ids, rounded once to
/// float32. Tokens rank by logit, equal ones by lower id: top_logprobs[i] has rank i + 1.
/// logits: [vocab_size], is_finite(); 0 <= num_top <= vocab_size. Errors: kInternal.
ScoredToken score_token(std::span<const float> logits, int32_t token_id, int32_t num_top);

}  // namespace caravan
