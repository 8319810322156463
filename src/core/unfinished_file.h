#pragma once

#include <string>

namespace caravan {

/// A file or directory that is being written, for as long as this object lives: what to do with it
/// when a signal ends the process.
class UnfinishedFile {
 public:
  enum class OnSignal {
    kRemove,  // a temporary file
    kName,    // a directory that the next run goes on with: one line on stderr says that it is left
  };

  UnfinishedFile(const std::string& path, OnSignal action);
  UnfinishedFile(const UnfinishedFile&) = delete;
  UnfinishedFile& operator=(const UnfinishedFile&) = delete;
  ~UnfinishedFile();

 private:
  int slot_ = -1;  // none: there are more than the table holds
};

/// Does it for all of them. Async-signal-safe.
void tidy_unfinished_files();

/// SIGINT, SIGTERM and SIGHUP, where they are not ignored, tidy up and then end the process as they
/// would have. For main(): a library leaves signals to its program.
void tidy_on_termination();

}  // namespace caravan
