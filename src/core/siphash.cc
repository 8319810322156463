#include "core/siphash.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace caravan {

HashKey random_hash_key() {
  HashKey key;
  ssize_t n = 0;
  do {
    n = ::getrandom(&key, sizeof(key), 0);  // up to 256 bytes come whole
  } while (n < 0 && errno == EINTR);
  CARAVAN_CHECK_CODE(n == sizeof(key), kIo, "getrandom: {}", std::strerror(errno));
  return key;
}

const HashKey& process_hash_key() {
  static const HashKey key = random_hash_key();
  return key;
}

Hash128 SipHash::finish(std::span<const std::byte> bytes, size_t num_before) {
  uint64_t word = 0;
  const size_t length = num_before + bytes.size();
  for (; bytes.size() >= sizeof(word); bytes = bytes.subspan(sizeof(word))) {
    std::memcpy(&word, bytes.data(), sizeof(word));
    add(word);
  }
  word = static_cast<uint64_t>(length) << 56;
  for (size_t i = 0; i < bytes.size(); ++i) word |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  add(word);
  Hash128 hash;
  v2_ ^= 0xee;
  rounds(4);
  hash.low = v0_ ^ v1_ ^ v2_ ^ v3_;
  v1_ ^= 0xdd;
  rounds(4);
  hash.high = v0_ ^ v1_ ^ v2_ ^ v3_;
  return hash;
}

Hash128 siphash128(const HashKey& key, std::span<const std::byte> message) {
  return SipHash(key).finish(message);
}

}  // namespace caravan
