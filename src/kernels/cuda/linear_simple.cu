#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {

namespace {

// Tiles of 16 * kRowsPerThread rows by 64 outputs, 256 threads of kRowsPerThread x 4 outputs. The
// tile of 16 rows is for decoding: it has a quarter of the work where rows are missing, and 64 k at
// a time, as each step waits for memory once (H100, 4096 x 4096 float32, one row: 128 us, with 16 k
// 184 us; 2048 rows with the large tile: 2.2 ms, 31 TFLOP/s).
constexpr int kTileOuts = 64;
constexpr int kThreads = 256;

struct SimpleParams {
  const void* x;
  const void* weight;
  const float* bias;
  void* y;
  int64_t num_tokens;
  int64_t in_features;
  int64_t out_features;
  int64_t y_stride;
  Activation activation;
  bool is_y_f32;
  bool is_x_vectorized;  // rows of x start on 4-element boundaries
};

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

/// x[row][k ... k + 3] as float, zeros outside the matrix.
template <typename T>
__device__ __forceinline__ void load_x(const SimpleParams& p, int64_t row, int64_t k,
                                       float (&out)[4]) {
  const T* __restrict__ x = static_cast<const T*>(p.x) + row * p.in_features + k;
  if (p.is_x_vectorized && row < p.num_tokens && k < p.in_features) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(x);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = to_float(four.v[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[i] = row < p.num_tokens && k + i < p.in_features ? to_float(x[i]) : 0.0f;
  }
}

/// W(k ... k + 3, n) as float, zeros outside the matrix. 16 bits: kCore8x8, padded to whole tiles.
template <typename T>
__device__ __forceinline__ void load_weight(const SimpleParams& p, int64_t n, int64_t k,
                                            float (&out)[4]) {
  const int64_t padded_in =
      (p.in_features + kCoreInMultiple - 1) / kCoreInMultiple * kCoreInMultiple;
  const T* __restrict__ w = static_cast<const T*>(p.weight) + (n / 8) * padded_in * 8 +
                            (k / 8) * 64 + (n % 8) * 8 + k % 8;
  const Four<T> four = *reinterpret_cast<const Four<T>*>(w);
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = to_float(four.v[i]);
}
/// float32: row-major [out, in].
template <>
__device__ __forceinline__ void load_weight<float>(const SimpleParams& p, int64_t n, int64_t k,
                                                   float (&out)[4]) {
  const float* __restrict__ w = static_cast<const float*>(p.weight) + n * p.in_features + k;
  const bool is_aligned = p.in_features % 4 == 0 && reinterpret_cast<uintptr_t>(p.weight) % 16 == 0;
  if (is_aligned && n < p.out_features && k < p.in_features) {
    const float4 four = *reinterpret_cast<const float4*>(w);
    out[0] = four.x;
    out[1] = four.y;
    out[2] = four.z;
    out[3] = four.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = n < p.out_features && k + i < p.in_features ? w[i] : 0.0f;
}

/// Where output n of the tile lies in row k of the weights' tile: threads that write the same
/// output for different k hit different banks.
__device__ __forceinline__ int weight_column(int n, int k) { return n ^ (k / 4 % 8 * 4); }

template <typename T, int kRowsPerThread, int kTileK>
__global__ void __launch_bounds__(kThreads) linear_simple_kernel(const SimpleParams p) {
  constexpr int kTileRows = 16 * kRowsPerThread;
  constexpr int kRowPitch = kTileRows + 4;  // both pitches keep float4 reads aligned
  constexpr int kOutPitch = kTileOuts + 4;
  constexpr int kTileFloats = kTileK * (kRowPitch + kOutPitch);
  constexpr int kOutFloats = kTileRows * kTileOuts;
  constexpr int kSharedFloats = 2 * kTileFloats > kOutFloats ? 2 * kTileFloats : kOutFloats;
  __shared__ __align__(16) float shared[kSharedFloats];
  pdl_launch_dependents();
  pdl_wait();

  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_out = static_cast<int64_t>(blockIdx.x) * kTileOuts;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTileRows;
  // Loading: four k of one row or output at a time, `load_k` apart in the block of k.
  constexpr int kLoadersOfRow = kTileK / 4;
  constexpr int kRowStep = kThreads / kLoadersOfRow;
  constexpr int kXLoads = (kTileRows + kRowStep - 1) / kRowStep;
  constexpr int kWeightLoads = kTileOuts / kRowStep;
  const int load_row = thread / kLoadersOfRow;
  const int load_k = thread % kLoadersOfRow * 4;
  const bool is_x_loader = kXLoads > 1 || load_row < kTileRows;
  // Computing: outputs tx * 4 ... and rows ty * kRowsPerThread ...
  const int tx = thread % 16;
  const int ty = thread / 16;

  float next_x[kXLoads][4] = {};
  float next_w[kWeightLoads][4];
  const auto load = [&](int64_t k0) {
#pragma unroll
    for (int j = 0; j < kXLoads; ++j) {
      if (is_x_loader) load_x<T>(p, first_row + load_row + j * kRowStep, k0 + load_k, next_x[j]);
    }
#pragma unroll
    for (int j = 0; j < kWeightLoads; ++j) {
      load_weight<T>(p, first_out + load_row + j * kRowStep, k0 + load_k, next_w[j]);
    }
  };
  const auto store = [&](int buffer) {
    float* xs = shared + buffer * kTileFloats + load_k * kRowPitch + load_row;
    float* ws = shared + buffer * kTileFloats + kTileK * kRowPitch + load_k * kOutPitch;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < kXLoads; ++j) {
        if (is_x_loader) xs[i * kRowPitch + j * kRowStep] = next_x[j][i];
      }
#pragma unroll
      for (int j = 0; j < kWeightLoads; ++j) {
        ws[i * kOutPitch + weight_column(load_row + j * kRowStep, load_k)] = next_w[j][i];
      }
    }
  };

  float sum[kRowsPerThread][4] = {};
  load(0);
  store(0);
  __syncthreads();
  int buffer = 0;
  for (int64_t k0 = 0; k0 < p.in_features; k0 += kTileK) {
    const bool has_next = k0 + kTileK < p.in_features;
    if (has_next) load(k0 + kTileK);
    const float* xs = shared + buffer * kTileFloats + ty * kRowsPerThread;
    const float* ws = shared + buffer * kTileFloats + kTileK * kRowPitch;
#pragma unroll
    for (int k = 0; k < kTileK; ++k) {
      const float4 w =
          *reinterpret_cast<const float4*>(ws + k * kOutPitch + weight_column(tx * 4, k));
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) {
        const float x = xs[k * kRowPitch + r];
        sum[r][0] = fmaf(x, w.x, sum[r][0]);
        sum[r][1] = fmaf(x, w.y, sum[r][1]);
        sum[r][2] = fmaf(x, w.z, sum[r][2]);
        sum[r][3] = fmaf(x, w.w, sum[r][3]);
      }
    }
    buffer ^= 1;
    if (has_next) store(buffer);
    __syncthreads();
  }

