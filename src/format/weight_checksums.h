#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "format/checksum.h"

namespace caravan {

/// What the bytes of one weight file were when it was written.
struct FileChecksums {
  /// XXH3-64 of everything before the first tensor; unset in tables of older versions.
  std::optional<uint64_t> header;
  std::map<std::string, TensorChecksum> tensors;  // every tensor but the filler between them
};

/// "caravan.checksums": {"chunk_bytes": 4194304, "ranks": [{"header": "<16 digits>", "tensors":
/// {"<name>": "<16 digits a chunk>"}}]}.
boost::json::object checksums_to_json(const std::vector<FileChecksums>& ranks);
/// Errors: kCorrupt naming the field; kUnsupported for chunks of another size.
std::vector<FileChecksums> parse_checksums(const boost::json::object& object,
                                           const std::string& where, int num_ranks);

/// config.json's checksum of itself: XXH3-64 of the file's text in which the digits of
/// "caravan.config_xxh3" are zeros.
struct ConfigChecksum {
  uint64_t stored = 0;
  uint64_t computed = 0;
};
inline constexpr std::string_view kNoConfigChecksum = "0000000000000000";
/// `text` with its one "config_xxh3": "0000000000000000" filled in. Errors: kInternal without one.
std::string with_config_checksum(std::string text);
/// `stored`: the value of the field in `text`.
ConfigChecksum config_checksum_of(std::string_view text, std::string_view stored,
                                  const std::string& where);

}  // namespace caravan
