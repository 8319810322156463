#pragma once

#include <algorithm>
#include <cstdlib>

namespace caravan {

/// How many of `count` cases a test runs: all, or the share that CARAVAN_TEST_SCALE names
/// (sanitizers run a share of them), at least one.
inline int scaled(int count) {
  const char* scale = std::getenv("CARAVAN_TEST_SCALE");
  return scale == nullptr ? count : std::max(1, static_cast<int>(count * std::atof(scale)));
}

}  // namespace caravan
