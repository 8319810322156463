#include "convert/source_files.h"

#include <filesystem>
#include <set>
#include <system_error>

#include "convert/model_files.h"
#include "core/error.h"

namespace caravan {

namespace fs = std::filesystem;

SourceFiles::SourceFiles(const std::string& directory) : directory_(directory) {
  std::error_code error;  // whoever opens the directory says so
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string path = directory + "/" + it->path().filename().string();
    if (const auto identity = FileIdentity::of(path)) identities_[path] = *identity;
  }
}

void SourceFiles::check_unchanged(const std::vector<ResolvedWeight>& weights) const {
  std::set<std::string> paths;
  for (const ResolvedWeight& weight : weights) paths.insert(weight.tensor->file->path());
  std::vector<std::string> names = model_side_files();
  names.insert(names.end(),
               {"config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"});
  for (const std::string& name : names) paths.insert(directory_ + "/" + name);
  for (const std::string& path : paths) {
    const auto before = identities_.find(path);
    const auto now = FileIdentity::of(path);
    const bool is_same =
        before == identities_.end() ? !now.has_value() : now && *now == before->second;
    CARAVAN_CHECK_CODE(is_same, kIo,
                       "{}: changed while it was read; begin again when nothing writes it", path);
  }
}

}  // namespace caravan
