#include "apps/completion_json.h"

#include <algorithm>

#include "tokenizer/utf8.h"

namespace caravan {

namespace {

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kError:
      return "error";
    default:
      return "length";
  }
}

boost::json::object logprob_json(const Llm& llm, const TokenLogprob& token) {
  // JSON has no infinity: the least number stands for a probability of zero, as in vLLM's answers.
  constexpr float kLeast = -9999.0f;
  boost::json::object row{{"id", token.token_id}};
  if (llm.has_tokenizer()) {
    std::string text;  // a token may be part of a character
    append_sanitized_utf8(llm.decode({token.token_id}), true, text);
    row["token"] = std::move(text);
  }
  row["logprob"] = std::max(token.logprob, kLeast);
  row["rank"] = token.rank;
  return row;
}

boost::json::array logprobs_json(const Llm& llm, const std::vector<ScoredToken>& tokens) {
  boost::json::array rows;
  for (const ScoredToken& token : tokens) {
    if (!token.logprob) continue;
    boost::json::object row = logprob_json(llm, *token.logprob);
    boost::json::array top;
    for (const TokenLogprob& other : token.top_logprobs) top.push_back(logprob_json(llm, other));
    row["top"] = std::move(top);
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

boost::json::object completion_json(const Llm& llm, const Completion& completion) {
  const RequestTimings& t = completion.timings;
  const double seconds = t.decode_ms / 1000;
  boost::json::object timings{
      {"prompt_n", t.num_prompt_tokens},
      {"queue_ms", t.queue_ms},
      {"prompt_ms", t.prefill_ms},
      {"predicted_n", t.num_output_tokens},
      {"predicted_ms", t.decode_ms},
      {"predicted_per_second",
       seconds > 0 ? static_cast<double>(t.num_output_tokens - 1) / seconds : 0.0}};
  boost::json::object row{{"prompt_ids", boost::json::value_from(completion.prompt_ids)},
                          {"output_ids", boost::json::value_from(completion.output_ids)}};
  if (llm.has_tokenizer()) row["text"] = completion.text;
  row["finish_reason"] = finish_reason_name(completion.finish_reason);
  row["timings"] = std::move(timings);
  if (!completion.output_logprobs.empty()) {
    row["logprobs"] = logprobs_json(llm, completion.output_logprobs);
  }
  if (!completion.prompt_logprobs.empty()) {
    row["prompt_logprobs"] = logprobs_json(llm, completion.prompt_logprobs);
  }
  return row;
}

}  // namespace caravan
