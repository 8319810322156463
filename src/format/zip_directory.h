#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace caravan {

/// Where the bytes of one stored zip entry lie.
struct ZipEntry {
  uint64_t offset = 0;  // from the start of the file
  uint64_t num_bytes = 0;
};

/// Entries of a zip archive by name, zip64 included; every entry lies before the central directory.
/// Checksums are not verified: a checkpoint is read once, by mapping, and 10 GB are not read twice.
/// Errors: kCorrupt; kUnsupported for compressed, encrypted or multi-disk archives.
/// Source: PKWARE APPNOTE 6.3.9, sections 4.3.7 to 4.3.16 and 4.5.3.
std::map<std::string, ZipEntry> parse_zip_directory(std::span<const std::byte> bytes,
                                                    const std::string& where);

}  // namespace caravan
