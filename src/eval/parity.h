#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"
#include "engine/model_runner.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

/// How an engine compares with the oracle (the reference kernels on the source's weights in
/// float32) on fixed prompts. Relative errors are ||engine - oracle|| / ||oracle|| over all tokens
/// of a prompt, the largest of all prompts.
struct ParityReport {
  std::string oracle;  // Backend::description()
  std::string engine;
  int64_t num_prompts = 0;
  int64_t num_positions = 0;  // whose logits were compared: at most 8 a prompt
  std::vector<std::pair<std::string, double>> layer_errors;  // "embedding", "h.0", ..., "ln_f"
  double logits_error = 0;
  double kl_mean = 0;  // KL(oracle || engine) of the next-token distributions, in nats
  double kl_max = 0;
  double top1_agreement = 0;      // share of positions with the same most likely token
  int64_t greedy_len = 0;         // tokens that both generated from each prompt
  int64_t greedy_prefix_min = 0;  // tokens until the first difference, the shortest of all prompts
  double greedy_prefix_mean = 0;
};

/// What a certificate allows. layer_error bounds every layer_errors entry and logits_error.
struct ParityTolerances {
  double layer_error = 0;
  double kl_mean = 0;
  double kl_max = 0;
  double top1_agreement = 0;
};

/// Tolerances of an engine whose coarser of weight and KV cache dtype is `dtype`
/// (docs/accuracy.md); activation_dtype: Backend::activation_dtype, what is rounded on the way.
ParityTolerances parity_tolerances(DType dtype, DType activation_dtype = DType::kF32);

/// The fixed prompts: lengths 1, 7, 33 and 64 (cut to max_len) of ids that depend on vocab_size
/// alone, then, with a tokenizer, fixed sentences.
std::vector<std::vector<int32_t>> parity_prompts(int64_t vocab_size, int64_t max_len,
                                                 const Tokenizer* tokenizer);

/// Runs the prompts through both. Requires: both runners take sequences of the longest prompt plus
/// greedy_len tokens in one step each and at least 1 row of logits.
ParityReport measure_parity(ModelRunner& oracle, ModelRunner& engine,
                            const std::vector<std::vector<int32_t>>& prompts, int64_t greedy_len);

/// The certificate as `build --verify` stores it.
boost::json::object parity_json(const ParityReport& report, const ParityTolerances& tolerances);

/// Errors: kUnsupported naming the first figure beyond its tolerance; top1_agreement's is a rate,
/// which the positions of the report sample: three standard deviations are added.
void check_parity(const ParityReport& report, const ParityTolerances& tolerances);

}  // namespace caravan
