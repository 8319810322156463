#include "kernels/cpu/ceilings.h"

#include <emmintrin.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "core/tensor.h"

namespace caravan {

namespace {

constexpr int kTries = 8;

// Seconds of the fastest of kTries runs of `body(thread)` on all threads; they start together.
template <typename Body>
double best_seconds(int threads, const Body& body) {
  double best = 1e30;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    std::chrono::steady_clock::time_point start;
#pragma omp parallel num_threads(threads)
    {
#pragma omp barrier
#pragma omp master
      start = std::chrono::steady_clock::now();
      body(omp_get_thread_num());
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return best;
}

// Reads [begin, end), multiples of 4 KiB: four streams, one from each quarter of a window, with
// prefetches; this reads faster than a single stream where one page is one prefetcher's reach.
__m128i read_all(const char* begin, const char* end) {
  __m128i sum = _mm_setzero_si128();
  for (const char* p = begin; p < end; p += 64) {
    _mm_prefetch(p + 4096, _MM_HINT_T0);
    const __m128i* line = reinterpret_cast<const __m128i*>(p);
    sum = _mm_xor_si128(
        sum, _mm_xor_si128(_mm_xor_si128(line[0], line[1]), _mm_xor_si128(line[2], line[3])));
  }
  return sum;
}

// The assembler takes these whatever instruction set the compiler was given, and the compiler does
// not know registers 16 to 31 of AVX-512, so it keeps nothing there.
#define CARAVAN_FMA_2(type, a, b)                      \
  "vfmadd231ps %%" type "14, %%" type "15, %%" type #a \
  "\n\t"                                               \
  "vfmadd231ps %%" type "14, %%" type "15, %%" type #b "\n\t"
#define CARAVAN_FMA_14(type) \
  CARAVAN_FMA_2(type, 0, 1)  \
  CARAVAN_FMA_2(type, 2, 3)  \
  CARAVAN_FMA_2(type, 4, 5)  \
  CARAVAN_FMA_2(type, 6, 7)  \
  CARAVAN_FMA_2(type, 8, 9) CARAVAN_FMA_2(type, 10, 11) CARAVAN_FMA_2(type, 12, 13)
#define CARAVAN_CLOBBERS                                                                   \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

constexpr int64_t kFmaRounds = 2'000'000;

// Fourteen independent accumulators cover the latency of four cycles on two ports. The operands are
// zeros: the speed does not depend on them.
void fma_rounds_avx2() {
  asm volatile("vzeroall" ::: CARAVAN_CLOBBERS);
  for (int64_t i = 0; i < kFmaRounds; ++i) asm volatile(CARAVAN_FMA_14("ymm")::: CARAVAN_CLOBBERS);
  asm volatile("vzeroupper" ::: CARAVAN_CLOBBERS);
}
void fma_rounds_avx512() {
  asm volatile("vzeroall" ::: CARAVAN_CLOBBERS);
  for (int64_t i = 0; i < kFmaRounds; ++i) asm volatile(CARAVAN_FMA_14("zmm")::: CARAVAN_CLOBBERS);
  asm volatile("vzeroupper" ::: CARAVAN_CLOBBERS);
}

constexpr int64_t kTileRounds = 200'000;

void tile_rounds() {
  struct alignas(64) Config {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  for (int64_t i = 0; i < kTileRounds; ++i) {
    asm volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n\t"
        "tdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
        "tdpbf16ps %tmm6, %tmm5, %tmm2\n\t"
        "tdpbf16ps %tmm7, %tmm5, %tmm3\n\t");
  }
  asm volatile("tilerelease" ::: "memory");
}

}  // namespace

double measure_read_gb_per_s(int threads, size_t num_bytes) {
  constexpr size_t kPage = 4096;
  const size_t part = std::max(num_bytes / static_cast<size_t>(threads) / kPage, size_t{1}) * kPage;
  Buffer buffer = Buffer::host(part * static_cast<size_t>(threads));
  // Written once, so that every page is its own and not the shared zero page.
  std::fill_n(buffer.as<uint64_t>(), buffer.num_bytes() / sizeof(uint64_t), uint64_t{1});
  const char* data = buffer.as<const char>();
  const double seconds = best_seconds(threads, [&](int thread) {
    const char* begin = data + static_cast<size_t>(thread) * part;
    const __m128i sum = read_all(begin, begin + part);
    asm volatile("" ::"x"(sum));
  });
  return static_cast<double>(buffer.num_bytes()) / seconds / 1e9;
}

double measure_fma_gflops(CpuIsa isa, int threads) {
  if (isa == CpuIsa::kReference || !cpu_isa_available(isa)) return 0;
  const bool narrow = isa == CpuIsa::kAvx2;
  const double seconds =
      best_seconds(threads, [&](int) { narrow ? fma_rounds_avx2() : fma_rounds_avx512(); });
  const double flops = 14.0 * 2 * (narrow ? 8 : 16) * kFmaRounds * threads;
  return flops / seconds / 1e9;
}

double measure_amx_bf16_gflops(int threads) {
  if (!cpu_isa_available(CpuIsa::kAmx)) return 0;
  const double seconds = best_seconds(threads, [](int) { tile_rounds(); });
  const double flops = 4.0 * 16 * 16 * 32 * 2 * kTileRounds * threads;
  return flops / seconds / 1e9;
}

}  // namespace caravan
