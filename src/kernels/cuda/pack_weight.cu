#include <algorithm>
#include <type_traits>

#include "core/linear_layout.h"
#include "core/tensor.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/kv_element.cuh"
#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {

namespace {

constexpr int kThreads = 256;

struct PackParams {
  int64_t in_features;
  int64_t out_features;
  const void* src;
  void* dst;
  bool is_vector;  // rows of src are whole 16-byte vectors
};

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Same dtype: the bits, NaN payloads included.
template <typename Dst, typename Src>
__device__ __forceinline__ Dst convert(Src value) {
  if constexpr (std::is_same_v<Dst, Src>) {
    return value;
  } else {
    return from_float<Dst>(to_float(value));
  }
}

template <typename Src>
__device__ __forceinline__ void load_8(const Src* p, int valid, bool is_vector, Src (&values)[8]) {
  if (is_vector && valid >= 8) {
    constexpr int kWords = static_cast<int>(sizeof(Src)) / 2;
    uint4 words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = __ldcs(reinterpret_cast<const uint4*>(p) + i);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = reinterpret_cast<const Src*>(words)[i];
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = i < valid ? p[i] : from_float<Src>(0.0f);
  }
}

template <typename Dst, typename Src>
__device__ __forceinline__ void store_8(const Src (&values)[8], Dst* p) {
  constexpr int kWords = static_cast<int>(sizeof(Dst)) / 2;
  uint4 words[kWords];
#pragma unroll
  for (int i = 0; i < 8; ++i) reinterpret_cast<Dst*>(words)[i] = convert<Dst>(values[i]);
#pragma unroll
  for (int i = 0; i < kWords; ++i) reinterpret_cast<uint4*>(p)[i] = words[i];
}

// [out, in] -> kCore8x8. A thread moves eight k values of one output; threads follow dst, so its
// stores are contiguous and a warp reads 64 (float32: 128) contiguous bytes of eight rows.
template <typename Src, typename Dst>
__global__ void __launch_bounds__(kThreads) pack_weight_out_in_kernel(const PackParams p) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t chunks_per_row = (p.in_features + kCoreInMultiple - 1) / kCoreInMultiple * 8;
  const int64_t num_chunks = (p.out_features + kCoreOutMultiple - 1) / kCoreOutMultiple *
                             kCoreOutMultiple * chunks_per_row;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_chunks;
       i += step) {
    const int64_t n = i / (8 * chunks_per_row) * 8 + i % 8;
    const int64_t k = i / 8 % chunks_per_row * 8;
    const int64_t valid = n < p.out_features ? p.in_features - k : 0;
    Src values[8];
    load_8(static_cast<const Src*>(p.src) + n * p.in_features + k,
           static_cast<int>(max(min(valid, int64_t{8}), int64_t{0})), p.is_vector, values);
    store_8(values, static_cast<Dst*>(p.dst) + i * 8);
  }
}

// [in, out] -> kCore8x8 (16 bits) or [out, in] (float32), a tile of 64 x 64 at a time through
// shared memory. The pitch makes the transposing reads free of bank conflicts: for 16 bits a warp
// reads eight columns (four words) of rows 8 apart, 8 * 33 words = 8 banks.
constexpr int kTile = 64;
template <typename Src, typename Dst>
__global__ void __launch_bounds__(kThreads) pack_weight_in_out_kernel(const PackParams p) {
  constexpr int kPitch = kTile + (sizeof(Dst) == 2 ? 2 : 1);
  constexpr int kWords = 8 * static_cast<int>(sizeof(Dst)) / 4;
  __shared__ alignas(16) Dst tile[kTile * kPitch];
  pdl_launch_dependents();
  pdl_wait();
  const int64_t k0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kTile;
#pragma unroll
  for (int part = 0; part < kTile * kTile / 8 / kThreads; ++part) {
    const int i = part * kThreads + static_cast<int>(threadIdx.x);
    const int k = i / (kTile / 8);
    const int n = i % (kTile / 8) * 8;
    const int64_t valid = k0 + k < p.in_features ? p.out_features - (n0 + n) : 0;
    Src values[8];
    load_8(static_cast<const Src*>(p.src) + (k0 + k) * p.out_features + n0 + n,
           static_cast<int>(max(min(valid, int64_t{8}), int64_t{0})), p.is_vector, values);
    Dst converted[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) converted[j] = convert<Dst>(values[j]);
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      reinterpret_cast<uint32_t*>(tile + k * kPitch + n)[j] =
          reinterpret_cast<const uint32_t*>(converted)[j];
    }
  }
  __syncthreads();
  if constexpr (sizeof(Dst) == 2) {
    const int64_t chunks_per_row = (p.in_features + kCoreInMultiple - 1) / kCoreInMultiple * 8;
#pragma unroll
    for (int part = 0; part < kTile * kTile / 8 / kThreads; ++part) {
      const int i = part * kThreads + static_cast<int>(threadIdx.x);
      const int strip = i / kTile;
      const int chunk = i / 8 % 8;
      const int n = strip * 8 + i % 8;
      Dst values[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = tile[(chunk * 8 + j) * kPitch + n];
      store_8(values, static_cast<Dst*>(p.dst) +
                          ((n0 / 8 + strip) * chunks_per_row + k0 / 8 + chunk) * 64 + i % 8 * 8);
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kThreads) {
      const int k = i % kTile;
      const int n = i / kTile;
      if (k0 + k < p.in_features && n0 + n < p.out_features) {
        static_cast<Dst*>(p.dst)[(n0 + n) * p.in_features + k0 + k] = tile[k * kPitch + n];
      }
    }
  }
}

