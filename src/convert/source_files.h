#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/file_identity.h"
#include "format/weight_spec.h"

namespace caravan {

/// The files of a model directory as they were before it was read, so that one that changes while
/// it is read cannot end up half old, half new in an output.
class SourceFiles {
 public:
  explicit SourceFiles(const std::string& directory);

  /// config.json, the side files, the index and these weight files are what they were.
  /// Errors: kIo naming the one that changed.
  void check_unchanged(const std::vector<ResolvedWeight>& weights) const;

 private:
  std::string directory_;
  std::map<std::string, FileIdentity> identities_;  // by path
};

}  // namespace caravan