  // Through shared memory, so that one copy of the activation's code serves all outputs and a warp
  // writes 32 outputs of one row.
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    *reinterpret_cast<float4*>(shared + (ty * kRowsPerThread + r) * kTileOuts + tx * 4) =
        make_float4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = thread; i < kTileRows * kTileOuts; i += kThreads) {
    const int64_t row = first_row + i / kTileOuts;
    const int64_t n = first_out + i % kTileOuts;
    if (row >= p.num_tokens || n >= p.out_features) continue;
    const float v = p.bias != nullptr ? shared[i] + p.bias[n] : shared[i];
    const int64_t at = row * p.y_stride + n;
    if (p.is_y_f32) {
      static_cast<float*>(p.y)[at] = activate_f32(v, p.activation);
    } else {
      static_cast<T*>(p.y)[at] = from_float<T>(activate_for<T, T>(v, p.activation));
    }
  }
}

template <typename T>
void launch_typed(const SimpleParams& p, const LaunchContext& context) {
  const auto num_out_tiles = static_cast<unsigned>((p.out_features + kTileOuts - 1) / kTileOuts);
  const bool is_small = p.num_tokens <= 16;
  const int64_t tile_rows = is_small ? 16 : 64;
  const int64_t num_row_tiles = (p.num_tokens + tile_rows - 1) / tile_rows;
  if (num_row_tiles > 65535) throw_invalid("linear: more than 65535 * 64 tokens");
  const dim3 grid(num_out_tiles, static_cast<unsigned>(num_row_tiles));
  launch(context, is_small ? linear_simple_kernel<T, 1, 64> : linear_simple_kernel<T, 4, 16>, grid,
         dim3(kThreads), 0, p);
}

}  // namespace

void launch_linear_simple(const LinearArgs& args, const LaunchContext& context) {
  if (args.num_tokens == 0 || args.out_features == 0) return;
  if (args.y_dtype != args.dtype && args.y_dtype != DType::kF32) {
    throw_invalid("linear: y_dtype is neither float32 nor the weight's dtype");
  }
  SimpleParams p{};
  p.x = args.x;
  p.weight = args.weight;
  p.bias = args.bias;
  p.y = args.y;
  p.num_tokens = args.num_tokens;
  p.in_features = args.in_features;
  p.out_features = args.out_features;
  p.y_stride = args.y_stride;
  p.activation = args.activation;
  p.is_y_f32 = args.y_dtype == DType::kF32;
  p.is_x_vectorized = args.in_features % 4 == 0 &&
                      reinterpret_cast<uintptr_t>(args.x) % (4 * dtype_size(args.dtype)) == 0;
  switch (args.dtype) {
    case DType::kF32:
      return launch_typed<float>(p, context);
    case DType::kF16:
      return launch_typed<__half>(p, context);
    case DType::kBF16:
      return launch_typed<__nv_bfloat16>(p, context);
    default:
      throw_unsupported("linear: dtype is not float32, float16 or bfloat16");
  }
}

}  // namespace caravan::cuda
