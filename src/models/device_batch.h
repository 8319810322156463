#pragma once

#include <array>
#include <cstdint>

#include "backend/backend.h"
#include "models/batch.h"

namespace caravan {

struct DeviceBatchLimits {
  int64_t max_num_tokens = 0;
  int64_t max_num_seqs = 0;
  int64_t max_num_logits = 0;
  int64_t max_blocks_per_seq = 0;
};

/// Batches in memory of a device that cannot read the host's: one copy a step from pinned memory,
/// to addresses that depend on the padded sizes alone, so that a recorded step can be replayed.
class DeviceBatch {
 public:
  /// Bytes of device memory.
  static size_t num_bytes(const DeviceBatchLimits& limits, int64_t query_tile);
  DeviceBatch(Backend& backend, const DeviceBatchLimits& limits);

  /// Queues the copy of `batch`. num_rows > 0 pads a decode batch to so many sequences of no
  /// context and no cache slot; its logits rows are then all rows. `extra` bytes go along, to an
  /// address that extra() returns. `slot` of the pinned memory must not have an unfinished copy.
  /// The tensors are filled by copy(), which can be part of a recorded step.
  BatchTensors prepare(const Batch& batch, int64_t num_rows, int64_t max_context_len,
                       const void* extra, size_t extra_bytes, int slot);
  /// Queues the copy of what was prepared in `slot` last.
  void copy(int slot);
  const void* extra() const { return extra_; }

  static constexpr int kNumSlots = 2;
  /// Room for `extra`, a row of logits.
  static constexpr size_t kExtraBytesPerRow = 64;

 private:
  std::byte* host_slot(int slot) const;

  Backend& backend_;
  DeviceBatchLimits limits_;
  Buffer device_;
  Buffer host_;                           // kNumSlots of device_.num_bytes()
  std::array<size_t, kNumSlots> used_{};  // bytes of each slot
  const void* extra_ = nullptr;
};

}  // namespace caravan
