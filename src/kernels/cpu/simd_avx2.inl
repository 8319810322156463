// F32x16 on AVX2, FMA and F16C: two ymm registers. For kernels_avx2.cc only, which is compiled for
// AVX2; everything here has internal linkage, so no other program part can link it.

#include <immintrin.h>

#include "kernels/cpu/element_types.h"

namespace caravan::cpu {
namespace {

struct F64x16;

#include "kernels/cpu/float8.inl"

/// Sixteen float lanes. Every operation gives the same bits as the AVX-512 version.
struct F32x16 {
  using Wide = F64x16;
  __m256 lo;
  __m256 hi;

  // Accumulator tile of the GEMM micro-kernel: 6 rows x 1 vector are 12 of the 16 registers.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVecs = 1;
  // Rows that leave registers for both vectors of a panel: 2 rows x 2 vectors are 8.
  static constexpr int kWideRows = 2;
  // Queries that share one load of K or V in attention.
  static constexpr int kQueryRows = 6;

  // Queries that share one load of K when scores are doubles: 2 rows x 4 registers.
  static constexpr int kWideQueryRows = 2;

  static F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F32x16 broadcast(float x) {
    const __m256 all = _mm256_set1_ps(x);
    return {all, all};
  }

  static F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F32x16 load(const Half* p) {
    const __m128i* from = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))};
  }
  static F32x16 load(const BFloat16* p) {
    const __m128i* from = reinterpret_cast<const __m128i*>(p);
    return {widen(_mm_loadu_si128(from)), widen(_mm_loadu_si128(from + 1))};
  }
  static F32x16 load(const Int8* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  static F32x16 load(const Float8* p) {
    const __m256i halves = float8_halves(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256 unit = _mm256_set1_ps(kFloat8HalfUnit);
    return {_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), unit),
            _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)), unit)};
  }
  /// Lanes from `count` on are zero and their memory is not touched. 0 <= count <= 16.
  static F32x16 load(const float* p, int count) {
    return {_mm256_maskload_ps(p, lane_mask(count)),
            count > 8 ? _mm256_maskload_ps(p + 8, lane_mask(count - 8)) : _mm256_setzero_ps()};
  }
  template <typename T>
  static F32x16 load(const T* p, int count) {
    T lanes[16] = {};
    __builtin_memcpy(lanes, p, static_cast<unsigned>(count) * sizeof(T));
    return load(lanes);
  }
  /// p: [16][2]. even gets p[.][0], odd p[.][1].
  static void load_pairs(const BFloat16* p, F32x16& even, F32x16& odd) {
    const __m256i* from = reinterpret_cast<const __m256i*>(p);
    const __m256i low = _mm256_loadu_si256(from);
    const __m256i high = _mm256_loadu_si256(from + 1);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    even.lo = _mm256_castsi256_ps(_mm256_slli_epi32(low, 16));
    even.hi = _mm256_castsi256_ps(_mm256_slli_epi32(high, 16));
    odd.lo = _mm256_castsi256_ps(_mm256_and_si256(low, upper));
    odd.hi = _mm256_castsi256_ps(_mm256_and_si256(high, upper));
  }

  void store(float* p) const {
    _mm256_storeu_ps(p, lo);
    _mm256_storeu_ps(p + 8, hi);
  }
  void store(Half* p) const {
    __m128i* to = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(to, _mm256_cvtps_ph(lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(to + 1, _mm256_cvtps_ph(hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store(BFloat16* p) const {
    __m128i* to = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(to, narrow(lo));
    _mm_storeu_si128(to + 1, narrow(hi));
  }
  /// Rounded to nearest even and clamped to +-127; NaN becomes -127.
  void store(Int8* p) const {
    const F32x16 clamped = min(max(*this, broadcast(-127.0f)), broadcast(127.0f));
    const __m256i low = _mm256_cvtps_epi32(clamped.lo);
    const __m256i high = _mm256_cvtps_epi32(clamped.hi);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), join_bytes(low, high));
  }
  /// As f32_to_f8e4m3.
  void store(Float8* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), join_bytes(float8_bits(lo), float8_bits(hi)));
  }
  void store(float* p, int count) const {
    _mm256_maskstore_ps(p, lane_mask(count), lo);
    if (count > 8) _mm256_maskstore_ps(p + 8, lane_mask(count - 8), hi);
  }
  template <typename T>
  void store(T* p, int count) const {
    T lanes[16];
    store(lanes);
    __builtin_memcpy(p, lanes, static_cast<unsigned>(count) * sizeof(T));
  }

  friend F32x16 operator+(F32x16 a, F32x16 b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
  }
  friend F32x16 operator-(F32x16 a, F32x16 b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
  }
  friend F32x16 operator*(F32x16 a, F32x16 b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
  }
  friend F32x16 operator/(F32x16 a, F32x16 b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
  }
  /// a * b + c with one rounding.
  friend F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  /// c - a * b with one rounding.
  friend F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
  }
  /// b where either operand is NaN.
  friend F32x16 max(F32x16 a, F32x16 b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
  }
  friend F32x16 min(F32x16 a, F32x16 b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
  }
  friend F32x16 round_even(F32x16 a) {
    return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  /// a * 2^n for whole n, by adding to the exponent: the result must be a normal number.
  friend F32x16 scale_by_pow2(F32x16 a, F32x16 n) {
    return {scale_half(a.lo, n.lo), scale_half(a.hi, n.hi)};
  }
  friend F32x16 absolute(F32x16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
  }
  /// |a| with the sign of b.
  friend F32x16 copy_sign(F32x16 a, F32x16 b) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(sign, a.lo), _mm256_and_ps(sign, b.lo)),
            _mm256_or_ps(_mm256_andnot_ps(sign, a.hi), _mm256_and_ps(sign, b.hi))};
  }
  /// x < y ? a : b, lane by lane; b where x or y is NaN.
  friend F32x16 select_less(F32x16 x, F32x16 y, F32x16 a, F32x16 b) {
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_LT_OQ))};
  }
  /// Lanes below count from a, the others from b.
  friend F32x16 first_lanes(int count, F32x16 a, F32x16 b) {
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(lane_mask(count))),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(lane_mask(count - 8)))};
  }

  /// Sum of the lanes: halves added together, 16 -> 8 -> 4 -> 2 -> 1.
  float sum() const {
    const __m256 eight = _mm256_add_ps(lo, hi);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  /// Largest lane, by the same tree.
  float largest() const {
    const __m256 eight = _mm256_max_ps(lo, hi);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }

 private:
  // The low bytes of sixteen integers that fit into int8, or of bytes 0..255 as signed ones.
  static __m128i join_bytes(__m256i low, __m256i high) {
    const __m256i mask = _mm256_set1_epi32(0xff);
    low = _mm256_and_si256(low, mask);
    high = _mm256_and_si256(high, mask);
    const __m128i a =
        _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    const __m128i b =
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    return _mm_packus_epi16(a, b);
  }
  static __m256i float8_bits(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    __m256i normal =
        _mm256_add_epi32(magnitude, _mm256_add_epi32(odd, _mm256_set1_epi32(kFloat8Rounding)));
    normal = _mm256_min_epi32(_mm256_srli_epi32(normal, 20), _mm256_set1_epi32(0x7e));
    const __m256i small =
        _mm256_and_si256(_mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude),
                                                           _mm256_set1_ps(kFloat8Shift))),
                         _mm256_set1_epi32(0xf));
    const auto choose = [](__m256i is_first, __m256i first, __m256i second) {
      return _mm256_blendv_epi8(second, first, is_first);
    };
    __m256i result =
        choose(_mm256_cmpgt_epi32(_mm256_set1_epi32(kFloat8SmallestNormal), magnitude), small,
               choose(_mm256_cmpgt_epi32(_mm256_set1_epi32(kFloat8LargestBits), magnitude), normal,
                      _mm256_set1_epi32(0x7e)));
    result = choose(_mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000)),
                    _mm256_set1_epi32(0x7f), result);
    return _mm256_or_si256(result, sign);
  }
  // Lanes below count have all bits set; count may be negative or above 8.
  static __m256i lane_mask(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m256 scale_half(__m256 a, __m256 n) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
  }
  static __m256 widen(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  // Round to nearest even by integer arithmetic; a NaN keeps its upper bits and becomes quiet.
  static __m128i narrow(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i chosen =
        _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    const __m256i upper = _mm256_srli_epi32(chosen, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }
};

/// Sixteen double lanes.
struct F64x16 {
  __m256d v[4];

  static F64x16 zero() { return broadcast(0.0); }
  static F64x16 broadcast(double x) {
    const __m256d all = _mm256_set1_pd(x);
    return {{all, all, all, all}};
  }
  static F64x16 widen(F32x16 a) {
    return {{_mm256_cvtps_pd(_mm256_castps256_ps128(a.lo)),
             _mm256_cvtps_pd(_mm256_extractf128_ps(a.lo, 1)),
             _mm256_cvtps_pd(_mm256_castps256_ps128(a.hi)),
             _mm256_cvtps_pd(_mm256_extractf128_ps(a.hi, 1))}};
  }
  static F64x16 load(const double* p) {
    return {{_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4), _mm256_loadu_pd(p + 8),
             _mm256_loadu_pd(p + 12)}};
  }
  void store(double* p) const {
    _mm256_storeu_pd(p, v[0]);
    _mm256_storeu_pd(p + 4, v[1]);
    _mm256_storeu_pd(p + 8, v[2]);
    _mm256_storeu_pd(p + 12, v[3]);
  }
  /// Rounded to nearest.
  F32x16 narrow() const {
    return {_mm256_set_m128(_mm256_cvtpd_ps(v[1]), _mm256_cvtpd_ps(v[0])),
            _mm256_set_m128(_mm256_cvtpd_ps(v[3]), _mm256_cvtpd_ps(v[2]))};
  }

  friend F64x16 operator-(F64x16 a, F64x16 b) {
    return {{_mm256_sub_pd(a.v[0], b.v[0]), _mm256_sub_pd(a.v[1], b.v[1]),
             _mm256_sub_pd(a.v[2], b.v[2]), _mm256_sub_pd(a.v[3], b.v[3])}};
  }
  friend F64x16 operator*(F64x16 a, F64x16 b) {
    return {{_mm256_mul_pd(a.v[0], b.v[0]), _mm256_mul_pd(a.v[1], b.v[1]),
             _mm256_mul_pd(a.v[2], b.v[2]), _mm256_mul_pd(a.v[3], b.v[3])}};
  }
  friend F64x16 fma(F64x16 a, F64x16 b, F64x16 c) {
    return {{_mm256_fmadd_pd(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_pd(a.v[1], b.v[1], c.v[1]),
             _mm256_fmadd_pd(a.v[2], b.v[2], c.v[2]), _mm256_fmadd_pd(a.v[3], b.v[3], c.v[3])}};
  }
  /// b where either operand is NaN.
  friend F64x16 max(F64x16 a, F64x16 b) {
    return {{_mm256_max_pd(a.v[0], b.v[0]), _mm256_max_pd(a.v[1], b.v[1]),
             _mm256_max_pd(a.v[2], b.v[2]), _mm256_max_pd(a.v[3], b.v[3])}};
  }
};

}  // namespace
}  // namespace caravan::cpu
