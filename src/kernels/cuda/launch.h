#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

// No core/error.h here: nvcc 13.0 with g++ 12 does not compile fmt 9. .cu files throw through the
// functions below.

namespace caravan::cuda {

/// What every launcher needs to know of the device. Copied, never owned by a kernel.
struct LaunchContext {
  cudaStream_t stream = nullptr;
  int num_sms = 0;
  int compute_capability = 0;  // 90 for Hopper
  bool use_pdl = false;        // programmatic dependent launch: compute_capability 90
};

/// Throws kInternal (kOutOfMemory for an allocation) with the runtime's words.
void check_cuda(cudaError_t status, const char* what);
/// Throws Error(kUnsupported) and Error(kInvalidArgument).
[[noreturn]] void throw_unsupported(const std::string& message);
[[noreturn]] void throw_invalid(const std::string& message);
#define CARAVAN_CUDA_CHECK(call) ::caravan::cuda::check_cuda((call), #call)

/// Launches `kernel` on the context's stream. With use_pdl the kernel may start before the one
/// before it has ended, so it must call pdl_wait() before it touches anything but weights.
/// More than 48 KiB of dynamic shared memory is asked for here.
template <typename... Params, typename... Args>
void launch(const LaunchContext& context, void (*kernel)(Params...), dim3 grid, dim3 block,
            size_t shared_bytes, Args&&... args) {
  if (shared_bytes > 48 * 1024) {
    CARAVAN_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_bytes)));
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  config.attrs = &attribute;
  config.numAttrs = context.use_pdl ? 1 : 0;
  CARAVAN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

}  // namespace caravan::cuda
