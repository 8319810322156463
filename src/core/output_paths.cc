#include "core/output_paths.h"

#include <filesystem>
#include <optional>
#include <system_error>
#include <vector>

#include "core/error.h"
#include "core/file_identity.h"

namespace caravan {

namespace {

namespace fs = std::filesystem;

bool is_named(const std::string& path) { return !path.empty() && path != "-"; }

/// The directories on the way from `path` to the root, itself first, those that exist. Comparing
/// device and inode sees through every spelling and through bind mounts.
std::vector<FileIdentity> lineage(const std::string& path) {
  std::error_code error;
  fs::path at = fs::weakly_canonical(fs::absolute(path, error), error);
  if (error) at = fs::absolute(path, error).lexically_normal();
  if (!at.has_filename() && at.has_parent_path()) at = at.parent_path();
  std::vector<FileIdentity> found;
  for (;; at = at.parent_path()) {
    if (const auto identity = FileIdentity::of(at.string())) found.push_back(*identity);
    if (at == at.parent_path()) return found;
  }
}

bool holds(const std::vector<FileIdentity>& lineage, const FileIdentity& wanted) {
  for (const FileIdentity& identity : lineage) {
    if (identity.is_same_file(wanted)) return true;
  }
  return false;
}

/// The input itself and, of a directory, what is in it: a link there may lead elsewhere.
std::vector<std::string> files_of(const std::string& path) {
  constexpr int kMaxDepth = 8;  // of a data set's folders
  std::vector<std::string> files = {path};
  std::error_code error;
  if (!fs::is_directory(path, error)) return files;
  const auto options = fs::directory_options::skip_permission_denied;
  for (fs::recursive_directory_iterator it(path, options, error), end; !error && it != end;
       it.increment(error)) {
    if (it.depth() >= kMaxDepth) it.disable_recursion_pending();
    files.push_back(it->path().string());
  }
  return files;
}

}  // namespace

void check_output_directory(const std::string& flag, const std::string& output,
                            const std::vector<InputPath>& inputs) {
  std::string bare = output;
  while (bare.size() > 1 && bare.back() == '/') bare.pop_back();
  for (const std::string& place : {bare, bare + ".partial"}) {
    const auto target = FileIdentity::of(place);
    const std::vector<FileIdentity> above = lineage(place);
    for (const InputPath& input : inputs) {
      if (!is_named(input.path)) continue;
      const auto source = FileIdentity::of(input.path);
      if (!source) continue;  // whoever opens it says so
      CARAVAN_CHECK(!target || !target->is_same_file(*source),
                    "{} {}: is {} {}, which would be lost; give another {}", flag, place,
                    input.flag, input.path, flag);
      CARAVAN_CHECK(!holds(above, *source), "{} {}: lies in {} {}; give another {}", flag, place,
                    input.flag, input.path, flag);
      if (!target) continue;
      for (const std::string& file : files_of(input.path)) {
        CARAVAN_CHECK(!holds(lineage(file), *target),
                      "{} {}: holds {} of {} {}, which would be lost; give another {}", flag, place,
                      file, input.flag, input.path, flag);
      }
    }
  }
}

void check_output_file(const std::string& flag, const std::string& output,
                       const std::vector<InputPath>& inputs) {
  if (!is_named(output)) return;
  std::error_code error;
  // A device is no file that could be lost.
  if (!fs::is_regular_file(output, error)) return;
  const auto target = FileIdentity::of(output);
  if (!target) return;
  for (const InputPath& input : inputs) {
    if (!is_named(input.path)) continue;
    for (const std::string& file : files_of(input.path)) {
      const auto source = FileIdentity::of(file);
      CARAVAN_CHECK(!source || !source->is_same_file(*target),
                    "{} {}: is {} of {} {}, which would be lost; give another {}", flag, output,
                    file, input.flag, input.path, flag);
    }
  }
}

}  // namespace caravan
