#pragma once

#include <cstdint>
#include <vector>

namespace caravan {

/// Free list of KV cache blocks. Plain host data: it never touches a device.
class BlockManager {
 public:
  explicit BlockManager(int64_t num_blocks);

  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_blocks() const { return num_blocks_; }
  /// Takes `count` blocks. Requires: count <= num_free().
  std::vector<int32_t> allocate(int64_t count);
  /// Gives blocks back and clears the list. Errors: kInternal for a block that is free already.
  void release(std::vector<int32_t>& blocks);

 private:
  int64_t num_blocks_;
  std::vector<int32_t> free_;
  std::vector<bool> is_used_;
};

}  // namespace caravan
