#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace caravan {

/// XXH3-64 of the bytes, seed 0. Source: github.com/Cyan4973/xxHash, doc/xxhash_spec.md.
uint64_t xxh3(std::span<const std::byte> bytes);

/// The same, fed in pieces.
class Xxh3 {
 public:
  Xxh3();
  Xxh3(const Xxh3&) = delete;
  Xxh3& operator=(const Xxh3&) = delete;
  ~Xxh3();
  void update(std::span<const std::byte> bytes);
  uint64_t digest() const;

 private:
  struct State;
  State* state_;
};

/// 16 lower-case hexadecimal digits, and back.
std::string checksum_text(uint64_t checksum);
std::optional<uint64_t> parse_checksum(std::string_view text);

}  // namespace caravan
