#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "backend/create_backend.h"
#include "kernels/cpu/cpu_kernels.h"

namespace caravan {

/// A backend to test, by a name that fits into a test's.
struct TestBackend {
  std::string name;
  BackendOptions options;
};

/// "cuda" when the environment says CARAVAN_TEST_DEVICE=cuda: the tests then run on the first GPU
/// instead of the processor, and fail without one.
inline bool tests_run_on_gpu() {
  const char* device = std::getenv("CARAVAN_TEST_DEVICE");
  return device != nullptr && std::string(device) == "cuda";
}

/// Every instruction set of this processor, or the GPU's own and the generic kernels.
inline std::vector<TestBackend> test_backends() {
  if (tests_run_on_gpu()) {
    return {{"cuda", {.device = "cuda"}},
            {"cuda_generic", {.device = "cuda", .cuda_kernels = "generic"}}};
  }
  std::vector<TestBackend> backends;
  for (const CpuIsa isa : {CpuIsa::kReference, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    if (cpu_isa_available(isa)) {
      backends.push_back({cpu_isa_name(isa), {.cpu_isa = cpu_isa_name(isa), .num_threads = 2}});
    }
  }
  return backends;
}

}  // namespace caravan
