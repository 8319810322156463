#include "core/not_finite.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/error.h"

namespace caravan {

namespace {

constexpr size_t kBlock = 4096;

template <typename T>
T load(const void* data, size_t i) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + i * sizeof(value), sizeof(value));
  return value;
}

// Bits without the sign order magnitudes, infinity and NaN above all. A maximum without a branch,
// so that it runs as vectors.
template <typename T>
std::optional<size_t> first_from(const void* data, size_t count, T limit) {
  constexpr T kMagnitude = std::numeric_limits<T>::max();
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t end = std::min(count, begin + kBlock);
    T largest = 0;
    for (size_t i = begin; i < end; ++i) {
      largest = std::max<T>(largest, static_cast<T>(load<T>(data, i) & kMagnitude));
    }
    if (largest < limit) continue;
    for (size_t i = begin; i < end; ++i) {
      if (static_cast<T>(load<T>(data, i) & kMagnitude) >= limit) return i;
    }
  }
  return std::nullopt;
}

// The least float32 that becomes infinite: conversion rounds to nearest even.
int32_t least_infinite(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0x7f800000;
    case DType::kF16:
      return 0x477ff000;  // 65520
    case DType::kBF16:
      return 0x7f7f8000;
    default:
      CARAVAN_FAIL(kUnsupported, "cannot convert weights to {}", dtype_name(dtype));
  }
}

}  // namespace

std::optional<size_t> first_not_finite(const void* src, DType src_dtype, DType dst_dtype,
                                       size_t count) {
  const int32_t limit = least_infinite(dst_dtype);
  switch (src_dtype) {
    case DType::kF32:
      return first_from<int32_t>(src, count, limit);
    case DType::kF16:
      return first_from<int16_t>(src, count, 0x7c00);
    case DType::kBF16:
      // The upper half of a float32: the least that is not below the limit.
      return first_from<int16_t>(src, count, static_cast<int16_t>((limit + 0xffff) >> 16));
    case DType::kF64:
      for (size_t i = 0; i < count; ++i) {
        const auto value = static_cast<float>(load<double>(src, i));
        if ((load<int32_t>(&value, 0) & 0x7fffffff) >= limit) return i;
      }
      return std::nullopt;
    default:
      CARAVAN_FAIL(kUnsupported, "weights of {} have no infinities", dtype_name(src_dtype));
  }
}

}  // namespace caravan
