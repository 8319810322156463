#pragma once

#include "caravan/llm.h"
#include "core/json.h"

namespace caravan {

/// One completion as `run --json` prints it. "text" and the texts of tokens are there when the
/// model has a tokenizer, "logprobs" and "prompt_logprobs" when they were asked for.
boost::json::object completion_json(const Llm& llm, const Completion& completion);

}  // namespace caravan
