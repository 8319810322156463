#include "core/dtype.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"

namespace caravan {

size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
      return 2;
    case DType::kF8E4M3:
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
      return 1;
  }
  return 0;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return "float64";
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF8E4M3:
      return "float8_e4m3fn";
    case DType::kI64:
      return "int64";
    case DType::kI32:
      return "int32";
    case DType::kI16:
      return "int16";
    case DType::kI8:
      return "int8";
    case DType::kU8:
      return "uint8";
    case DType::kBool:
      return "bool";
  }
  return "?";
}

std::optional<DType> parse_dtype(std::string_view name) {
  if (name == "float64" || name == "double" || name == "F64") return DType::kF64;
  if (name == "float32" || name == "float" || name == "fp32" || name == "F32") return DType::kF32;
  if (name == "float16" || name == "half" || name == "fp16" || name == "F16") return DType::kF16;
  if (name == "bfloat16" || name == "bf16" || name == "BF16") return DType::kBF16;
  if (name == "float8_e4m3fn" || name == "fp8" || name == "fp8_e4m3" || name == "F8_E4M3") {
    return DType::kF8E4M3;
  }
  if (name == "int64" || name == "long" || name == "I64") return DType::kI64;
  if (name == "int32" || name == "int" || name == "I32") return DType::kI32;
  if (name == "int16" || name == "short" || name == "I16") return DType::kI16;
  if (name == "int8" || name == "I8") return DType::kI8;
  if (name == "uint8" || name == "U8") return DType::kU8;
  if (name == "bool" || name == "BOOL") return DType::kBool;
  return std::nullopt;
}

bool is_floating(DType dtype) {
  return dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kF16 ||
         dtype == DType::kBF16;
}

