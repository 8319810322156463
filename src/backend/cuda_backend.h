#pragma once

#include <memory>

#include "backend/backend.h"

namespace caravan {

struct CudaBackendOptions {
  int device = 0;                    // ordinal among the visible GPUs
  bool use_generic_kernels = false;  // those of sm_80, whatever the GPU is
  bool is_plan_only = false;         // layouts and sizes alone: needs no GPU
};

/// Errors: kUnsupported, one line, without a driver, without such a GPU or below sm_80.
std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options);

}  // namespace caravan
