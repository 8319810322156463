#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

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

/// What one checksum covers of a tensor's bytes: several threads can verify one tensor, each a
/// chunk that it has in its cache.
inline constexpr uint64_t kChecksumChunk = uint64_t{4} << 20;

/// XXH3-64 of every chunk of one tensor's bytes; the last chunk is what is left. A tensor of no
/// bytes has none.
struct TensorChecksum {
  std::vector<uint64_t> chunks;
  bool is_whole = false;  // an old table: one checksum of all bytes, however many
};

/// The checksums of one tensor, fed in pieces.
class TensorHasher {
 public:
  TensorHasher() = default;
  void update(std::span<const std::byte> bytes);
  /// XXH3-64 of all bytes so far.
  uint64_t digest() const { return whole_.digest(); }
  /// The chunks of all bytes so far; only digest() may be called after it.
  TensorChecksum finish();

 private:
  Xxh3 whole_;
  std::optional<Xxh3> chunk_;
  uint64_t num_in_chunk_ = 0;
  TensorChecksum result_;
};

/// 16 lower-case hexadecimal digits, and back.
std::string checksum_text(uint64_t checksum);
std::optional<uint64_t> parse_checksum(std::string_view text);

}  // namespace caravan
