#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "format/safetensors.h"
#include "format/tensor_source.h"

namespace caravan {

/// Logits that an engine computed, in one safetensors file (docs/evaluation.md, "Logits dumps"):
///   input_ids     I32 [N]              what was fed, window after window
///   window_start  I32 [W]              index in input_ids of each window's first token
///   logits        F32 or F16 [N, vocab_size]  row i was computed after input_ids[i]
/// and whatever else the writer adds. The file is mapped; nothing of it is copied whole.
class LogitsDump {
 public:
  /// Errors: as TensorSource::open_file; kCorrupt or kUnsupported naming the tensor, what it is and
  /// what was expected: a tensor is missing, of another dtype or shape, window_start does not begin
  /// with 0 or does not rise, or an id is outside the vocabulary.
  static LogitsDump open(const std::string& path);

  const std::string& path() const { return path_; }
  std::span<const int32_t> input_ids() const { return input_ids_; }
  int64_t num_tokens() const { return static_cast<int64_t>(input_ids_.size()); }
  int64_t num_windows() const { return static_cast<int64_t>(window_start_.size()); }
  /// Rows [window_begin(w), window_end(w)) are window w's.
  int64_t window_begin(int64_t w) const { return window_start_[static_cast<size_t>(w)]; }
  int64_t window_end(int64_t w) const {
    return w + 1 < num_windows() ? window_begin(w + 1) : num_tokens();
  }
  int64_t vocab_size() const { return vocab_size_; }
  DType dtype() const { return logits_->dtype; }
  /// Every tensor of the file, for what a writer added.
  const TensorSource& tensors() const { return source_; }

  /// One row as float32. logits: [vocab_size], written. Thread safe.
  void read_row(int64_t row, std::span<float> logits) const;
  /// Rows before `row` will not be read again soon; the kernel may take their pages.
  void release_before(int64_t row);

 private:
  LogitsDump(const std::string& path, TensorSource source);

  std::string path_;
  TensorSource source_;
  std::vector<int32_t> input_ids_;
  std::vector<int32_t> window_start_;
  const StoredTensor* logits_ = nullptr;
  int64_t vocab_size_ = 0;
  int64_t num_released_ = 0;
};

/// Writes such a file row by row; it appears under its name when it is whole.
class LogitsDumpWriter {
 public:
  struct Contents {
    std::vector<int32_t> input_ids = {};
    std::vector<int32_t> window_start = {};
    int64_t vocab_size = 0;
    DType dtype = DType::kF32;  // kF32 or kF16
    std::map<std::string, std::string> metadata = {};
  };
  /// Bytes of the file, its header aside. Errors: kInvalidArgument when they exceed 63 bits.
  static int64_t num_bytes(int64_t num_tokens, int64_t num_windows, int64_t vocab_size,
                           DType dtype);

  /// Errors: kIo when the disk has less free than the file will take, or refuses;
  /// kInvalidArgument for another dtype.
  LogitsDumpWriter(const std::string& path, const Contents& contents);

  /// The next row. logits: [vocab_size]. Errors: kIo; kUnsupported when a finite logit is beyond
  /// float16.
  void write_row(std::span<const float> logits);
  /// Errors: kIo; kInternal when rows are missing.
  void finish();

 private:
  std::string path_;
  DType dtype_;
  SafetensorsWriter file_;
  int64_t num_rows_ = 0;
  std::vector<uint16_t> row_;  // [vocab_size], for float16
};

}  // namespace caravan
