#include "backend/create_backend.h"

#include "backend/cpu_backend.h"
#include "core/error.h"

namespace caravan {

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
  CARAVAN_CHECK_CODE(options.device != "cuda", kUnsupported,
                     "device cuda: this version of Caravan has the CPU backend only; use --device "
                     "cpu");
  CARAVAN_CHECK(options.device == "cpu", "device \"{}\", expected cpu", printable(options.device));
  CARAVAN_CHECK(options.num_threads >= 0, "{} threads, expected 0 (all cores) or more",
                options.num_threads);
  CpuBackendOptions cpu{.num_threads = options.num_threads, .isa = std::nullopt};
  if (options.cpu_isa != "auto") {
    cpu.isa = parse_cpu_isa(options.cpu_isa);
    CARAVAN_CHECK(cpu.isa.has_value(),
                  "CPU instruction set \"{}\", expected auto, amx, avx512, avx2 or reference",
                  printable(options.cpu_isa));
  }
  return make_cpu_backend(cpu);
}

}  // namespace caravan
