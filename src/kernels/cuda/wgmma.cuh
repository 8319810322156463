#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// Warpgroup matrix instructions (sm_90a): d [64 x N] float32 += a [64 x 16] b [16 x N], a and b of
// 16 bits in shared memory, both with k contiguous. Source: PTX ISA 9.0, 9.7.15.

namespace caravan::cuda {

/// Matrix descriptor: addresses and offsets in units of 16 bytes.
__device__ __forceinline__ constexpr uint64_t wgmma_descriptor(uint32_t address,
                                                               uint32_t leading_bytes,
                                                               uint32_t stride_bytes,
                                                               uint32_t swizzle) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) |
         static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<uint64_t>(stride_bytes >> 4) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

/// Rows of 64 k (128 bytes), 128-byte swizzle, eight rows 1024 bytes apart. The address of the
/// first row is a multiple of 1024; 16 k further is 32 bytes further.
__device__ __forceinline__ uint64_t wgmma_descriptor_swizzle128(uint32_t address) {
  return wgmma_descriptor(address, 16, 1024, 1);
}
/// Core matrices (8 rows of 8 k, 128 contiguous bytes) without swizzle: k_bytes from one to the
/// next along k, row_bytes to the next eight rows.
__device__ __forceinline__ uint64_t wgmma_descriptor_core8x8(uint32_t address, uint32_t k_bytes,
                                                             uint32_t row_bytes) {
  return wgmma_descriptor(address, k_bytes, row_bytes, 0);
}

/// Before the first wgmma and whenever other instructions have touched the accumulators.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// All groups but the latest kPending are done.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#define CARAVAN_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define CARAVAN_D16(i) CARAVAN_D4(i), CARAVAN_D4(i + 4), CARAVAN_D4(i + 8), CARAVAN_D4(i + 12)
#define CARAVAN_D64(i) CARAVAN_D16(i), CARAVAN_D16(i + 16), CARAVAN_D16(i + 32), CARAVAN_D16(i + 48)

/// is_accumulating 0: d = a b. Lane 4g + t of warp w holds of d rows 16w + g (d[4j], d[4j + 1]) and
/// 16w + g + 8 (d[4j + 2], d[4j + 3]), columns 8j + 2t and 8j + 2t + 1.
template <typename T, int kN>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                             int is_accumulating) {
  constexpr bool kIsHalf = std::is_same_v<T, __half>;
  static_assert(kN == 32 || kN == 64 || kN == 96 || kN == 128 || kN == 192 || kN == 256);
  if constexpr (kN == 32) {
    if constexpr (kIsHalf) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
          "%16, %17, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D16(0)
          : "l"(a), "l"(b), "r"(is_accumulating));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
          "%16, %17, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D16(0)
          : "l"(a), "l"(b), "r"(is_accumulating));
    }
  } else if constexpr (kN == 64) {
    if constexpr (kIsHalf) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "%32, %33, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D16(0), CARAVAN_D16(16)
          : "l"(a), "l"(b), "r"(is_accumulating));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "%32, %33, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D16(0), CARAVAN_D16(16)
          : "l"(a), "l"(b), "r"(is_accumulating));
    }
  } else if constexpr (kN == 96) {
    if constexpr (kIsHalf) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
          "%48, %49, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D16(0), CARAVAN_D16(16), CARAVAN_D16(32)
          : "l"(a), "l"(b), "r"(is_accumulating));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
          "%48, %49, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D16(0), CARAVAN_D16(16), CARAVAN_D16(32)
          : "l"(a), "l"(b), "r"(is_accumulating));
    }
  } else if constexpr (kN == 128) {
    if constexpr (kIsHalf) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
          "%64, %65, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D64(0)
          : "l"(a), "l"(b), "r"(is_accumulating));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
          "%64, %65, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D64(0)
          : "l"(a), "l"(b), "r"(is_accumulating));
    }
  } else if constexpr (kN == 192) {
    if constexpr (kIsHalf) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
          "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
          "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
          "%96, %97, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D64(0), CARAVAN_D16(64), CARAVAN_D16(80)
          : "l"(a), "l"(b), "r"(is_accumulating));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
          "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
          "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
          "%96, %97, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D64(0), CARAVAN_D16(64), CARAVAN_D16(80)
          : "l"(a), "l"(b), "r"(is_accumulating));
    }
  } else if constexpr (kN == 256) {
    if constexpr (kIsHalf) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
          "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
          "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
          "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
          "%111, "
          "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "
          "%126, %127}, "
          "%128, %129, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D64(0), CARAVAN_D64(64)
          : "l"(a), "l"(b), "r"(is_accumulating));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
          "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
          "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
          "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
          "%111, "
          "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "
          "%126, %127}, "
          "%128, %129, p, 1, 1, 0, 0;\n}\n"
          : CARAVAN_D64(0), CARAVAN_D64(64)
          : "l"(a), "l"(b), "r"(is_accumulating));
    }
  }
}

#undef CARAVAN_D64
#undef CARAVAN_D16
#undef CARAVAN_D4

}  // namespace caravan::cuda
