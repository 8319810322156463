#pragma once

#include <span>

namespace caravan {

/// The q-quantile of sorted values, 0 <= q <= 1, interpolated as np.quantile does by default (type
/// 7 of Hyndman and Fan 1996), bit for bit.
/// Errors: kInvalidArgument without values or for another q.
double sorted_quantile(std::span<const double> sorted, double q);

}  // namespace caravan
