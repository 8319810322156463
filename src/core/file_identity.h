#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>

namespace caravan {

/// Which file a path named, and the state of its contents, at one moment.
struct FileIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t num_bytes = 0;
  int64_t modified_ns = 0;
  int64_t changed_ns = 0;  // ctime: a program that sets the other time back moves this one

  static FileIdentity of(const struct stat& info);
  /// Follows symbolic links. nullopt: no such file, or it cannot be looked at.
  static std::optional<FileIdentity> of(const std::string& path);

  bool is_same_file(const FileIdentity& other) const {
    return device == other.device && inode == other.inode;
  }
  bool operator==(const FileIdentity&) const = default;
};

}  // namespace caravan
