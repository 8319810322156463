#include "engine/block_manager.h"

#include <algorithm>

#include "core/error.h"

namespace caravan {

BlockManager::BlockManager(int64_t num_blocks, int64_t block_size, const HashKey& key)
    : block_size_(block_size),
      key_(key),
      blocks_(static_cast<size_t>(num_blocks)),
      tokens_(static_cast<size_t>(num_blocks * block_size)) {
  empty_.reserve(static_cast<size_t>(num_blocks));
  for (int64_t b = num_blocks - 1; b >= 0; --b) empty_.push_back(static_cast<int32_t>(b));
  by_hash_.reserve(static_cast<size_t>(num_blocks));
}

std::span<int32_t> BlockManager::tokens_of(int32_t block) {
  return std::span(tokens_).subspan(static_cast<size_t>(block * block_size_),
                                    static_cast<size_t>(block_size_));
}

std::span<const int32_t> BlockManager::tokens_of(int32_t block) const {
  return std::span(tokens_).subspan(static_cast<size_t>(block * block_size_),
                                    static_cast<size_t>(block_size_));
}

void BlockManager::allocate(int64_t count, std::vector<int32_t>& blocks) {
  CARAVAN_CHECK_CODE(count <= num_free(), kInternal, "{} cache blocks wanted, {} are free", count,
                     num_free());
  for (int64_t i = 0; i < count; ++i) {
    if (empty_.empty()) forget(oldest_);
    const int32_t block = empty_.back();
    empty_.pop_back();
    at(block).ref_count = 1;
    blocks.push_back(block);
  }
}

void BlockManager::share(int32_t block) {
  Block& b = at(block);
  CARAVAN_CHECK_CODE(b.is_cached, kInternal, "cache block {} holds no known prefix", block);
  if (b.ref_count++ == 0) remove_unused(block);
}

void BlockManager::release(std::vector<int32_t>& blocks) {
  for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) {
    Block& b = at(*it);
    CARAVAN_CHECK_CODE(b.ref_count > 0, kInternal, "cache block {} is released twice", *it);
    if (--b.ref_count > 0) continue;
    if (b.is_cached) {
      add_unused(*it);
    } else {
      empty_.push_back(*it);
    }
  }
  blocks.clear();
}

std::optional<int32_t> BlockManager::find(const BlockHash& hash, const BlockHash& parent,
                                          std::span<const int32_t> tokens) const {
  const auto it = by_hash_.find(hash);
  if (it == by_hash_.end() || !(at(it->second).parent == parent)) return std::nullopt;
  const std::span<const int32_t> held = tokens_of(it->second);
  if (!std::equal(held.begin(), held.end(), tokens.begin(), tokens.end())) return std::nullopt;
  return it->second;
}

void BlockManager::remember(int32_t block, const BlockHash& hash, const BlockHash& parent,
                            std::span<const int32_t> tokens) {
  Block& b = at(block);
  CARAVAN_CHECK_CODE(
      b.ref_count > 0 && !b.is_cached && static_cast<int64_t>(tokens.size()) == block_size_,
      kInternal, "cache block {} is not one that can be remembered", block);
  if (!by_hash_.emplace(hash, block).second) return;
  b.is_cached = true;
  b.hash = hash;
  b.parent = parent;
  std::copy(tokens.begin(), tokens.end(), tokens_of(block).begin());
}

void BlockManager::forget(int32_t block) {
  Block& b = at(block);
  if (!b.is_cached) return;
  by_hash_.erase(b.hash);
  b.is_cached = false;
  if (b.ref_count > 0) return;
  remove_unused(block);
  empty_.push_back(block);
}

void BlockManager::add_unused(int32_t block) {
  Block& b = at(block);
  b.older = newest_;
  b.newer = kNone;
  (newest_ == kNone ? oldest_ : at(newest_).newer) = block;
  newest_ = block;
  ++num_unused_;
}

void BlockManager::remove_unused(int32_t block) {
  const Block& b = at(block);
  (b.older == kNone ? oldest_ : at(b.older).newer) = b.newer;
  (b.newer == kNone ? newest_ : at(b.newer).older) = b.older;
  --num_unused_;
}

}  // namespace caravan
