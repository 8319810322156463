// e4m3 on vectors; inside the anonymous namespace of simd_avx2.inl and simd_avx512.inl.

// A float8's exponent and mantissa in a half's place are 2^-8 of its value, subnormals included.
constexpr float kFloat8HalfUnit = 0x1p8f;
// Adding this leaves multiples of 2^-9 in the low bits, rounded to nearest even.
constexpr float kFloat8Shift = 24576.0f;
constexpr int kFloat8SmallestNormal = 0x3c800000;       // 2^-6
constexpr int kFloat8LargestBits = 0x43e00000;          // 448
constexpr int kFloat8Rounding = 0x7ffff - (120 << 23);  // half a unit, and the other exponent bias

/// Sixteen float8 as halves of 2^-8 of their value; NaN stays NaN.
inline __m256i float8_halves(__m128i bytes) {
  const __m256i wide = _mm256_cvtepu8_epi16(bytes);
  const __m256i magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(0x7f), wide), 8);
  const __m256i is_nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
  return _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign), is_nan);
}
