#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace caravan {

struct HashKey {
  uint64_t low = 0;
  uint64_t high = 0;
};

/// A key that nobody outside this process knows, from the operating system's random numbers.
HashKey random_hash_key();

/// The same key for the life of the process: the one of KeyedHash. Nothing that leaves the process
/// may depend on it.
const HashKey& process_hash_key();

struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const Hash128&) const = default;
};

/// SipHash-2-4 with 128 bits of output, word by word: without the key nobody can make messages that
/// collide. Source: Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF", and its
/// reference code.
class SipHash {
 public:
  explicit SipHash(const HashKey& key)
      : v0_(key.low ^ 0x736f6d6570736575u),
        v1_(key.high ^ 0x646f72616e646f6du ^ 0xee),
        v2_(key.low ^ 0x6c7967656e657261u),
        v3_(key.high ^ 0x7465646279746573u) {}

  void add(uint64_t word) {
    v3_ ^= word;
    rounds(2);
    v0_ ^= word;
  }
  /// The last bytes. `num_before` bytes came through add(): a multiple of 8.
  Hash128 finish(std::span<const std::byte> bytes, size_t num_before = 0);

 private:
  void rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0_ += v1_;
      v1_ = std::rotl(v1_, 13) ^ v0_;
      v0_ = std::rotl(v0_, 32);
      v2_ += v3_;
      v3_ = std::rotl(v3_, 16) ^ v2_;
      v0_ += v3_;
      v3_ = std::rotl(v3_, 21) ^ v0_;
      v2_ += v1_;
      v1_ = std::rotl(v1_, 17) ^ v2_;
      v2_ = std::rotl(v2_, 32);
    }
  }

  uint64_t v0_, v1_, v2_, v3_;
};

Hash128 siphash128(const HashKey& key, std::span<const std::byte> message);

}  // namespace caravan
