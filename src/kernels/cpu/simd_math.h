#pragma once

#include "core/op_params.h"
#include "kernels/cpu/element_types.h"

namespace caravan::cpu {

// Functions of sixteen lanes, templates over the vector type V (F32x16 of simd_avx2.inl or
// simd_avx512.inl). The same operations in the same order on both, so the same bits. Errors are
// relative, against exact values, over all floats; tests/conformance holds them.

/// e^x, 2 ulp. Below -87: 0. Above 88: infinity. NaN stays NaN.
template <class V>
[[gnu::always_inline]] inline V exponential(V x) {
  const V lowest = V::broadcast(-87.0f);
  const V highest = V::broadcast(88.0f);
  const V limited = max(lowest, min(highest, x));
  // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 is split so that n * high is exact.
  const V n = round_even(limited * V::broadcast(0x1.715476p+0f));
  const V r = fnma(n, V::broadcast(-0x1.05c61p-29f), fnma(n, V::broadcast(0x1.62e43p-1f), limited));
  // (e^r - 1 - r) / r^2, interpolated at Chebyshev nodes of |r| <= 0.347: error 1e-8.
  V poly = V::broadcast(0.0013926250830563615f);
  poly = fma(poly, r, V::broadcast(0.0083632328836783f));
  poly = fma(poly, r, V::broadcast(0.04166655421299355f));
  poly = fma(poly, r, V::broadcast(0.1666657666612001f));
  poly = fma(poly, r, V::broadcast(0.5f));
  const V power = fma(poly, r * r, r) + V::broadcast(1.0f);
  const V finite = select_less(x, lowest, V::zero(), scale_by_pow2(power, n));
  return select_less(highest, x, V::broadcast(__builtin_inff()), finite);
}

/// x times the normal distribution function: x/2 (1 + erf(x / sqrt 2)); 6 ulp, also where the
/// result is tiny.
template <class V>
[[gnu::always_inline]] inline V gelu_erf(V x) {
  // Phi(-a) = e^(-a^2/2) t P(t) with t = 1 / (1 + 0.3 a) for a = |x|: the factor beside the
  // exponential is smooth, P interpolates it at Chebyshev nodes of 0 <= a <= 13.5: error 5e-9.
  // Beyond 12.9 Phi(-a) is below 1e-37 and taken as zero: products with denormals take hundreds of
  // cycles.
  const V limit = V::broadcast(12.9f);
  const V a = min(limit, absolute(x));
  const V t = V::broadcast(1.0f) / fma(V::broadcast(0.3f), a, V::broadcast(1.0f));
  V poly = V::broadcast(-0.020857548320287734f);
  poly = fma(poly, t, V::broadcast(0.1137380471305658f));
  poly = fma(poly, t, V::broadcast(-0.23134566907823004f));
  poly = fma(poly, t, V::broadcast(0.19604524088215647f));
  poly = fma(poly, t, V::broadcast(-0.08302590997297926f));
  poly = fma(poly, t, V::broadcast(0.0981137704882545f));
  poly = fma(poly, t, V::broadcast(0.07770884978106632f));
  poly = fma(poly, t, V::broadcast(0.11038123239383998f));
  poly = fma(poly, t, V::broadcast(0.11955441549866266f));
  poly = fma(poly, t, V::broadcast(0.11968756945364034f));
  // a^2 = square + rest exactly; without the rest the exponential would be off by up to 100 ulp.
  const V square = a * a;
  const V rest = fma(a, a, V::zero() - square);
  const V half = V::broadcast(0.5f);
  const V e = exponential(V::zero() - half * square);
  const V tail = select_less(limit, absolute(x), V::zero(), fnma(half * rest, e, e) * (t * poly));
  return x * select_less(x, V::zero(), tail, V::broadcast(1.0f) - tail);
}

/// 1 / (1 + e^-x).
template <class V>
[[gnu::always_inline]] inline V sigmoid(V x) {
  return V::broadcast(1.0f) / (V::broadcast(1.0f) + exponential(V::zero() - x));
}

/// 3 ulp.
template <class V>
[[gnu::always_inline]] inline V hyperbolic_tangent(V x) {
  const V a = absolute(x);
  // (tanh(x) / x - 1) / x^2, interpolated at Chebyshev nodes of |x| <= 0.625: error 6e-10.
  const V square = x * x;
  V poly = V::broadcast(0.0022927449401041666f);
  poly = fma(poly, square, V::broadcast(-0.0083439456632487f));
  poly = fma(poly, square, V::broadcast(0.02176891871647537f));
  poly = fma(poly, square, V::broadcast(-0.053959259590425065f));
  poly = fma(poly, square, V::broadcast(0.13333303557031664f));
  poly = fma(poly, square, V::broadcast(-0.3333333317214349f));
  const V small = fma(poly * square, x, x);
  const V one = V::broadcast(1.0f);
  const V two = V::broadcast(2.0f);
  const V large = one - two / (exponential(two * a) + one);
  return select_less(a, V::broadcast(0.625f), small, copy_sign(large, x));
}

template <class V, Activation kActivation>
[[gnu::always_inline]] inline V activate(V x) {
  if constexpr (kActivation == Activation::kGelu) {
    return gelu_erf(x);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    // x/2 (1 + tanh u) = x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3).
    const V cubic = fma(V::broadcast(0.044715f) * x, x * x, x);
    return x * sigmoid(V::broadcast(1.5957691216057308f) * cubic);
  } else if constexpr (kActivation == Activation::kQuickGelu) {
    return x * sigmoid(V::broadcast(1.702f) * x);
  } else if constexpr (kActivation == Activation::kRelu) {
    return max(V::zero(), x);
  } else if constexpr (kActivation == Activation::kSilu) {
    return x * sigmoid(x);
  } else if constexpr (kActivation == Activation::kTanh) {
    return hyperbolic_tangent(x);
  } else {
    return x;
  }
}

}  // namespace caravan::cpu
