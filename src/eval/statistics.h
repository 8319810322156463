#pragma once

#include <vector>

#include "core/json.h"

namespace caravan {

/// A figure and its standard error; NaN where too little was measured for one.
struct Estimate {
  double value = 0;
  double standard_error = 0;
};

/// sum / count with a standard error over blocks that may be unequal and need not be independent
/// inside: with r_b = sum_b - mean * count_b over B blocks,
/// sqrt(B / (B - 1) * sum(r_b^2)) / sum(count_b).
/// Source: Cochran, Sampling Techniques, 3rd ed., section 2.11 (the ratio estimate).
class BlockMean {
 public:
  /// One block: the sum of `count` values. Blocks without values do not count.
  void add(double sum, double count);

  double sum() const { return sum_; }
  double count() const { return count_; }
  size_t num_blocks() const { return sums_.size(); }
  /// NaN without values; the error is NaN below two blocks.
  Estimate mean() const;
  /// sum_b - mean * count_b of each block.
  std::vector<double> residuals() const;

 private:
  std::vector<double> sums_;
  std::vector<double> counts_;
  double sum_ = 0;
  double count_ = 0;
};

/// exp(x) by the delta method: the error is exp(x) times x's.
Estimate exp_of(const Estimate& x);

/// exp(a's mean) - exp(b's mean) where both were measured on the same blocks: the error is that of
/// the difference, so what moves both does not count (delta method).
/// Requires: as many blocks of the same counts in both.
Estimate paired_exp_difference(const BlockMean& a, const BlockMean& b);

/// JSON has no NaN and no infinity: null in their place.
boost::json::value number_json(double value);
/// {"value": v, "standard_error": e}
boost::json::object estimate_json(const Estimate& estimate);

}  // namespace caravan
