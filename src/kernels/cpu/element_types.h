#pragma once

#include <cstdint>

namespace caravan::cpu {

/// Storage of 16-bit floating-point elements, distinct types so that loads overload on them.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
/// Elements of a quantized KV cache, worth element * scale of their head.
struct Int8 {
  int8_t bits;
};
struct Float8 {  // e4m3
  uint8_t bits;
};

template <class E>
inline constexpr bool kIsQuantized = sizeof(E) == 1;

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t div_up(int64_t n, int64_t d) { return (n + d - 1) / d; }
static inline int64_t align_up(int64_t n, int64_t multiple) {
  return div_up(n, multiple) * multiple;
}

/// Part `index` of `parts` nearly equal parts of [0, total): where it begins.
static inline int64_t part_begin(int64_t total, int64_t parts, int64_t index) {
  return total / parts * index + min_of(index, total % parts);
}

}  // namespace caravan::cpu
