#pragma once

#include <memory>
#include <optional>

#include "backend/backend.h"
#include "kernels/cpu/cpu_kernels.h"

namespace caravan {

struct CpuBackendOptions {
  int num_threads = 0;        // 0: num_usable_cpus()
  std::optional<CpuIsa> isa;  // unset: best_cpu_isa()
};

/// Errors: kUnsupported when this processor lacks options.isa; kOutOfMemory when the threads cannot
/// be made.
std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options);

}  // namespace caravan
