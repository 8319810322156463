#pragma once

#include <cstdint>

namespace caravan {

/// Finalizer of SplitMix64: every input bit reaches every output bit. Source: Steele et al. 2014.
constexpr uint64_t split_mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

}  // namespace caravan
