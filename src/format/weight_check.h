#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/dtype.h"
#include "format/model_dir.h"
#include "format/tensor_source.h"
#include "format/weight_checksums.h"

namespace caravan {

/// Looks at the bytes of one tensor, chunk by chunk, several threads at once: against its
/// checksums, and for values that are not finite. What is wrong is kept until finish().
class TensorCheck {
 public:
  /// expected: null for none. finite_as: values must be finite when they are converted to it;
  /// nullopt: they are not looked at. `remedy` ends the message of a wrong checksum. What is
  /// referred to must outlive this.
  TensorCheck(const StoredTensor& tensor, const TensorChecksum* expected,
              std::optional<DType> finite_as, std::string remedy);

  const StoredTensor& tensor() const { return tensor_; }
  /// Chunks; 1 for an old table's checksum of the whole tensor.
  size_t num_items() const;
  /// Looks at the mapped bytes of one. Never throws.
  void look_at(size_t item);
  /// Looks at all of them, on all OpenMP threads.
  void look_at_all();
  /// dst = src, bytes of the tensor from `offset` on, a multiple of kChecksumChunk, up to one
  /// chunk; looks at what lies in dst. Never throws.
  void copy(size_t offset, const std::byte* src, std::byte* dst, size_t num_bytes);
  /// When every item was looked at or copied. Errors: kCorrupt naming file, tensor, offset, got and
  /// expected.
  void finish();

 private:
  struct Fault {
    uint64_t offset;  // in the tensor: the first one counts
    std::string what;
  };
  void look(uint64_t offset, const std::byte* src, std::byte* dst, size_t num_bytes,
            bool has_checksum);
  void compare(size_t item, uint64_t offset, uint64_t num_bytes, uint64_t checksum);
  void note(uint64_t offset, std::string what);

  const StoredTensor& tensor_;
  const TensorChecksum* expected_;
  std::optional<DType> finite_as_;
  std::string remedy_;
  std::atomic<bool> has_unknown_chunks_ = false;  // copied ones: finish() hashes the whole tensor
  std::mutex mutex_;
  std::optional<Fault> fault_;
};

/// One rank's weight file beside its table. Errors of the constructor: kCorrupt when the table is
/// of another file: names, sizes or header differ, or config.json is not as it was written.
class WeightFileCheck {
 public:
  /// `source` is opened from dir.rank_path(rank); its tensors outlive this. A directory without a
  /// table is compared with nothing.
  WeightFileCheck(const ModelDir& dir, const TensorSource& source, int rank);

  bool has_table() const { return expected_.has_value(); }
  /// In the order of the file.
  const std::vector<const StoredTensor*>& tensors() const { return tensors_; }
  /// Null without a table.
  const TensorChecksum* find(const std::string& name) const;
  const std::string& remedy() const { return remedy_; }
  /// With a table: bytes between tensors must be zeros. Errors: kCorrupt naming the offset.
  void check_filler() const;

 private:
  std::vector<const StoredTensor*> tensors_;
  std::optional<FileChecksums> expected_;
  std::string remedy_;
};

/// Checks of mapped tensors, run by threads of its own beside the first steps.
class BackgroundCheck {
 public:
  /// Begins at once. `file` and the tensors outlive this; at most num_threads threads, which may be
  /// refused by the system: wait() does what is left.
  BackgroundCheck(const WeightFileCheck& file, std::vector<std::unique_ptr<TensorCheck>> checks,
                  int num_threads);
  BackgroundCheck(const BackgroundCheck&) = delete;
  BackgroundCheck& operator=(const BackgroundCheck&) = delete;
  /// Stops what still runs.
  ~BackgroundCheck();

  /// Returns when everything was found right, at once from the second call on. Errors: those of
  /// TensorCheck::finish() and WeightFileCheck::check_filler(), at every call.
  void wait();

 private:
  struct Item {
    TensorCheck* check;
    size_t index;
  };
  void work();

  const WeightFileCheck& file_;
  std::vector<std::unique_ptr<TensorCheck>> checks_;
  std::vector<Item> items_;
  std::atomic<size_t> next_ = 0;
  bool is_verified_ = false;
  std::vector<std::thread> threads_;
};

/// Reads every tensor of every rank, the header and what lies between tensors, and compares them
/// with the table. False: the directory has no table. Errors: kCorrupt.
bool verify_checksums(const ModelDir& dir);

}  // namespace caravan
