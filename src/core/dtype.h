#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace caravan {

enum class DType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF8E4M3,  // 4 exponent and 3 mantissa bits, no infinity, largest 448: the KV cache alone
  kI64,
  kI32,
  kI16,
  kI8,
  kU8,
  kBool
};

/// Bytes of one element.
size_t dtype_size(DType dtype);

/// "float32", "float16", "bfloat16", ...: torch's spelling, used in flags, configs and messages.
const char* dtype_name(DType dtype);

/// Accepts torch's ("float16", "half") and safetensors' ("F16") spellings.
std::optional<DType> parse_dtype(std::string_view name);

/// True for the dtypes that weights may have: kF64, kF32, kF16, kBF16.
bool is_floating(DType dtype);

/// Round to nearest even, subnormals kept, overflow to infinity, NaN stays NaN (IEEE 754).
uint16_t f32_to_f16(float value);
float f16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);
float bf16_to_f32(uint16_t bits);
/// Round to nearest even; beyond 448 (infinity too) becomes 448, NaN stays NaN. Source:
/// Micikevicius et al. 2022, table 1; CUDA's __NV_SATFINITE.
uint8_t f32_to_f8e4m3(float value);
float f8e4m3_to_f32(uint8_t bits);

/// Element `i` of an array of `dtype` as float. Any DType; integers and bool convert by value.
float load_as_f32(const void* data, DType dtype, size_t i);

/// dst[i] = src[i] for i < count. src: any DType; dst: kF64, kF32, kF16, kBF16, kF8E4M3 or kI8
/// (rounded to nearest even and clamped to +-127; NaN becomes -127).
/// f64 goes through one rounding to f32 first. Errors: kUnsupported for another dst.
void convert_elements(const void* src, DType src_dtype, void* dst, DType dst_dtype, size_t count);
/// The same by all threads, for whole weights.
void convert_elements_in_parallel(const void* src, DType src_dtype, void* dst, DType dst_dtype,
                                  size_t count);

}  // namespace caravan
