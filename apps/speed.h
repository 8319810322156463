#pragma once

#include <vector>

#include "apps/model_flags.h"
#include "caravan/llm.h"

namespace caravan {

/// The line that ends each generation, on stderr: tokens, tok/s, ms/token, GB/s and the share of
/// the read bandwidth, which is measured for it when the weights are too large for a cache to hold.
void report_speed(const Llm& llm, const std::vector<Completion>& completions,
                  const ModelFlags& flags);

}  // namespace caravan
