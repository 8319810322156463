#include "eval/quantile.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace caravan {

double sorted_quantile(std::span<const double> sorted, double q) {
  CARAVAN_CHECK(!sorted.empty(), "sorted_quantile: there are no values");
  CARAVAN_CHECK(q >= 0 && q <= 1, "sorted_quantile: q is {}, expected 0 to 1", q);
  const double place = static_cast<double>(sorted.size() - 1) * q;
  const double below = std::floor(place);
  const auto index = static_cast<size_t>(below);
  const double a = sorted[index];
  const double b = sorted[std::min(index + 1, sorted.size() - 1)];
  const double weight = place - below;
  if (weight == 0 || a == b) return a;  // infinity times zero would be NaN
  // NumPy's _lerp: from the nearer end, so that it is monotonic in the weight.
  return weight >= 0.5 ? b - (b - a) * (1 - weight) : a + (b - a) * weight;
}

}  // namespace caravan
