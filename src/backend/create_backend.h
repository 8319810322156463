#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

namespace caravan {

struct BackendOptions {
  std::string device = "cpu";         // cpu, cuda, cuda:N
  std::string cpu_isa = "auto";       // auto, amx, avx512, avx2, reference
  int num_threads = 0;                // 0: one for each core
  std::string cuda_kernels = "auto";  // auto, generic: those of sm_80, whatever the GPU is
  bool is_plan_only = false;          // layouts and sizes alone: allocates nothing, needs no device
};

/// The one place that knows which backends this program has.
/// Errors: kInvalidArgument for an unknown name, kUnsupported for a device that is not there.
std::unique_ptr<Backend> create_backend(const BackendOptions& options);

}  // namespace caravan
