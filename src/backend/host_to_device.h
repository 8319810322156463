#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <vector>

#include "backend/backend.h"

namespace caravan::cuda {

/// Copies pageable host memory, such as a mapped file, to the device at the speed of the bus:
/// several threads read pieces into pinned memory while the copy engine takes earlier ones.
class HostToDevice {
 public:
  explicit HostToDevice(int device) : device_(device) {}
  HostToDevice(const HostToDevice&) = delete;
  HostToDevice& operator=(const HostToDevice&) = delete;
  ~HostToDevice();

  /// `src` may be reused on return; work queued on `stream` afterwards sees the data. copy_piece,
  /// if given, brings each piece into pinned memory.
  void copy(const void* src, void* dst, size_t num_bytes, cudaStream_t stream,
            const CopyPiece& copy_piece = nullptr);

 private:
  struct Slot {
    void* pinned = nullptr;
    cudaEvent_t copied = nullptr;
  };
  struct Lane {  // of one thread
    cudaStream_t stream = nullptr;
    std::vector<Slot> slots;
    size_t next = 0;
  };
  void open();

  int device_;
  std::vector<Lane> lanes_;
};

}  // namespace caravan::cuda
