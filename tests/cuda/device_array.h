#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "core/dtype.h"
#include "kernels/cuda/launch.h"

namespace caravan::cuda {

/// cudaMemset and cudaMemcpy may return before the device is done, and nothing orders the stream
/// that they run on before a kernel's non-blocking one. Tests fill and copy through these two,
/// which wait. `source`: host or device memory.
inline void fill_device(void* data, int byte, size_t num_bytes) {
  CARAVAN_CUDA_CHECK(cudaMemset(data, byte, num_bytes));
  CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
}
inline void copy_to_device(void* data, const void* source, size_t num_bytes) {
  CARAVAN_CUDA_CHECK(cudaMemcpy(data, source, num_bytes, cudaMemcpyDefault));
  CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
}

/// Device memory of one test, freed with it. Every byte is 0xFF at first, which is NaN in every
/// floating-point dtype: what a kernel forgets to write shows.
class DeviceArray {
 public:
  explicit DeviceArray(size_t num_bytes) : num_bytes_(num_bytes) {
    CARAVAN_CUDA_CHECK(cudaMalloc(&data_, num_bytes + 1));
    fill_device(data_, 0xFF, num_bytes);
  }
  /// float values stored as `dtype`.
  DeviceArray(const std::vector<float>& values, DType dtype)
      : DeviceArray(values.size() * dtype_size(dtype)) {
    std::vector<std::byte> host(num_bytes_);
    convert_elements(values.data(), DType::kF32, host.data(), dtype, values.size());
    copy_to_device(data_, host.data(), num_bytes_);
  }
  template <typename T>
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size() * sizeof(T)) {
    copy_to_device(data_, values.data(), num_bytes_);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  void* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  /// Contents as raw T, after everything queued has run.
  template <typename T>
  std::vector<T> host() const {
    std::vector<T> out(num_bytes_ / sizeof(T));
    CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
    CARAVAN_CUDA_CHECK(cudaMemcpy(out.data(), data_, num_bytes_, cudaMemcpyDeviceToHost));
    return out;
  }
  /// Contents of `dtype` as float.
  std::vector<float> floats(DType dtype) const {
    const std::vector<std::byte> raw = host<std::byte>();
    std::vector<float> out(raw.size() / dtype_size(dtype));
    for (size_t i = 0; i < out.size(); ++i) out[i] = load_as_f32(raw.data(), dtype, i);
    return out;
  }

 private:
  void* data_ = nullptr;
  size_t num_bytes_ = 0;
};

/// Uniform in [-1, 1), repeatable.
inline std::vector<float> random_floats(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(count);
  for (float& v : values) v = uniform(engine);
  return values;
}

/// The values as they are after rounding to `dtype`.
inline std::vector<float> rounded(std::vector<float> values, DType dtype) {
  std::vector<std::byte> stored(values.size() * dtype_size(dtype));
  convert_elements(values.data(), DType::kF32, stored.data(), dtype, values.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = load_as_f32(stored.data(), dtype, i);
  return values;
}

/// The machine's first GPU. A test that needs one fails without it: run these on a GPU machine.
inline LaunchContext device_context() {
  LaunchContext context;
  cudaDeviceProp properties{};
  CARAVAN_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  context.num_sms = properties.multiProcessorCount;
  context.compute_capability = properties.major * 10 + properties.minor;
  context.use_pdl = context.compute_capability == 90;  // as the backend
  CARAVAN_CUDA_CHECK(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));
  return context;
}

}  // namespace caravan::cuda