// [out, in] -> [out, in] of float32.
template <typename Src>
__global__ void __launch_bounds__(kThreads) pack_weight_convert_kernel(const PackParams p) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t count = p.in_features * p.out_features;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    static_cast<float*>(p.dst)[i] = to_float(static_cast<const Src*>(p.src)[i]);
  }
}

template <typename Src, typename Dst>
void launch_pack(const PackWeightArgs& args, const LaunchContext& context) {
  const int64_t row = args.is_in_out ? args.out_features : args.in_features;
  const PackParams params{
      args.in_features, args.out_features, args.src, args.dst,
      row % (16 / static_cast<int64_t>(sizeof(Src))) == 0 && is_aligned(args.src)};
  const dim3 persistent(static_cast<unsigned>(context.num_sms * 8));
  if (args.is_in_out) {
    constexpr bool kIsPadded = sizeof(Dst) == 2;
    const int64_t out =
        kIsPadded ? round_up(args.out_features, kCoreOutMultiple) : args.out_features;
    const dim3 grid(static_cast<unsigned>((args.in_features + kTile - 1) / kTile),
                    static_cast<unsigned>((out + kTile - 1) / kTile));
    launch(context, pack_weight_in_out_kernel<Src, Dst>, grid, dim3(kThreads), 0, params);
  } else if constexpr (sizeof(Dst) == 2) {
    launch(context, pack_weight_out_in_kernel<Src, Dst>, persistent, dim3(kThreads), 0, params);
  } else {
    launch(context, pack_weight_convert_kernel<Src>, persistent, dim3(kThreads), 0, params);
  }
}

template <typename Dst>
void launch_pack_to(const PackWeightArgs& args, const LaunchContext& context) {
  if (args.src_dtype == DType::kF32) return launch_pack<float, Dst>(args, context);
  if (args.src_dtype == DType::kF16) return launch_pack<__half, Dst>(args, context);
  if (args.src_dtype == DType::kBF16) return launch_pack<__nv_bfloat16, Dst>(args, context);
  throw_unsupported("pack_weight: src must be float32, float16 or bfloat16");
}

// splitmix64 (Steele, Lea, Flood 2014): 64 random bits from a counter, for elements 2i and 2i + 1.
__device__ __forceinline__ uint64_t random_bits(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}
// 24 bits, [-1, 1).
__device__ __forceinline__ float uniform(uint32_t bits) {
  return static_cast<float>(static_cast<int32_t>(bits) >> 8) * 0x1p-23f;
}

struct FillParams {
  void* data;
  int64_t count;
  float mean;
  float scale;
  uint64_t seed;
};

template <typename T>
__device__ __forceinline__ T filled(float value) {
  if constexpr (kIsQuantized<T>) {
    return static_cast<T>(quantize<T>(value));
  } else {
    return from_float<T>(value);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fill_random_kernel(const FillParams p) {
  constexpr int kWidth = 16 / sizeof(T);
  pdl_launch_dependents();
  pdl_wait();
  T* data = static_cast<T*>(p.data);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kWidth;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
       i < p.count; i += step) {
    uint4 word;
    T* values = reinterpret_cast<T*>(&word);
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) {
      const uint64_t bits = random_bits(p.seed, static_cast<uint64_t>(i + j) / 2);
      values[j] = filled<T>(fmaf(p.scale, uniform(static_cast<uint32_t>(bits)), p.mean));
      values[j + 1] = filled<T>(fmaf(p.scale, uniform(static_cast<uint32_t>(bits >> 32)), p.mean));
    }
    if (i + kWidth <= p.count) {
      *reinterpret_cast<uint4*>(data + i) = word;
    } else {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (i + j < p.count) data[i + j] = values[j];
      }
    }
  }
}

}  // namespace

void launch_pack_weight(const PackWeightArgs& args, const LaunchContext& context) {
  if (args.in_features < 1 || args.out_features < 1) {
    throw_invalid("pack_weight: " + std::to_string(args.in_features) + " x " +
                  std::to_string(args.out_features));
  }
  if (!is_aligned(args.dst)) throw_invalid("pack_weight: dst must be aligned to 16 bytes");
  if (args.dst_dtype == DType::kF32) return launch_pack_to<float>(args, context);
  if (args.dst_dtype == DType::kF16) return launch_pack_to<__half>(args, context);
  if (args.dst_dtype == DType::kBF16) return launch_pack_to<__nv_bfloat16>(args, context);
  throw_unsupported("pack_weight: dst must be float32, float16 or bfloat16");
}

void launch_fill_random(void* data, DType dtype, int64_t count, float mean, float scale,
                        uint64_t seed, const LaunchContext& context) {
  if (count == 0) return;
  if (!is_aligned(data)) throw_invalid("fill_random: data must be aligned to 16 bytes");
  const FillParams params{data, count, mean, scale, seed};
  const dim3 grid(static_cast<unsigned>(context.num_sms * 8));
  const auto start = [&](auto kernel) { launch(context, kernel, grid, dim3(kThreads), 0, params); };
  if (dtype == DType::kF32) return start(fill_random_kernel<float>);
  if (dtype == DType::kF16) return start(fill_random_kernel<__half>);
  if (dtype == DType::kBF16) return start(fill_random_kernel<__nv_bfloat16>);
  if (dtype == DType::kI8) return start(fill_random_kernel<int8_t>);
  if (dtype == DType::kF8E4M3) return start(fill_random_kernel<Float8>);
  throw_unsupported("fill_random: dtype must be float32, float16, bfloat16, int8 or float8_e4m3fn");
}

}  // namespace caravan::cuda
