#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/json.h"
#include "eval/statistics.h"

namespace caravan {

/// What the model and a reference think of one token of a text, in nats.
struct TokenComparison {
  double log_prob = 0;  // the model's, of the token that follows
  double reference_log_prob = 0;
  double kl = 0;  // KL(reference || model) of the next-token distributions
  bool has_same_top = false;
};

/// reference, logits: [vocab_size] that predict `target`, which is in [0, vocab_size).
TokenComparison compare_token(std::span<const float> reference, std::span<const float> logits,
                              int32_t target);

/// How far a model is from a reference over many tokens. Standard errors are over blocks
/// (BlockMean), differences are paired.
struct ComparisonReport {
  int64_t num_tokens = 0;
  Estimate kl_mean;  // nats
  double kl_median = 0;
  double kl_p99 = 0;
  double kl_max = 0;
  Estimate top1_agreement;   // share of tokens before which both have the same most likely token
  Estimate log_prob_change;  // mean |log p - log p_reference| of the token that follows
  Estimate reference_nll;    // mean
  Estimate reference_perplexity;
  Estimate perplexity_change;  // perplexity - reference_perplexity
  Estimate perplexity_ratio;   // perplexity / reference_perplexity
};

/// Collects comparisons, block after block.
class ComparisonMeter {
 public:
  void add(const TokenComparison& token);
  void end_block();
  /// Of all blocks that ended. NaN among the figures where a logit was NaN.
  ComparisonReport report() const;

 private:
  struct Block {
    double kl = 0;
    double same_top = 0;
    double change = 0;
    double nll = 0;
    double reference_nll = 0;
    double count = 0;
  };
  Block block_;
  BlockMean kl_;
  BlockMean same_top_;
  BlockMean change_;
  BlockMean nll_;
  BlockMean reference_nll_;
  BlockMean nll_difference_;
  std::vector<double> kls_;
};

boost::json::object comparison_json(const ComparisonReport& report);

}  // namespace caravan
