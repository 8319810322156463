#include "quantize/abs_histogram.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace caravan {

void AbsHistogram::grow(float largest) {
  while (largest >= range_) {
    for (int64_t i = 0; i < kNumBins / 2; ++i) {
      const auto at = static_cast<size_t>(i);
      bins_[at] = bins_[2 * at] + bins_[2 * at + 1];
    }
    std::fill(bins_.begin() + kNumBins / 2, bins_.end(), 0);
    range_ *= 2;
  }
}

void AbsHistogram::add(const float* values, int64_t count, int64_t stride) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(values[i * stride]);
    // The range can double up to this without becoming infinite.
    CARAVAN_CHECK(magnitude < 0x1p126f, "activation {} during calibration, expected a finite value",
                  values[i * stride]);
    largest = std::max(largest, magnitude);
  }
  max_ = std::max(max_, largest);
  grow(largest);
  const float bins_per_unit = static_cast<float>(kNumBins) / range_;  // exact: powers of two
  for (int64_t i = 0; i < count; ++i) {
    ++bins_[static_cast<size_t>(std::fabs(values[i * stride]) * bins_per_unit)];
  }
  count_ += static_cast<uint64_t>(count);
}

}  // namespace caravan
