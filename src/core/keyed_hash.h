#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "core/siphash.h"

namespace caravan {

/// The hash of every unordered container whose keys come from a file or a request. std::hash has no
/// secret: its collisions can be made, and n keys of one hash cost n^2 steps. Results must not
/// depend on the order of iteration: it is another one in each process.
struct KeyedHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const {
    return siphash128(process_hash_key(), std::as_bytes(std::span(text))).low;
  }
  size_t operator()(uint64_t number) const {
    return siphash128(process_hash_key(), std::as_bytes(std::span(&number, 1))).low;
  }
};

template <typename Key, typename Value>
using KeyedMap = std::unordered_map<Key, Value, KeyedHash, std::equal_to<>>;
template <typename Key>
using KeyedSet = std::unordered_set<Key, KeyedHash, std::equal_to<>>;

}  // namespace caravan
