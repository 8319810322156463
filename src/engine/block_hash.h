#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "core/siphash.h"

namespace caravan {

/// Name of the tokens of a cache block and of all before it. Its key is secret: nobody can make
/// prompts that collide.
using BlockHash = Hash128;

/// Hash of a block's tokens after those that `parent` names; the parent of the first block is the
/// root of its chain.
BlockHash hash_block(const HashKey& key, const BlockHash& parent, std::span<const int32_t> tokens);

}  // namespace caravan

template <>
struct std::hash<caravan::BlockHash> {
  size_t operator()(const caravan::BlockHash& h) const noexcept { return h.low; }
};
