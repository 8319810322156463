#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace caravan {

/// Name of the tokens of a cache block and of all before it.
struct BlockHash {
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const BlockHash&) const = default;
};

struct HashKey {
  uint64_t low = 0;
  uint64_t high = 0;
};

/// A key that nobody outside this process knows, from the operating system's random numbers.
HashKey random_hash_key();

/// SipHash-2-4 with 128 bits of output: without the key nobody can make prompts that collide.
/// Source: Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF", and its reference code.
BlockHash siphash128(const HashKey& key, std::span<const std::byte> message);

/// Hash of a block's tokens after those that `parent` names; the parent of the first block is the
/// root of its chain.
BlockHash hash_block(const HashKey& key, const BlockHash& parent, std::span<const int32_t> tokens);

}  // namespace caravan

template <>
struct std::hash<caravan::BlockHash> {
  size_t operator()(const caravan::BlockHash& h) const noexcept { return h.low; }
};
