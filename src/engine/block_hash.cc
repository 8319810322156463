#include "engine/block_hash.h"

#include <bit>
#include <cstring>
#include <random>

namespace caravan {

namespace {

struct SipState {
  explicit SipState(const HashKey& key)
      : v0(key.low ^ 0x736f6d6570736575u),
        v1(key.high ^ 0x646f72616e646f6du ^ 0xee),
        v2(key.low ^ 0x6c7967656e657261u),
        v3(key.high ^ 0x7465646279746573u) {}

  void rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0 += v1;
      v1 = std::rotl(v1, 13) ^ v0;
      v0 = std::rotl(v0, 32);
      v2 += v3;
      v3 = std::rotl(v3, 16) ^ v2;
      v0 += v3;
      v3 = std::rotl(v3, 21) ^ v0;
      v2 += v1;
      v1 = std::rotl(v1, 17) ^ v2;
      v2 = std::rotl(v2, 32);
    }
  }
  void add(uint64_t word) {
    v3 ^= word;
    rounds(2);
    v0 ^= word;
  }
  BlockHash finish() {
    BlockHash hash;
    v2 ^= 0xee;
    rounds(4);
    hash.low = v0 ^ v1 ^ v2 ^ v3;
    v1 ^= 0xdd;
    rounds(4);
    hash.high = v0 ^ v1 ^ v2 ^ v3;
    return hash;
  }

  uint64_t v0, v1, v2, v3;
};

/// The whole words of `bytes`; returns what is left of it.
std::span<const std::byte> add_words(SipState& state, std::span<const std::byte> bytes) {
  while (bytes.size() >= 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), 8);
    state.add(word);
    bytes = bytes.subspan(8);
  }
  return bytes;
}

void add_tail(SipState& state, std::span<const std::byte> tail, size_t length) {
  uint64_t word = static_cast<uint64_t>(length) << 56;
  for (size_t i = 0; i < tail.size(); ++i) {
    word |= static_cast<uint64_t>(tail[i]) << (8 * i);
  }
  state.add(word);
}

}  // namespace

HashKey random_hash_key() {
  std::random_device device;
  const auto draw = [&] { return static_cast<uint64_t>(device()) << 32 | device(); };
  return {.low = draw(), .high = draw()};
}

BlockHash siphash128(const HashKey& key, std::span<const std::byte> message) {
  SipState state(key);
  add_tail(state, add_words(state, message), message.size());
  return state.finish();
}

BlockHash hash_block(const HashKey& key, const BlockHash& parent, std::span<const int32_t> tokens) {
  SipState state(key);
  state.add(parent.low);
  state.add(parent.high);
  const std::span<const std::byte> bytes = std::as_bytes(tokens);
  add_tail(state, add_words(state, bytes), bytes.size() + 16);
  return state.finish();
}

}  // namespace caravan
