#include "eval/statistics.h"

#include <cmath>
#include <limits>

#include "core/error.h"

namespace caravan {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double error_of(const std::vector<double>& residuals, double count) {
  const auto blocks = static_cast<double>(residuals.size());
  if (residuals.size() < 2) return kNaN;
  double squares = 0;
  for (const double r : residuals) squares += r * r;
  return std::sqrt(blocks / (blocks - 1) * squares) / count;
}

}  // namespace

void BlockMean::add(double sum, double count) {
  if (count == 0) return;
  sums_.push_back(sum);
  counts_.push_back(count);
  sum_ += sum;
  count_ += count;
}

std::vector<double> BlockMean::residuals() const {
  std::vector<double> residuals(sums_.size());
  for (size_t b = 0; b < sums_.size(); ++b) residuals[b] = sums_[b] - sum_ / count_ * counts_[b];
  return residuals;
}

Estimate BlockMean::mean() const {
  if (sums_.empty()) return {kNaN, kNaN};
  return {sum_ / count_, error_of(residuals(), count_)};
}

Estimate exp_of(const Estimate& x) {
  const double value = std::exp(x.value);
  return {value, value * x.standard_error};
}

Estimate paired_exp_difference(const BlockMean& a, const BlockMean& b) {
  CARAVAN_CHECK_CODE(a.num_blocks() == b.num_blocks() && a.count() == b.count(), kInternal,
                     "{} blocks of {} values paired with {} of {}", a.num_blocks(), a.count(),
                     b.num_blocks(), b.count());
  const double a_exp = std::exp(a.mean().value);
  const double b_exp = std::exp(b.mean().value);
  std::vector<double> residuals = a.residuals();
  const std::vector<double> b_residuals = b.residuals();
  for (size_t i = 0; i < residuals.size(); ++i) {
    residuals[i] = a_exp * residuals[i] - b_exp * b_residuals[i];
  }
  return {a_exp - b_exp, error_of(residuals, a.count())};
}

boost::json::value number_json(double value) {
  if (!std::isfinite(value)) return nullptr;
  return value;
}

boost::json::object estimate_json(const Estimate& estimate) {
  return {{"value", number_json(estimate.value)},
          {"standard_error", number_json(estimate.standard_error)}};
}

}  // namespace caravan