uint16_t f32_to_f16(float value) {
  uint32_t x;
  std::memcpy(&x, &value, 4);
  const uint32_t sign = (x >> 16) & 0x8000u;
  x &= 0x7fffffffu;
  if (x > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((x >> 13) & 0x1ffu));
  if (x >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds past 65504
  if (x < 0x38800000u) {                                               // subnormal or zero
    if (x < 0x33000000u) return static_cast<uint16_t>(sign);
    const uint32_t exponent = x >> 23;
    const uint32_t mantissa = (x & 0x7fffffu) | 0x800000u;
    const uint32_t shift = 126 - exponent;  // 14..24
    const uint32_t kept = mantissa >> shift;
    const uint32_t rest = mantissa & ((1u << shift) - 1);
    const uint32_t half = 1u << (shift - 1);
    const uint32_t up = (rest > half || (rest == half && (kept & 1u))) ? 1u : 0u;
    return static_cast<uint16_t>(sign | (kept + up));
  }
  const uint32_t odd = (x >> 13) & 1u;
  x += 0xfffu + odd - (112u << 23);
  return static_cast<uint16_t>(sign | (x >> 13));
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = (static_cast<uint32_t>(bits) & 0x8000u) << 16;
  uint32_t exponent = (bits >> 10) & 0x1fu;
  uint32_t mantissa = bits & 0x3ffu;
  uint32_t x;
  if (exponent == 0x1f) {
    x = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    x = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else if (mantissa == 0) {
    x = sign;
  } else {
    exponent = 113;
    while ((mantissa & 0x400u) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    x = sign | (exponent << 23) | ((mantissa & 0x3ffu) << 13);
  }
  float value;
  std::memcpy(&value, &x, 4);
  return value;
}

uint16_t f32_to_bf16(float value) {
  uint32_t x;
  std::memcpy(&x, &value, 4);
  if ((x & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((x >> 16) | 0x40u);
  x += 0x7fffu + ((x >> 16) & 1u);
  return static_cast<uint16_t>(x >> 16);
}

float bf16_to_f32(uint16_t bits) {
  const uint32_t x = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &x, 4);
  return value;
}

uint8_t f32_to_f8e4m3(float value) {
  uint32_t x;
  std::memcpy(&x, &value, 4);
  const auto sign = static_cast<uint8_t>((x >> 24) & 0x80u);
  x &= 0x7fffffffu;
  if (x > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (x >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448 and more
  if (x < 0x3c800000u) {                                            // subnormal: multiples of 2^-9
    float magnitude;
    std::memcpy(&magnitude, &x, 4);
    // Adding 1.5 * 2^14 leaves multiples of 2^-9, rounded to nearest even.
    const float shifted = magnitude + 24576.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return static_cast<uint8_t>(sign | (bits & 0xfu));
  }
  const uint32_t odd = (x >> 20) & 1u;
  x += 0x7ffffu + odd - (120u << 23);
  return static_cast<uint8_t>(sign | std::min(x >> 20, 0x7eu));
}

float f8e4m3_to_f32(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7fu;
  // Exponent and mantissa in a float's place, 2^-120 too small: exact, subnormals included.
  uint32_t x = magnitude << 20;
  float value;
  std::memcpy(&value, &x, 4);
  value *= 0x1p120f;
  std::memcpy(&x, &value, 4);
  if (magnitude == 0x7fu) x = 0x7fc00000u;
  x |= static_cast<uint32_t>(bits & 0x80u) << 24;
  std::memcpy(&value, &x, 4);
  return value;
}

namespace {

template <typename T>
T load(const void* data, size_t i) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + i * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

float load_as_f32(const void* data, DType dtype, size_t i) {
  switch (dtype) {
    case DType::kF64:
      return static_cast<float>(load<double>(data, i));
    case DType::kF32:
      return load<float>(data, i);
    case DType::kF16:
      return f16_to_f32(load<uint16_t>(data, i));
    case DType::kBF16:
      return bf16_to_f32(load<uint16_t>(data, i));
    case DType::kF8E4M3:
      return f8e4m3_to_f32(load<uint8_t>(data, i));
    case DType::kI64:
      return static_cast<float>(load<int64_t>(data, i));
    case DType::kI32:
      return static_cast<float>(load<int32_t>(data, i));
    case DType::kI16:
      return static_cast<float>(load<int16_t>(data, i));
    case DType::kI8:
      return static_cast<float>(load<int8_t>(data, i));
    case DType::kU8:
      return static_cast<float>(load<uint8_t>(data, i));
    case DType::kBool:
      return load<uint8_t>(data, i) != 0 ? 1.0f : 0.0f;
  }
  return 0.0f;
}

void convert_elements(const void* src, DType src_dtype, void* dst, DType dst_dtype, size_t count) {
  if (src_dtype == dst_dtype) {
    if (count != 0) std::memcpy(dst, src, count * dtype_size(src_dtype));
    return;
  }
  auto* out = static_cast<char*>(dst);
  const auto store = [&](size_t i, auto value) {
    std::memcpy(out + i * sizeof(value), &value, sizeof(value));
  };
  switch (dst_dtype) {
    case DType::kF64:
      for (size_t i = 0; i < count; ++i) {
        store(i, static_cast<double>(load_as_f32(src, src_dtype, i)));
      }
      return;
    case DType::kF32:
      for (size_t i = 0; i < count; ++i) store(i, load_as_f32(src, src_dtype, i));
      return;
    case DType::kF16:
      for (size_t i = 0; i < count; ++i) store(i, f32_to_f16(load_as_f32(src, src_dtype, i)));
      return;
    case DType::kBF16:
      for (size_t i = 0; i < count; ++i) store(i, f32_to_bf16(load_as_f32(src, src_dtype, i)));
      return;
    case DType::kF8E4M3:
      for (size_t i = 0; i < count; ++i) store(i, f32_to_f8e4m3(load_as_f32(src, src_dtype, i)));
      return;
    case DType::kI8:
      for (size_t i = 0; i < count; ++i) {
        const float rounded = std::nearbyint(load_as_f32(src, src_dtype, i));
        store(i, static_cast<int8_t>(rounded > -127.0f ? std::min(rounded, 127.0f) : -127.0f));
      }
      return;
    default:
      CARAVAN_FAIL(kUnsupported, "cannot convert to {}", dtype_name(dst_dtype));
  }
}

void convert_elements_in_parallel(const void* src, DType src_dtype, void* dst, DType dst_dtype,
                                  size_t count) {
  constexpr size_t kPiece = size_t{1} << 20;
  const auto pieces = static_cast<int64_t>((count + kPiece - 1) / kPiece);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < pieces; ++i) {
    const size_t begin = static_cast<size_t>(i) * kPiece;
    convert_elements(static_cast<const std::byte*>(src) + begin * dtype_size(src_dtype), src_dtype,
                     static_cast<std::byte*>(dst) + begin * dtype_size(dst_dtype), dst_dtype,
                     std::min(kPiece, count - begin));
  }
}

}  // namespace caravan
