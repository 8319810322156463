#pragma once

#include "backend/cuda_backend.h"

namespace caravan {

/// File that holds the CUDA backend. It is opened when a GPU is asked for, so that the program
/// runs on machines without NVIDIA's driver or libraries.
inline constexpr const char* kCudaPluginFile = "libcaravan_cuda.so";

/// What the file exports, with C linkage: caravan_cuda_plugin returns one of these. `version` is
/// CARAVAN_VERSION of its build and must be that of the program.
struct CudaPlugin {
  const char* version;
  std::unique_ptr<Backend> (*make_backend)(const CudaBackendOptions& options);
};
using CudaPluginEntry = const CudaPlugin*();

}  // namespace caravan
