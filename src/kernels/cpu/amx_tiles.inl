// The AMX tile registers of a thread. Inline assembly with fixed registers: GCC 12's intrinsics
// tell the compiler that ldtilecfg reads 8 of its 64 bytes and give tile loads no memory clobber,
// so that stores to the configuration and to packed tiles may be dropped. For kernels_amx.cc only.

#include <cstdint>

namespace caravan::cpu {
namespace {

/// Tiles 0-3: C; 4, 5: A, both with `rows` rows of 64 bytes; 6, 7: B, 16 rows of 64 bytes.
class AmxTiles {
 public:
  explicit AmxTiles(int rows) {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(Config) == 64);
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = 64;
      config.rows[tile] = tile < 6 ? static_cast<uint8_t>(rows) : 16;
    }
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
  ~AmxTiles() { asm volatile("tilerelease" ::: "memory"); }

  template <int kTile>
  [[gnu::always_inline]] void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  [[gnu::always_inline]] void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  /// load, with the hint that the lines need not stay in L1.
  template <int kTile>
  [[gnu::always_inline]] void load_streamed(const void* from, int64_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  [[gnu::always_inline]] void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  /// C += A B: pairs of bfloat16.
  template <int kC, int kA, int kB>
  [[gnu::always_inline]] void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};

}  // namespace
}  // namespace caravan::cpu
