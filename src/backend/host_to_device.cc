#include "backend/host_to_device.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>

#include "kernels/cuda/launch.h"

namespace caravan::cuda {

namespace {

constexpr size_t kPieceBytes = kCopyPiece;
constexpr size_t kSlotsPerLane = 3;
constexpr int kMaxLanes = 12;

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

// Maps the pages of a piece at once instead of one fault for each few; kernels before Linux 5.14
// do not know the advice and fault.
void populate(const std::byte* begin, size_t num_bytes) {
  constexpr uintptr_t kPage = 4096;
  const auto first = reinterpret_cast<uintptr_t>(begin) / kPage * kPage;
  const auto last = (reinterpret_cast<uintptr_t>(begin) + num_bytes + kPage - 1) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_POPULATE_READ);
}

}  // namespace

HostToDevice::~HostToDevice() {
  for (Lane& lane : lanes_) {
    if (lane.stream != nullptr) cudaStreamSynchronize(lane.stream);
    for (Slot& slot : lane.slots) {
      if (slot.copied != nullptr) cudaEventDestroy(slot.copied);
      if (slot.pinned != nullptr) cudaFreeHost(slot.pinned);
    }
    if (lane.stream != nullptr) cudaStreamDestroy(lane.stream);
  }
}

void HostToDevice::open() {
  if (!lanes_.empty()) return;
  lanes_.resize(static_cast<size_t>(std::clamp(omp_get_num_procs(), 1, kMaxLanes)));
  for (Lane& lane : lanes_) {
    CARAVAN_CUDA_CHECK(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking));
    lane.slots.resize(kSlotsPerLane);
    for (Slot& slot : lane.slots) {
      CARAVAN_CUDA_CHECK(cudaHostAlloc(&slot.pinned, kPieceBytes, cudaHostAllocDefault));
      CARAVAN_CUDA_CHECK(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
    }
  }
}

void HostToDevice::copy(const void* src, void* dst, size_t num_bytes, cudaStream_t stream,
                        const CopyPiece& copy_piece) {
  open();
  // What was queued on `stream` (the memory's zeroing) comes first.
  cudaEvent_t before = lanes_.front().slots.front().copied;
  CARAVAN_CUDA_CHECK(cudaEventSynchronize(before));
  CARAVAN_CUDA_CHECK(cudaEventRecord(before, stream));
  for (Lane& lane : lanes_) CARAVAN_CUDA_CHECK(cudaStreamWaitEvent(lane.stream, before));
  const auto pieces = static_cast<int64_t>((num_bytes + kPieceBytes - 1) / kPieceBytes);
  // Taken one by one: a thread that fails must not leave an `omp for`, whose end the others await.
  std::atomic<int64_t> next{0};
  std::atomic<bool> has_failed{false};
  std::exception_ptr failure;
#pragma omp parallel num_threads(static_cast <int>(lanes_.size()))
  try {
    CARAVAN_CUDA_CHECK(cudaSetDevice(device_));
    Lane& lane = lanes_[static_cast<size_t>(omp_get_thread_num())];
    for (int64_t i = next++; i < pieces && !has_failed; i = next++) {
      const size_t begin = static_cast<size_t>(i) * kPieceBytes;
      const size_t size = std::min(kPieceBytes, num_bytes - begin);
      const auto* from = static_cast<const std::byte*>(src) + begin;
      Slot& slot = lane.slots[lane.next];
      lane.next = (lane.next + 1) % kSlotsPerLane;
      populate(from, size);
      CARAVAN_CUDA_CHECK(cudaEventSynchronize(slot.copied));
      if (copy_piece) {
        copy_piece(begin, from, static_cast<std::byte*>(slot.pinned), size);
      } else {
        std::memcpy(slot.pinned, from, size);
      }
      CARAVAN_CUDA_CHECK(cudaMemcpyAsync(static_cast<std::byte*>(dst) + begin, slot.pinned, size,
                                         cudaMemcpyHostToDevice, lane.stream));
      CARAVAN_CUDA_CHECK(cudaEventRecord(slot.copied, lane.stream));
    }
  } catch (...) {
    has_failed = true;
#pragma omp critical
    failure = std::current_exception();
  }
  if (failure) std::rethrow_exception(failure);
  for (Lane& lane : lanes_) {
    for (Slot& slot : lane.slots) CARAVAN_CUDA_CHECK(cudaStreamWaitEvent(stream, slot.copied));
  }
}

}  // namespace caravan::cuda
