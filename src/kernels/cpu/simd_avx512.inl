// F32x16 on AVX-512: one zmm register. For kernels_avx512.cc and kernels_amx.cc only, which are
// compiled for AVX-512; everything here has internal linkage, so no other program part can link it.

#include <immintrin.h>

#include "kernels/cpu/element_types.h"

namespace caravan::cpu {
namespace {

struct F64x16;

#include "kernels/cpu/float8.inl"

/// Sixteen float lanes. Every operation gives the same bits as the AVX2 version.
struct F32x16 {
  using Wide = F64x16;
  __m512 v;

  // Accumulator tile of the GEMM micro-kernel: 14 rows x 2 vectors are 28 of the 32 registers.
  static constexpr int kTileRows = 14;
  static constexpr int kTileVecs = 2;
  // Rows that leave registers for both vectors of a panel.
  static constexpr int kWideRows = 14;
  // Queries that share one load of K or V in attention.
  static constexpr int kQueryRows = 12;

  // Queries that share one load of K when scores are doubles.
  static constexpr int kWideQueryRows = 12;

  static F32x16 zero() { return {_mm512_setzero_ps()}; }
  static F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }

  static F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static F32x16 load(const Half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static F32x16 load(const BFloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F32x16 load(const Int8* p) {
    return widen_int8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F32x16 load(const Float8* p) {
    return widen_float8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  /// Lanes from `count` on are zero and their memory is not touched. 0 <= count <= 16.
  static F32x16 load(const float* p, int count) {
    return {_mm512_maskz_loadu_ps(lane_mask(count), p)};
  }
  static F32x16 load(const Half* p, int count) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lane_mask(count), p))};
  }
  static F32x16 load(const BFloat16* p, int count) {
    return widen(_mm256_maskz_loadu_epi16(lane_mask(count), p));
  }
  static F32x16 load(const Int8* p, int count) {
    return widen_int8(_mm_maskz_loadu_epi8(lane_mask(count), p));
  }
  static F32x16 load(const Float8* p, int count) {
    return widen_float8(_mm_maskz_loadu_epi8(lane_mask(count), p));
  }
  /// p: [16][2]. even gets p[.][0], odd p[.][1].
  static void load_pairs(const BFloat16* p, F32x16& even, F32x16& odd) {
    const __m512i pairs = _mm512_loadu_si512(p);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd.v = _mm512_castsi512_ps(
        _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(Half* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store(BFloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
  /// Rounded to nearest even and clamped to +-127; NaN becomes -127.
  void store(Int8* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), int8_bits()); }
  /// As f32_to_f8e4m3.
  void store(Float8* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), float8_bits()); }
  void store(Int8* p, int count) const { _mm_mask_storeu_epi8(p, lane_mask(count), int8_bits()); }
  void store(Float8* p, int count) const {
    _mm_mask_storeu_epi8(p, lane_mask(count), float8_bits());
  }
  void store(float* p, int count) const { _mm512_mask_storeu_ps(p, lane_mask(count), v); }
  void store(Half* p, int count) const {
    _mm256_mask_storeu_epi16(p, lane_mask(count),
                             _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store(BFloat16* p, int count) const {
    _mm256_mask_storeu_epi16(p, lane_mask(count), narrow(v));
  }

  friend F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
  /// a * b + c with one rounding.
  friend F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  /// c - a * b with one rounding.
  friend F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
  /// b where either operand is NaN.
  friend F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
  friend F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
  friend F32x16 round_even(F32x16 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  /// a * 2^n for whole n, by adding to the exponent: the result must be a normal number.
  friend F32x16 scale_by_pow2(F32x16 a, F32x16 n) {
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v),
                                                 _mm512_slli_epi32(_mm512_cvtps_epi32(n.v), 23)))};
  }
  friend F32x16 absolute(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
  /// |a| with the sign of b.
  friend F32x16 copy_sign(F32x16 a, F32x16 b) {
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    return {_mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(b.v), _mm512_castps_si512(a.v), 0xca))};
  }
  /// x < y ? a : b, lane by lane; b where x or y is NaN.
  friend F32x16 select_less(F32x16 x, F32x16 y, F32x16 a, F32x16 b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
  }
  /// Lanes below count from a, the others from b.
  friend F32x16 first_lanes(int count, F32x16 a, F32x16 b) {
    return {_mm512_mask_blend_ps(lane_mask(count), b.v, a.v)};
  }

  /// Sum of the lanes: halves added together, 16 -> 8 -> 4 -> 2 -> 1.
  float sum() const {
    const __m256 low = _mm512_castps512_ps256(v);
    const __m256 high = _mm512_extractf32x8_ps(v, 1);
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  /// Largest lane, by the same tree.
  float largest() const {
    const __m256 low = _mm512_castps512_ps256(v);
    const __m256 high = _mm512_extractf32x8_ps(v, 1);
    const __m256 eight = _mm256_max_ps(low, high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }

 private:
  static __mmask16 lane_mask(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
  static F32x16 widen_int8(__m128i bytes) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  }
  static F32x16 widen_float8(__m128i bytes) {
    return {_mm512_mul_ps(_mm512_cvtph_ps(float8_halves(bytes)), _mm512_set1_ps(kFloat8HalfUnit))};
  }
  __m128i int8_bits() const {
    const F32x16 clamped = min(max(*this, broadcast(-127.0f)), broadcast(127.0f));
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(clamped.v));
  }
  __m128i float8_bits() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
    __m512i result =
        _mm512_add_epi32(magnitude, _mm512_add_epi32(odd, _mm512_set1_epi32(kFloat8Rounding)));
    result = _mm512_min_epi32(_mm512_srli_epi32(result, 20), _mm512_set1_epi32(0x7e));
    const auto replace_where = [&](__mmask16 where, __m512i with) {
      result = _mm512_mask_blend_epi32(where, result, with);
    };
    replace_where(_mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(kFloat8SmallestNormal)),
                  _mm512_and_si512(_mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude),
                                                                     _mm512_set1_ps(kFloat8Shift))),
                                   _mm512_set1_epi32(0xf)));
    replace_where(_mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(kFloat8LargestBits)),
                  _mm512_set1_epi32(0x7e));
    replace_where(_mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000)),
                  _mm512_set1_epi32(0x7f));
    return _mm512_cvtepi32_epi8(_mm512_or_si512(result, sign));
  }
  static F32x16 widen(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  // Round to nearest even; a NaN keeps its upper bits and becomes quiet.
  static __m256i narrow(__m512 x) {
#ifdef __AVX512BF16__
    // For kernels_amx.cc: one instruction. It takes denormals as zero, as the tiles would.
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i chosen =
        _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), rounded, quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
#endif
  }
};

