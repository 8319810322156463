#include "engine/block_manager.h"

#include "core/error.h"

namespace caravan {

BlockManager::BlockManager(int64_t num_blocks)
    : num_blocks_(num_blocks), is_used_(static_cast<size_t>(num_blocks), false) {
  free_.reserve(static_cast<size_t>(num_blocks));
  for (int64_t b = num_blocks - 1; b >= 0; --b) free_.push_back(static_cast<int32_t>(b));
}

std::vector<int32_t> BlockManager::allocate(int64_t count) {
  CARAVAN_CHECK_CODE(count <= num_free(), kInternal, "{} cache blocks wanted, {} are free", count,
                     num_free());
  std::vector<int32_t> blocks;
  blocks.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    blocks.push_back(free_.back());
    is_used_[static_cast<size_t>(free_.back())] = true;
    free_.pop_back();
  }
  return blocks;
}

void BlockManager::release(std::vector<int32_t>& blocks) {
  for (const int32_t block : blocks) {
    CARAVAN_CHECK_CODE(is_used_[static_cast<size_t>(block)], kInternal,
                       "cache block {} is released twice", block);
    is_used_[static_cast<size_t>(block)] = false;
    free_.push_back(block);
  }
  blocks.clear();
}

}  // namespace caravan
