#include "kernels/cuda/launch.h"

#include "core/error.h"

namespace caravan::cuda {

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const ErrorCode code =
      status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kInternal;
  throw Error(code, fmt::format("CUDA: {}: {} ({})", what, cudaGetErrorString(status),
                                cudaGetErrorName(status)));
}

void throw_unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupported, message);
}
void throw_invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

}  // namespace caravan::cuda
