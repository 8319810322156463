#pragma once

#include <string>
#include <vector>

namespace caravan {

/// A file or directory that a command reads. "" and "-" name none.
struct InputPath {
  std::string flag;  // "--model", for the message
  std::string path;
};

/// Refuses an output directory that is one of the inputs, lies in one or holds one, however they
/// are spelled: symbolic links, "..", bind mounts and links inside an input directory are followed.
/// `<output>.partial` likewise. Errors: kInvalidArgument naming both.
void check_output_directory(const std::string& flag, const std::string& output,
                            const std::vector<InputPath>& inputs);

/// Refuses an output file that is one of the inputs or a file in an input directory.
/// Errors: kInvalidArgument naming both.
void check_output_file(const std::string& flag, const std::string& output,
                       const std::vector<InputPath>& inputs);

}  // namespace caravan