/// Sixteen double lanes.
struct F64x16 {
  __m512d lo;
  __m512d hi;

  static F64x16 zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
  static F64x16 broadcast(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
  static F64x16 widen(F32x16 a) {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))};
  }
  static F64x16 load(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
  void store(double* p) const {
    _mm512_storeu_pd(p, lo);
    _mm512_storeu_pd(p + 8, hi);
  }
  /// Rounded to nearest.
  F32x16 narrow() const {
    return {
        _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(lo)), _mm512_cvtpd_ps(hi), 1)};
  }

  friend F64x16 operator-(F64x16 a, F64x16 b) {
    return {_mm512_sub_pd(a.lo, b.lo), _mm512_sub_pd(a.hi, b.hi)};
  }
  friend F64x16 operator*(F64x16 a, F64x16 b) {
    return {_mm512_mul_pd(a.lo, b.lo), _mm512_mul_pd(a.hi, b.hi)};
  }
  friend F64x16 fma(F64x16 a, F64x16 b, F64x16 c) {
    return {_mm512_fmadd_pd(a.lo, b.lo, c.lo), _mm512_fmadd_pd(a.hi, b.hi, c.hi)};
  }
  /// b where either operand is NaN.
  friend F64x16 max(F64x16 a, F64x16 b) {
    return {_mm512_max_pd(a.lo, b.lo), _mm512_max_pd(a.hi, b.hi)};
  }
};

}  // namespace
}  // namespace caravan::cpu
