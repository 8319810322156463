#include "engine/block_hash.h"

namespace caravan {

BlockHash hash_block(const HashKey& key, const BlockHash& parent, std::span<const int32_t> tokens) {
  SipHash hash(key);
  hash.add(parent.low);
  hash.add(parent.high);
  return hash.finish(std::as_bytes(tokens), sizeof(parent));
}

}  // namespace caravan
