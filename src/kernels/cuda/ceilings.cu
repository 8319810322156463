#include "kernels/cuda/ceilings.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/device_memory.h"

namespace caravan::cuda {

namespace {

constexpr size_t kMiB = size_t{1} << 20;
// An H100 copies 2 GiB with 2,830 GB/s, 8 GiB with 3,017 and, 16 bytes a thread, 512 MB with 3,160.
constexpr size_t kLargest = size_t{8} << 30;
constexpr int kThreads = 512;
constexpr int kRepeats = 9;

// Eight loads of 16 bytes are on their way in every thread.
__global__ void __launch_bounds__(kThreads)
    ceiling_read_kernel(const uint4* __restrict__ data, int64_t count, uint32_t* __restrict__ out) {
  constexpr int kUnroll = 8;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  uint32_t sum = 0;
  int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = __ldcs(data + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum += v[u].x + v[u].y + v[u].z + v[u].w;
  }
  for (; i < count; i += stride) {
    const uint4 v = __ldcs(data + i);
    sum += v.x + v.y + v.z + v.w;
  }
  // The data make this one value unlikely; without a use the loads would be left out.
  if (sum == 0x12345678u) *out = sum;
}

__global__ void __launch_bounds__(kThreads)
    ceiling_copy_kernel(const uint4* __restrict__ from, uint4* __restrict__ to, int64_t count) {
  constexpr int kUnroll = 4;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = __ldcs(from + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) __stcs(to + i + u * stride, v[u]);
  }
  for (; i < count; i += stride) __stcs(to + i, __ldcs(from + i));
}

// A third of what is free leaves room for the second buffer of a copy; 0 when that is so little
// that the L2 would be measured.
size_t measured_bytes(size_t wanted) {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  CARAVAN_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  const size_t num_bytes = std::min(wanted, free_bytes / 3) / kMiB * kMiB;
  return num_bytes >= 256 * kMiB ? num_bytes : 0;
}

class Event {
 public:
  Event() { CARAVAN_CUDA_CHECK(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

template <typename Body>
float median_ms_of(const LaunchContext& context, int repeats, Body body) {
  return median_ms(
      context, repeats, [](void* user) { (*static_cast<Body*>(user))(); }, &body);
}

double gb_per_s(size_t num_bytes, float ms) { return static_cast<double>(num_bytes) / ms * 1e-6; }

// Nothing is written that a kernel before might still read.
LaunchContext without_overlap(LaunchContext context) {
  context.use_pdl = false;
  return context;
}

}  // namespace

float median_ms(const LaunchContext& context, int repeats, void (*queue_work)(void* user),
                void* user) {
  const Event begin;
  const Event end;
  queue_work(user);
  std::vector<float> times;
  for (int i = 0; i < repeats; ++i) {
    CARAVAN_CUDA_CHECK(cudaEventRecord(begin.get(), context.stream));
    queue_work(user);
    CARAVAN_CUDA_CHECK(cudaEventRecord(end.get(), context.stream));
    CARAVAN_CUDA_CHECK(cudaEventSynchronize(end.get()));
    float ms = 0;
    CARAVAN_CUDA_CHECK(cudaEventElapsedTime(&ms, begin.get(), end.get()));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

double measure_read_gb_per_s(const LaunchContext& context) {
  const LaunchContext plain = without_overlap(context);
  const size_t num_bytes = measured_bytes(kLargest);
  if (num_bytes == 0) return 0;
  const DeviceMemory data(num_bytes);
  const DeviceMemory out(sizeof(uint32_t));
  CARAVAN_CUDA_CHECK(cudaMemsetAsync(data.as<>(), 1, data.num_bytes(), plain.stream));
  const auto count = static_cast<int64_t>(data.num_bytes() / sizeof(uint4));
  double best = 0;
  for (const int blocks_per_sm : {1, 2, 4, 8}) {
    const float ms = median_ms_of(plain, kRepeats, [&] {
      launch(plain, ceiling_read_kernel, static_cast<unsigned>(plain.num_sms * blocks_per_sm),
             kThreads, 0, data.as<const uint4>(), count, out.as<uint32_t>());
    });
    best = std::max(best, gb_per_s(data.num_bytes(), ms));
  }
  return best;
}

double measure_copy_gb_per_s(const LaunchContext& context) {
  const LaunchContext plain = without_overlap(context);
  const size_t most = measured_bytes(kLargest);
  if (most == 0) return 0;
  const DeviceMemory from(most);
  const DeviceMemory to(from.num_bytes());
  CARAVAN_CUDA_CHECK(cudaMemsetAsync(from.as<>(), 1, from.num_bytes(), plain.stream));
  double best = 0;
  for (const size_t num_bytes : {std::min(512 * kMiB, from.num_bytes()), from.num_bytes()}) {
    const auto count = static_cast<int64_t>(num_bytes / sizeof(uint4));
    const float memcpy_ms = median_ms_of(plain, kRepeats, [&] {
      CARAVAN_CUDA_CHECK(cudaMemcpyAsync(to.as<>(), from.as<>(), num_bytes,
                                         cudaMemcpyDeviceToDevice, plain.stream));
    });
    best = std::max(best, 2 * gb_per_s(num_bytes, memcpy_ms));
    const auto one_each = static_cast<int>((count + kThreads - 1) / kThreads);
    for (const int num_blocks : {4 * plain.num_sms, 8 * plain.num_sms, one_each}) {
      const float ms = median_ms_of(plain, kRepeats, [&] {
        launch(plain, ceiling_copy_kernel, static_cast<unsigned>(num_blocks), kThreads, 0,
               from.as<const uint4>(), to.as<uint4>(), count);
      });
      best = std::max(best, 2 * gb_per_s(num_bytes, ms));
    }
  }
  return best;
}

double measure_host_to_device_gb_per_s(const LaunchContext& context) {
  constexpr size_t kBytes = 256 * kMiB;
  if (measured_bytes(kBytes) == 0) return 0;
  struct PinnedMemory {
    PinnedMemory() { CARAVAN_CUDA_CHECK(cudaMallocHost(&data, kBytes)); }
    ~PinnedMemory() { cudaFreeHost(data); }
    void* data = nullptr;
  };
  const PinnedMemory from;
  const DeviceMemory to(kBytes);
  float best_ms = 1e30f;  // the bus is shared: 55 GB/s, and 33 in one run of six
  for (int i = 0; i < 7; ++i) {
    best_ms = std::min(best_ms, median_ms_of(context, 1, [&] {
                         CARAVAN_CUDA_CHECK(cudaMemcpyAsync(
                             to.as<>(), from.data, kBytes, cudaMemcpyHostToDevice, context.stream));
                       }));
  }
  return gb_per_s(kBytes, best_ms);
}

}  // namespace caravan::cuda
