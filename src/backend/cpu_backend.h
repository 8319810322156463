#pragma once

#include <memory>
#include <optional>

#include "backend/backend.h"
#include "kernels/cpu/cpu_kernels.h"

namespace caravan {

struct CpuBackendOptions {
  int num_threads = 0;        // 0: one for each core this process may run on
  std::optional<CpuIsa> isa;  // unset: best_cpu_isa()
};

/// Errors: kUnsupported when this processor lacks options.isa.
std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options);

/// Cores this process may run on (its affinity mask).
int num_available_cores();

}  // namespace caravan
