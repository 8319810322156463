#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace caravan {

enum class Compression : uint8_t { kNone, kSnappy, kGzip, kZstd };

/// Fills `out` with what `in` decompresses to, which must be exactly out.size() bytes; writes
/// nowhere else. kGzip takes several members in a row, and zlib streams.
/// Errors: kCorrupt naming `where`.
void decompress(Compression compression, std::span<const std::byte> in, std::span<std::byte> out,
                const std::string& where);

/// Most bytes that `num_bytes` of `compression` can stand for: what a claimed size is checked
/// against before memory is taken for it.
uint64_t max_decompressed_bytes(Compression compression, uint64_t num_bytes);

}  // namespace caravan
