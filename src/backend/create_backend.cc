#include "backend/create_backend.h"

#include <dlfcn.h>

#include <charconv>

#include "backend/cpu_backend.h"
#include "backend/cuda_plugin.h"
#include "core/error.h"

namespace caravan {

namespace {

// The file is looked for beside the program and where the program's run path says; it stays open
// as long as the process runs.
std::unique_ptr<Backend> open_cuda_backend(const CudaBackendOptions& options) {
#ifdef CARAVAN_STATIC_PROGRAM
  CARAVAN_FAIL(kUnsupported,
               "device cuda:{}: this program is linked statically and cannot open {}; use a build "
               "without CARAVAN_PORTABLE",
               options.device, kCudaPluginFile);
#else
  void* library = dlopen(kCudaPluginFile, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    CARAVAN_FAIL(kUnsupported,
                 "device cuda: {}; it lies beside the caravan program when that was built with "
                 "nvcc: build it there, or use --device cpu",
                 reason != nullptr ? reason : kCudaPluginFile);
  }
  auto* entry = reinterpret_cast<CudaPluginEntry*>(dlsym(library, "caravan_cuda_plugin"));
  CARAVAN_CHECK_CODE(entry != nullptr, kUnsupported, "device cuda: {} is not Caravan's",
                     kCudaPluginFile);
  const CudaPlugin* plugin = entry();
  CARAVAN_CHECK_CODE(std::string(plugin->version) == CARAVAN_VERSION, kUnsupported,
                     "device cuda: {} is of version {}, this program of {}", kCudaPluginFile,
                     plugin->version, CARAVAN_VERSION);
  return plugin->make_backend(options);
#endif
}

// "cuda" or "cuda:N".
std::optional<int> cuda_ordinal(const std::string& device) {
  if (device == "cuda") return 0;
  if (!device.starts_with("cuda:")) return std::nullopt;
  int ordinal = 0;
  const char* end = device.data() + device.size();
  const auto [rest, error] = std::from_chars(device.data() + 5, end, ordinal);
  if (error != std::errc() || rest != end || ordinal < 0) return std::nullopt;
  return ordinal;
}

}  // namespace

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
  CARAVAN_CHECK(options.cuda_kernels == "auto" || options.cuda_kernels == "generic",
                "CUDA kernels \"{}\", expected auto or generic", printable(options.cuda_kernels));
  if (const std::optional<int> ordinal = cuda_ordinal(options.device)) {
    return open_cuda_backend({.device = *ordinal,
                              .use_generic_kernels = options.cuda_kernels == "generic",
                              .is_plan_only = options.is_plan_only});
  }
  CARAVAN_CHECK(options.device == "cpu", "device \"{}\", expected cpu, cuda or cuda:N",
                printable(options.device));
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
