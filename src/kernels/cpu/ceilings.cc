#include "kernels/cpu/ceilings.h"

#include <emmintrin.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "core/tensor.h"

namespace caravan {

namespace {

// Other work on the machine comes in bursts: the tries must outlast them.
constexpr int kTries = 32;
constexpr int kReadTries = 4;

// Seconds of one run of `body(thread)` on all threads; they start together.
template <typename Body>
double seconds_of(int threads, const Body& body) {
  std::chrono::steady_clock::time_point start;
#pragma omp parallel num_threads(threads)
  {
#pragma omp barrier
#pragma omp master
    start = std::chrono::steady_clock::now();
    body(omp_get_thread_num());
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return seconds.count();
}

// The fastest of kTries.
template <typename Body>
double best_seconds(int threads, const Body& body) {
  double best = 1e30;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    best = std::min(best, seconds_of(threads, body));
  }
  return best;
}

// Reads kStreams parts of [begin, end) side by side, prefetching `ahead` bytes ahead. Its size is a
// multiple of 4 KiB. With AVX-512 a line is one load; the compiler, which is given no instruction
// set here, does not know of it.
template <int kStreams, bool kWide>
void read_all(const char* begin, const char* end, int64_t ahead) {
  const int64_t part = (end - begin) / kStreams;
  for (int64_t i = 0; i < part; i += 64) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const char* line = begin + stream * part + i;
      if (ahead > 0) _mm_prefetch(line + ahead, _MM_HINT_T0);
      if constexpr (kWide) {
        asm volatile("vmovdqu64 %0, %%zmm0" ::"m"(*reinterpret_cast<const char(*)[64]>(line))
                     : "xmm0");
      } else {
        asm volatile(
            "movdqu %0, %%xmm0\n\tmovdqu %1, %%xmm0\n\tmovdqu %2, %%xmm0\n\tmovdqu %3, %%xmm0" ::
                "m"(*reinterpret_cast<const __m128i*>(line)),
            "m"(*reinterpret_cast<const __m128i*>(line + 16)),
            "m"(*reinterpret_cast<const __m128i*>(line + 32)),
            "m"(*reinterpret_cast<const __m128i*>(line + 48))
            : "xmm0");
      }
    }
  }
  if constexpr (kWide) asm volatile("vzeroupper" ::: "xmm0");
}

using ReadAll = void (*)(const char* begin, const char* end, int64_t ahead);
struct ReadPattern {
  ReadAll read;
  int64_t ahead;
};

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

// All threads take pieces from one queue: where other work slows one of them, static parts would
// measure that one.
double measure_read_gb_per_s(int threads, size_t num_bytes) {
  constexpr int64_t kPiece = 256 << 10;
  const int64_t pieces = std::max<int64_t>(static_cast<int64_t>(num_bytes) / kPiece, threads);
  Buffer buffer = Buffer::host(static_cast<size_t>(pieces * kPiece));
  // Written once, so that every page is its own and not the shared zero page.
  std::fill_n(buffer.as<uint64_t>(), buffer.num_bytes() / sizeof(uint64_t), uint64_t{1});
  const char* data = buffer.as<const char>();
  const bool wide = cpu_isa_available(CpuIsa::kAvx512);
  const ReadAll one = wide ? read_all<1, true> : read_all<1, false>;
  const ReadAll four = wide ? read_all<4, true> : read_all<4, false>;
  double best = 1e30;
  for (int attempt = 0; attempt < kReadTries; ++attempt) {
    for (const ReadPattern& pattern :
         {ReadPattern{one, 0}, {one, 2048}, {one, 4096}, {one, 8192}, {four, 1024}, {four, 4096}}) {
      std::atomic<int64_t> next{0};
      best =
          std::min(best, seconds_of(threads, [&](int) {
                     for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
                       pattern.read(data + i * kPiece, data + (i + 1) * kPiece, pattern.ahead);
                     }
                   }));
    }
  }
  return static_cast<double>(buffer.num_bytes()) / best / 1e9;
}

double measure_copy_gb_per_s(int threads, size_t num_bytes) {
  constexpr int64_t kPiece = 256 << 10;
  const int64_t pieces = std::max<int64_t>(static_cast<int64_t>(num_bytes) / kPiece / 2, threads);
  const Buffer from = Buffer::host(static_cast<size_t>(pieces * kPiece));
  Buffer to = Buffer::host(from.num_bytes());
  std::fill_n(from.as<uint64_t>(), from.num_bytes() / sizeof(uint64_t), uint64_t{1});
  std::fill_n(to.as<uint64_t>(), to.num_bytes() / sizeof(uint64_t), uint64_t{2});
  double best = 1e30;
  for (int attempt = 0; attempt < kReadTries; ++attempt) {
    std::atomic<int64_t> next{0};
    best = std::min(
        best, seconds_of(threads, [&](int) {
          for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
            const auto* src = reinterpret_cast<const __m128i*>(from.as<char>() + i * kPiece);
            auto* dst = reinterpret_cast<__m128i*>(to.as<char>() + i * kPiece);
            for (int64_t j = 0; j < kPiece / 16; ++j) {
              _mm_stream_si128(dst + j, _mm_load_si128(src + j));
            }
          }
          _mm_sfence();
        }));
  }
  return 2.0 * static_cast<double>(from.num_bytes()) / best / 1e9;
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
