#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/block_hash.h"

namespace caravan {

/// Who uses which KV cache block, and which blocks hold a prefix that may come again. A block is
/// used by any number of sequences; without any it is free, but keeps what it holds until it is
/// given out again, those longest unused first. Plain host data: it never touches a device.
class BlockManager {
 public:
  BlockManager(int64_t num_blocks, int64_t block_size, const HashKey& key = random_hash_key());

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t block_size() const { return block_size_; }
  /// Blocks that allocate() can give.
  int64_t num_free() const { return static_cast<int64_t>(empty_.size()) + num_unused_; }
  /// Blocks that find() can find, used or free.
  int64_t num_cached() const { return static_cast<int64_t>(by_hash_.size()); }
  int32_t ref_count(int32_t block) const { return at(block).ref_count; }

  /// Appends `count` blocks with one user. Requires: count <= num_free().
  void allocate(int64_t count, std::vector<int32_t>& blocks);
  /// One user more of a block of find().
  void share(int32_t block);
  /// One user less of each block, the last block first, and clears the list.
  /// Errors: kInternal for a block that is free already.
  void release(std::vector<int32_t>& blocks);

  /// What names the beginning of a chain of blocks. Chains of different scopes have no block in
  /// common: a scope is a secret of those who share it. "" is what everybody shares.
  BlockHash root(std::string_view scope) const {
    return scope.empty() ? BlockHash{} : siphash128(key_, std::as_bytes(std::span(scope)));
  }
  BlockHash hash(const BlockHash& parent, std::span<const int32_t> tokens) const {
    return hash_block(key_, parent, tokens);
  }
  /// A block that holds these tokens after those that `parent` names. Tokens and parent are
  /// compared, so an equal hash alone finds nothing.
  std::optional<int32_t> find(const BlockHash& hash, const BlockHash& parent,
                              std::span<const int32_t> tokens) const;
  /// `block`, which is in use, holds these tokens from the next step on. Nothing happens when
  /// another block with them is known.
  void remember(int32_t block, const BlockHash& hash, const BlockHash& parent,
                std::span<const int32_t> tokens);
  /// find() does not find the block any more.
  void forget(int32_t block);

 private:
  static constexpr int32_t kNone = -1;
  struct Block {
    int32_t ref_count = 0;
    bool is_cached = false;
    BlockHash hash;
    BlockHash parent;
    int32_t older = kNone;  // neighbours among the unused ones
    int32_t newer = kNone;
  };
  const Block& at(int32_t block) const { return blocks_[static_cast<size_t>(block)]; }
  Block& at(int32_t block) { return blocks_[static_cast<size_t>(block)]; }
  std::span<int32_t> tokens_of(int32_t block);
  std::span<const int32_t> tokens_of(int32_t block) const;
  void add_unused(int32_t block);
  void remove_unused(int32_t block);

  int64_t block_size_;
  HashKey key_;
  std::vector<Block> blocks_;
  std::vector<int32_t> tokens_;  // [num_blocks][block_size], of cached blocks
  std::vector<int32_t> empty_;   // free and not cached
  // Free and cached, a list from the one that was used longest ago to the one used last.
  int32_t oldest_ = kNone;
  int32_t newest_ = kNone;
  int64_t num_unused_ = 0;
  std::unordered_map<BlockHash, int32_t> by_hash_;
};

}  // namespace caravan
