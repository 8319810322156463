#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "core/atomic_file.h"
#include "core/unfinished_file.h"

namespace caravan {

/// How the directories that a program writes are told from all others: by what files of theirs say
/// and by the names of all.
struct DirectoryKind {
  /// The first max_bytes of a regular file in the directory, "" when there is none.
  using ReadHead = std::function<std::string(const char* name, size_t max_bytes)>;

  const char* mark;  // what is_marked looks for, for messages: "config.json that caravan wrote"
  bool (*is_marked)(const ReadHead& read);
  bool (*is_known_name)(std::string_view name);
};

/// A directory that appears under its final name only when it is whole. Files are written under
/// work_path(), a sibling of the final path, and commit() syncs them and renames it. The work path
/// is "<path>.partial", stable between runs, so that a job that was killed can look at what is
/// there and go on (its lock keeps a second process out). discard() removes it; destruction without
/// commit() keeps it.
///
/// Nothing is deleted or written through that is not ours. An existing `path` is replaced only with
/// `replace`, and when it is a real directory that carries the kind's marker and nothing but known
/// regular files. A work directory that is there already is used only when it is a real directory
/// of this user, with our marker or empty, and nothing but known regular files without a second
/// name. Both are looked at and emptied through descriptors, never by path. Errors: kIo,
/// kPermission, kNotFound; kInvalidArgument when something is in the way.
class AtomicDirectory {
 public:
  AtomicDirectory(const std::string& path, bool replace, const DirectoryKind& kind);
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;
  ~AtomicDirectory();

  /// The checks of the constructor on `path`, for before a long job; makes nothing.
  static void check(const std::string& path, bool replace, const DirectoryKind& kind);

  const std::string& work_path() const { return work_path_; }
  FileAt file(const std::string& name) const;
  /// Removes the files that an earlier run left, but for those named.
  void clear(const std::set<std::string>& kept = {});
  /// Refuses to begin what cannot end: num_bytes in all will lie here, with what is here already.
  /// Errors: kIo.
  void check_room(uint64_t num_bytes) const;
  void commit();
  void discard();

 private:
  void open_work_directory();
  void take_place();

  DirectoryKind kind_;
  bool replace_;
  std::string path_;
  std::string work_path_;
  std::string name_;  // of both in their parent
  std::string work_name_;
  int parent_fd_ = -1;
  int work_fd_ = -1;
  std::unique_ptr<UnfinishedFile> unfinished_;
};

}  // namespace caravan
