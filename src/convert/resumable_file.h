#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/atomic_file.h"
#include "core/json.h"
#include "core/progress.h"
#include "format/checksum.h"
#include "format/safetensors.h"
#include "format/weight_checksums.h"

namespace caravan {

/// A safetensors file that is written in place, tensor by tensor, and can be continued after the
/// process was killed: the tensors that are there are checked against their recorded XXH3 hashes.
/// The file lives in a work directory (AtomicDirectory), so its name promises nothing yet.
class ResumableSafetensors {
 public:
  /// Opens the file, or creates it. Errors: those of open_own_file(); kInvalidArgument for sizes
  /// that overflow.
  ResumableSafetensors(const FileAt& file, const std::vector<SafetensorsWriter::Spec>& tensors,
                       const std::map<std::string, std::string>& metadata);
  ResumableSafetensors(const ResumableSafetensors&) = delete;
  ResumableSafetensors& operator=(const ResumableSafetensors&) = delete;
  ~ResumableSafetensors();

  /// Keeps the longest prefix of tensors whose bytes have these hashes, cuts the rest off (writes
  /// the header anew if it is not the expected one) and returns the number of tensors kept.
  /// Call once, before write().
  size_t resume(const std::vector<uint64_t>& hashes);

  /// The next bytes of the current tensor. Errors: kIo naming file, offset and reason.
  void write(const void* data, size_t num_bytes);
  /// Ends the current tensor; returns the XXH3 of its bytes. Errors: kInternal when bytes are
  /// missing.
  uint64_t end_tensor();
  /// fsync. Errors: kIo; kInternal when tensors are missing.
  void finish();

  /// Of the header and of every tensor that is kept or ended.
  FileChecksums checksums() const;

  uint64_t num_bytes() const { return ends_.empty() ? header_.size() : ends_.back(); }
  /// Bytes of tensor i.
  uint64_t tensor_bytes(size_t i) const { return ends_[i] - begin_of(i); }

 private:
  uint64_t begin_of(size_t i) const { return i == 0 ? header_.size() : ends_[i - 1]; }
  /// The checksums of bytes [begin, end), when their XXH3 is `hash`.
  std::optional<TensorChecksum> matches(uint64_t begin, uint64_t end, uint64_t hash) const;

  std::string path_;
  std::string header_;  // length and JSON
  std::vector<uint64_t> ends_;
  int fd_ = -1;
  uint64_t offset_ = 0;
  size_t current_ = 0;
  std::optional<TensorHasher> hash_;  // of the current tensor
  std::vector<std::string> names_;
  std::vector<TensorChecksum> checksums_;  // of tensors 0 to current_ - 1
};

inline constexpr const char* kJournalName = "convert.journal";
/// Begins every version's journal.
inline constexpr std::string_view kJournalTitle = "caravan convert journal ";

/// What a conversion has finished, one line a tensor, in a text file of the work directory. Lines
/// are appended after the tensor's bytes were written; a torn last line counts as absent.
class ConvertJournal {
 public:
  /// key: hash of everything that decides the output (options, source files). settings: the same
  /// for people, one member for each. A journal of another key is started over. Errors: those of
  /// open_own_file().
  ConvertJournal(const FileAt& file, uint64_t key, const boost::json::object& settings);
  ConvertJournal(const ConvertJournal&) = delete;
  ConvertJournal& operator=(const ConvertJournal&) = delete;
  ~ConvertJournal();

  /// "--dtype float16, now bfloat16": why an earlier run's journal was started over; "" when it was
  /// not.
  const std::string& restart_reason() const { return restart_reason_; }
  /// Hashes of the tensors 0, 1, ... of `rank` that an earlier run finished.
  std::vector<uint64_t> finished(int rank) const;
  /// Forgets all but the first `num_tensors` of `rank`: the rest was not intact.
  void keep(int rank, size_t num_tensors);
  void record(int rank, size_t tensor, uint64_t hash);

 private:
  void append(const std::string& text);
  void rewrite();

  std::string path_;
  std::string first_lines_;
  std::string restart_reason_;
  std::map<int, std::vector<uint64_t>> finished_;
  int fd_ = -1;
};

/// XXH3-64 of a whole file, read in pieces; progress counts bytes. Errors: kIo.
uint64_t hash_file(const std::string& path, Progress& progress);

}  // namespace caravan
