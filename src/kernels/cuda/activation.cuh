#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/op_params.h"

// The activations of every linear kernel. Rounding is spelled out (__fmaf_rn, __fmul_rn, __fadd_rn)
// so that the compiler cannot contract an expression in one kernel and not in another: kernels that
// share a weight must agree in every bit.

namespace caravan::cuda {

// ---- pieces ----

/// 2^x, relative error 2^-22; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// 1/x, one ulp; 0 for |x| > 2^126.
__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// fminf and fmaxf drop a NaN; these keep it.
__device__ __forceinline__ float min_nan(float a, float b) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
__device__ __forceinline__ float max_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

/// log2 Phi(-t) for 0 <= t <= kMax as a polynomial, Phi being the normal distribution function.
/// Minimax (Remez), so that Phi has a small relative error everywhere, the tail included.
template <typename T>
struct LogPhi;
/// Error of Phi 1.1e-5 for t < 4, below 1.1e-3 where t Phi(-t) is subnormal; 0 after kMax.
template <>
struct LogPhi<__half> {
  static constexpr float kMax = 5.8f;
  static __device__ __forceinline__ float at(float t) {
    float p = 2.96154461e-5f;
    p = __fmaf_rn(p, t, -0.000712016052f);
    p = __fmaf_rn(p, t, 0.00776718016f);
    p = __fmaf_rn(p, t, -0.0526649521f);
    p = __fmaf_rn(p, t, -0.45955574f);
    p = __fmaf_rn(p, t, -1.15089657f);
    return __fmaf_rn(p, t, -1.00001566f);
  }
};
/// Error of Phi 1.3e-4 (bfloat16's half ulp: 2e-3 and more) until the result is about 1e-37.
template <>
struct LogPhi<__nv_bfloat16> {
  static constexpr float kMax = 13.2f;
  static __device__ __forceinline__ float at(float t) {
    float p = 2.71628181e-8f;
    p = __fmaf_rn(p, t, -1.73124431e-6f);
    p = __fmaf_rn(p, t, 4.75496818e-5f);
    p = __fmaf_rn(p, t, -0.00074348614f);
    p = __fmaf_rn(p, t, 0.00741628642f);
    p = __fmaf_rn(p, t, -0.050794879f);
    p = __fmaf_rn(p, t, -0.462790279f);
    p = __fmaf_rn(p, t, -1.14903559f);
    return __fmaf_rn(p, t, -1.00018383f);
  }
};

/// x Phi(x) = max(x, 0) - |x| Phi(-|x|): 9 instructions and one MUFU for float16, where
/// x/2 (1 + erff(x / sqrt 2)) takes about 30 and cancels for negative x.
template <typename T>
__device__ __forceinline__ float gelu_16bit(float x) {
  const float t = min_nan(fabsf(x), LogPhi<T>::kMax);
  return __fmaf_rn(-t, exp2_approx(LogPhi<T>::at(t)), max_nan(x, 0.0f));
}

/// x sigmoid(z / log2 e).
__device__ __forceinline__ float sigmoid_gate(float x, float z) {
  return __fmul_rn(x, reciprocal_approx(__fadd_rn(1.0f, exp2_approx(-z))));
}

/// Relative error 1e-5: below 1/2 the series, above it 1 - 2 / (1 + e^2|x|).
__device__ __forceinline__ float tanh_16bit(float x) {
  const float s = __fmul_rn(x, x);
  float p = __fmaf_rn(s, 62.0f / 2835.0f, -17.0f / 315.0f);
  p = __fmaf_rn(s, p, 2.0f / 15.0f);
  p = __fmaf_rn(s, p, -1.0f / 3.0f);
  const float small = __fmaf_rn(__fmul_rn(s, x), p, x);
  const float e = exp2_approx(__fmul_rn(fabsf(x), 2.88539008f));  // 2 log2 e
  const float large = __fmaf_rn(-2.0f, reciprocal_approx(__fadd_rn(1.0f, e)), 1.0f);
  return fabsf(x) < 0.5f ? small : copysignf(large, x);
}

// ---- the activations ----

/// For outputs that are rounded to T, __half or __nv_bfloat16, afterwards: relative error below
/// 1/15 of T's half ulp, NaN kept.
template <typename T>
__device__ __forceinline__ float activate_16bit(float x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu:
      return gelu_16bit<T>(x);
    case Activation::kGeluTanh:  // 2 sqrt(2/pi) log2 e, and that times 0.044715
      return sigmoid_gate(x, __fmul_rn(x, __fmaf_rn(0.102943240f, __fmul_rn(x, x), 2.30220820f)));
    case Activation::kQuickGelu:  // 1.702 log2 e
      return sigmoid_gate(x, __fmul_rn(x, 2.45546696f));
    case Activation::kRelu:
      return max_nan(x, 0.0f);
    case Activation::kSilu:  // log2 e
      return sigmoid_gate(x, __fmul_rn(x, 1.44269504f));
    case Activation::kTanh:
      return tanh_16bit(x);
  }
  return x;
}

/// For float32 outputs: a few ulps, and what the rounding of an exponential's argument costs far
/// down the tails.
__device__ __forceinline__ float activate_f32(float x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu: {  // erfc keeps the relative accuracy of negative x
      const float z = __fmul_rn(x, -0.707106769f);
      float e = erfcf(z);
      if (z > 0.0f) {  // what z lost in rounding: erfc' / erfc is about -2z
        const float lost = __fmaf_rn(-x, 1.21016175e-8f, __fmaf_rn(-x, 0.707106769f, -z));
        e = __fmaf_rn(__fmul_rn(__fmul_rn(-2.0f, z), lost), e, e);
      }
      return __fmul_rn(__fmul_rn(0.5f, x), e);
    }
    case Activation::kGeluTanh: {  // 2 sqrt(2/pi), and that times 0.044715
      const float z = __fmul_rn(x, __fmaf_rn(0.0713548163f, __fmul_rn(x, x), 1.59576912f));
      return __fdiv_rn(x, __fadd_rn(1.0f, expf(-z)));
    }
    case Activation::kQuickGelu:
      return __fdiv_rn(x, __fadd_rn(1.0f, expf(__fmul_rn(-1.702f, x))));
    case Activation::kRelu:
      return max_nan(x, 0.0f);
    case Activation::kSilu:
      return __fdiv_rn(x, __fadd_rn(1.0f, expf(-x)));
    case Activation::kTanh:
      return tanhf(x);
  }
  return x;
}

/// The one for results that are stored as Out: T is the 16-bit dtype of the weights.
template <typename T, typename Out>
__device__ __forceinline__ float activate_for(float x, Activation activation) {
  if constexpr (sizeof(Out) == 4) {
    return activate_f32(x, activation);
  } else {
    return activate_16bit<T>(x, activation);
  }
}

}  // namespace caravan::cuda
