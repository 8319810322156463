#pragma once

#include <cstdint>
#include <vector>

namespace caravan {

/// How often each magnitude occurs: kNumBins equal bins over [0, range), range a power of two that
/// doubles (neighbouring bins are added) whenever a larger value comes. So the counts depend on the
/// values alone, not on their order, and the largest value lies in the upper half.
class AbsHistogram {
 public:
  static constexpr int64_t kNumBins = 4096;

  /// values[i * stride] for i < count. Errors: kInvalidArgument for a value that is not finite.
  void add(const float* values, int64_t count, int64_t stride = 1);

  uint64_t count() const { return count_; }
  float max() const { return max_; }  // exact; 0 when nothing but zeros was added
  /// Bin i counts magnitudes in [i, i + 1) * bin_width().
  float bin_width() const { return range_ / static_cast<float>(kNumBins); }
  const std::vector<uint64_t>& bins() const { return bins_; }

 private:
  void grow(float largest);

  std::vector<uint64_t> bins_ = std::vector<uint64_t>(kNumBins);
  uint64_t count_ = 0;
  float max_ = 0;
  float range_ = 0x1p-40f;
};

}  // namespace caravan
