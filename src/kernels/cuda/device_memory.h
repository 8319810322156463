#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "kernels/cuda/launch.h"

namespace caravan::cuda {

/// Uninitialized device memory for measurements.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t num_bytes) : num_bytes_(num_bytes) {
    CARAVAN_CUDA_CHECK(cudaMalloc(&data_, num_bytes));
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFree(data_); }

  template <typename T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t num_bytes() const { return num_bytes_; }

 private:
  void* data_ = nullptr;
  size_t num_bytes_;
};

}  // namespace caravan::cuda
