#include "kernels/cpu/cpu_kernels.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "core/error.h"
#include "kernels/cpu/gemm_plan.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/reference.h"

namespace caravan {

namespace {

// CPUID leaf 1: ECX bit 29 is F16C, which clang 14's __builtin_cpu_supports() does not know.
bool has_f16c() {
  uint32_t eax = 1;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  return (ecx >> 29 & 1) != 0;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// CPUID leaf 7: EDX bit 22 is AMX-BF16, bit 24 AMX-TILE. A hypervisor may hide them.
bool has_amx() {
  uint32_t eax = 7;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  if ((edx >> 22 & 1) == 0 || (edx >> 24 & 1) == 0) return false;
  // Linux gives the 8 KiB of tile state only to processes that ask for it (5.16 and newer);
  // once granted, it holds for all threads.
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kReference:
      return "reference";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAmx:
      return "amx";
  }
  return "unknown";
}

std::optional<CpuIsa> parse_cpu_isa(std::string_view name) {
  for (const CpuIsa isa : {CpuIsa::kReference, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    if (name == cpu_isa_name(isa)) return isa;
  }
  return std::nullopt;
}

bool cpu_isa_available(CpuIsa isa) {
  static const bool avx2 = has_avx2();
  static const bool avx512 = has_avx512();
  static const bool amx = avx512 && __builtin_cpu_supports("avx512bf16") && has_amx();
  switch (isa) {
    case CpuIsa::kReference:
      return true;
    case CpuIsa::kAvx2:
      return avx2;
    case CpuIsa::kAvx512:
      return avx512;
    case CpuIsa::kAmx:
      return amx;
  }
  return false;
}

CpuIsa best_cpu_isa() {
  for (const CpuIsa isa : {CpuIsa::kAmx, CpuIsa::kAvx512, CpuIsa::kAvx2}) {
    if (cpu_isa_available(isa)) return isa;
  }
  return CpuIsa::kReference;
}

const CpuKernels& cpu_kernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx2:
      return avx2_kernels();
    case CpuIsa::kAvx512:
      return avx512_kernels();
    case CpuIsa::kAmx:
      return amx_kernels();
    case CpuIsa::kReference:
      break;
  }
  return reference_kernels();
}

LinearLayout cpu_linear_layout(CpuIsa isa, DType dtype) {
  if (isa == CpuIsa::kReference) return LinearLayout::kInOut;
  return dtype == DType::kBF16 ? LinearLayout::kPanel32Pairs : LinearLayout::kPanel32;
}

void check_scratch(int64_t num_bytes, const CpuContext& context) {
  CARAVAN_CHECK_CODE(num_bytes <= static_cast<int64_t>(context.scratch_bytes), kInternal,
                     "CPU kernel scratch: {} bytes given, {} needed", context.scratch_bytes,
                     num_bytes);
}

}  // namespace caravan
