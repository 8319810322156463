#include "kernels/cuda/layer_norm.h"

#include <algorithm>

#include "kernels/cuda/layer_norm_common.cuh"

namespace caravan::cuda {

namespace {

// The figures are GB/s read + written on an H100 whose copies reach 3,027, rows of 4096 unless
// another length is named; docs/kernels/layer_norm.md has them all.

constexpr int kLoopThreads = 512;
constexpr int kWarpRowsPerBlock = 4;  // 768 f16: 2,983; one row a block: 2,532
// Weights in registers before the first row: one row takes 1.7 us in a chain, not 2.5; but with
// many rows they crowd out other blocks: 2,686 against 3,004.
constexpr int kMaxWeightsFirstThreads = 256;
// Above it y is written to be evicted first: 3,000 against 2,958 (f16), 2,984 against 2,950 (with
// f16 delta). Below it the next kernel should find y in L2 (50 MiB).
constexpr int64_t kStreamingBytes = int64_t{128} << 20;

// A row in registers: chunks of 16 bytes of x a thread; longer rows of 16 bits take twice as many.
// f16: 4 chunks 3,000, 2 chunks 2,676; with f16 delta: 2 chunks 2,984, 4 chunks 2,959.
template <typename X, bool kDelta>
constexpr int kChunksPerThread = sizeof(X) == 2 && kDelta ? 2 : 4;
template <typename X>
constexpr int kMaxRowThreads = sizeof(X) == 4 ? 1024 : 512;
// 64 registers a thread; f16 rows of 8192: 3,008, with the 74 that the compiler would take 2,900.
constexpr int kRowThreadsPerSm = 1024;
// The same for rows that 16-byte accesses cannot reach, an element at a time.
constexpr int kScalarsPerThread = 16;
constexpr int kMaxScalarThreads = 512;

// How a row is cut: a function of its length, its dtypes, whether there is a delta and the
// pointers' alignment, never of num_tokens, because the order of its sums follows from it.
struct LayerNormPlan {
  bool is_vector = false;     // in accesses of 16 bytes
  int chunks_per_thread = 0;  // 0: the loop kernel
  int threads_per_row = kLoopThreads;
  int rows_per_block = 1;

  /// Takes threads for chunks of chunk_size elements when max_threads are enough.
  bool try_registers(int64_t hidden_size, int64_t chunk_size, int chunks, int max_threads) {
    const int64_t warp_elements = 32 * chunks * chunk_size;
    const int64_t num_warps = (hidden_size + warp_elements - 1) / warp_elements;
    if (num_warps * 32 > max_threads) return false;
    chunks_per_thread = chunks;
    threads_per_row = static_cast<int>(num_warps * 32);
    rows_per_block = num_warps == 1 ? kWarpRowsPerBlock : 1;
    return true;
  }
};

bool is_aligned(const void* p, size_t num_bytes) {
  return reinterpret_cast<uintptr_t>(p) % num_bytes == 0;
}

template <typename X, typename Y, bool kDelta>
LayerNormPlan plan_layer_norm(const LayerNormArgs& args) {
  constexpr int64_t kWidth = 16 / sizeof(X);
  constexpr size_t kAlignmentOfY = std::min<size_t>(16, kWidth * sizeof(Y));
  LayerNormPlan plan;
  plan.is_vector = args.hidden_size % kWidth == 0 && is_aligned(args.x, 16) &&
                   is_aligned(args.delta, kAlignmentOfY) && is_aligned(args.y, kAlignmentOfY) &&
                   is_aligned(args.delta_bias, 16) && is_aligned(args.weight, 16) &&
                   is_aligned(args.bias, 16);
  if (!plan.is_vector) {
    plan.try_registers(args.hidden_size, 1, kScalarsPerThread, kMaxScalarThreads);
    return plan;
  }
  constexpr int kChunks = kChunksPerThread<X, kDelta>;
  if (!plan.try_registers(args.hidden_size, kWidth, kChunks, kMaxRowThreads<X>) && sizeof(X) == 2) {
    plan.try_registers(args.hidden_size, kWidth, 2 * kChunks, kMaxRowThreads<X>);
  }
  return plan;
}

// A row in the registers of blockDim.x threads, thread i with chunks i, i + blockDim.x, ... of
// kWidth elements. Small blocks that do one row and end: four to eight of them an SM hide each
// other's loads and barriers. kWeightsFirst: weight and bias are loaded into registers before the
// kernel before this one has ended, which takes their latency out of a decode step; with many rows
// the registers are worth more as further blocks. The arithmetic is the same.
template <typename X, typename Y, bool kDelta, int kWidth, int kChunks, int kMaxThreads,
          int kMinBlocks, bool kWeightsFirst>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    layer_norm_rows_kernel(const LayerNormKernelParams p) {
  constexpr bool kOnce = kWidth > 1 && !kWeightsFirst;  // too much for the caches
  using XVector = Vector<X, kWidth>;
  using YVector = Vector<Y, kWidth>;
  using FloatVector = Vector<float, kWidth>;
  __shared__ RowScratch scratch;

  pdl_launch_dependents();
  init_scratch(scratch);
  const int hidden_size = static_cast<int>(p.hidden_size);
  const auto column = [](int c) { return static_cast<int>(threadIdx.x + c * blockDim.x) * kWidth; };
  FloatVector weight[kChunks], bias[kChunks], delta_bias[kChunks];
  const auto load_weights = [&](int c) {
    weight[c] = FloatVector::load_weight(p.weight + column(c));
    bias[c] = FloatVector::load_weight(p.bias + column(c));
  };
  const auto load_delta_bias = [&](int c) {
    delta_bias[c] = FloatVector{};
    if (p.delta_bias != nullptr) {
      delta_bias[c] = FloatVector::load_weight(p.delta_bias + column(c));
    }
  };
  if constexpr (kWeightsFirst) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (column(c) >= hidden_size) continue;
      load_weights(c);
      if constexpr (kDelta) load_delta_bias(c);
    }
  }
  pdl_wait();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= p.num_tokens) return;
  X* x = static_cast<X*>(p.x) + row * p.hidden_size;
  Y* y = static_cast<Y*>(p.y) + row * p.hidden_size;
  const Y* delta = static_cast<const Y*>(p.delta) + row * p.hidden_size;

  XVector x_chunks[kChunks];
  YVector delta_chunks[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    x_chunks[c] = XVector{};
    if (column(c) >= hidden_size) continue;
    x_chunks[c] = XVector::template load<kOnce>(x + column(c));
    if constexpr (kDelta) delta_chunks[c] = YVector::template load<kOnce>(delta + column(c));
  }
  float v[kChunks][kWidth];
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[c][i] = x_chunks[c].get(i);
    if constexpr (kDelta) {
      if (column(c) < hidden_size) {
        if constexpr (!kWeightsFirst) load_delta_bias(c);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) v[c][i] += delta_chunks[c].get(i) + delta_bias[c].get(i);
        const XVector stored = XVector::pack(v[c]);
        stored.store(x + column(c), kOnce && p.is_streaming);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) v[c][i] = stored.get(i);
      }
    }
    sum += tree_sum<kWidth>(v[c]);
  }
  const float mean = row_mean(row_sum(sum, scratch.sums), p);
  float squares = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[c][i] -= mean;
    if (column(c) < hidden_size) squares += square_sum<kWidth>(v[c]);
  }
  const float scale = row_scale(row_sum(squares, scratch.squares), p);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (column(c) >= hidden_size) continue;
    if constexpr (!kWeightsFirst) load_weights(c);
    float out[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      out[i] = normalise(v[c][i], scale, weight[c].get(i), bias[c].get(i));
    }
    YVector::pack(out).store(y + column(c), kOnce && p.is_streaming);
  }
}

// Rows of any length and alignment, read three times (they stay in L2). kWidth 1 for odd sizes: a
// row's first address moves against 16 bytes from row to row there, and chunks cut by address would
// make its sums depend on its place in the batch.
template <typename X, typename Y, bool kDelta, int kWidth>
__global__ void __launch_bounds__(kLoopThreads)
    layer_norm_loop_kernel(const LayerNormKernelParams p) {
  using XVector = Vector<X, kWidth>;
  using YVector = Vector<Y, kWidth>;
  using FloatVector = Vector<float, kWidth>;
  __shared__ RowScratch scratch;
  pdl_launch_dependents();
  init_scratch(scratch);
  pdl_wait();
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kWidth;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kWidth;
  const int64_t row = blockIdx.x;
  X* x = static_cast<X*>(p.x) + row * p.hidden_size;
  Y* y = static_cast<Y*>(p.y) + row * p.hidden_size;
  const Y* delta = static_cast<const Y*>(p.delta) + row * p.hidden_size;
  float sum = 0.0f;
  for (int64_t k = first; k < p.hidden_size; k += step) {
    XVector chunk = XVector::load(x + k);
    float v[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = chunk.get(i);
    if constexpr (kDelta) {
      const YVector add = YVector::load(delta + k);
      FloatVector add_bias{};
      if (p.delta_bias != nullptr) add_bias = FloatVector::load_weight(p.delta_bias + k);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[i] += add.get(i) + add_bias.get(i);
      chunk = XVector::pack(v);
      chunk.store(x + k);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[i] = chunk.get(i);
    }
    sum += tree_sum<kWidth>(v);
  }
  const float mean = row_mean(row_sum(sum, scratch.sums), p);
  float squares = 0.0f;
  for (int64_t k = first; k < p.hidden_size; k += step) {
    const XVector chunk = XVector::load(x + k);
    float v[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = chunk.get(i) - mean;
    squares += square_sum<kWidth>(v);
  }
  const float scale = row_scale(row_sum(squares, scratch.squares), p);
  for (int64_t k = first; k < p.hidden_size; k += step) {
    const XVector chunk = XVector::load(x + k);
    const FloatVector weight = FloatVector::load_weight(p.weight + k);
    const FloatVector bias = FloatVector::load_weight(p.bias + k);
    float out[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      out[i] = normalise(chunk.get(i) - mean, scale, weight.get(i), bias.get(i));
    }
    YVector::pack(out).store(y + k);
  }
}

template <typename X, typename Y, bool kDelta>
void launch_typed(const LayerNormArgs& args, const LaunchContext& context) {
  constexpr int kWidth = 16 / sizeof(X);
  constexpr int kChunks = kChunksPerThread<X, kDelta>;
  constexpr int kMaxThreads = kMaxRowThreads<X>;
  constexpr int kMinBlocks = kRowThreadsPerSm / kMaxThreads;
  const LayerNormPlan plan = plan_layer_norm<X, Y, kDelta>(args);
  LayerNormKernelParams params = layer_norm_kernel_params(args);
  params.is_streaming =
      args.num_tokens * args.hidden_size * static_cast<int64_t>(sizeof(X) + sizeof(Y)) >
      kStreamingBytes;
  const int64_t num_blocks = (args.num_tokens + plan.rows_per_block - 1) / plan.rows_per_block;
  const dim3 grid(static_cast<unsigned>(num_blocks));
  const dim3 block(static_cast<unsigned>(plan.threads_per_row),
                   static_cast<unsigned>(plan.rows_per_block));
  const auto start = [&](auto kernel) { launch(context, kernel, grid, block, 0, params); };
  if (!plan.is_vector) {
    if (plan.chunks_per_thread == 0) return start(layer_norm_loop_kernel<X, Y, kDelta, 1>);
    constexpr int kBlocks = kDelta ? 1 : 2;  // a delta takes more than 64 registers
    return start(layer_norm_rows_kernel<X, Y, kDelta, 1, kScalarsPerThread, kMaxScalarThreads,
                                        kBlocks, false>);
  }
  if (plan.chunks_per_thread == kChunks) {
    if (plan.threads_per_row <= kMaxWeightsFirstThreads && num_blocks <= 2 * context.num_sms) {
      return start(
          layer_norm_rows_kernel<X, Y, kDelta, kWidth, kChunks, kMaxWeightsFirstThreads, 1, true>);
    }
    return start(
        layer_norm_rows_kernel<X, Y, kDelta, kWidth, kChunks, kMaxThreads, kMinBlocks, false>);
  }
  if constexpr (sizeof(X) == 2) {
    if (plan.chunks_per_thread == 2 * kChunks) {
      constexpr int kBlocks = kDelta ? kMinBlocks : 1;  // 64 values a thread: 107 registers
      return start(
          layer_norm_rows_kernel<X, Y, kDelta, kWidth, 2 * kChunks, kMaxThreads, kBlocks, false>);
    }
  }
  start(layer_norm_loop_kernel<X, Y, kDelta, kWidth>);
}

template <typename X, typename Y>
void launch_with_delta(const LayerNormArgs& args, const LaunchContext& context) {
  if (args.delta != nullptr) return launch_typed<X, Y, true>(args, context);
  launch_typed<X, Y, false>(args, context);
}

}  // namespace

void launch_layer_norm(const LayerNormArgs& args, const LaunchContext& context) {
  if (args.num_tokens < 0 || args.hidden_size < 1) {
    throw_invalid("layer_norm: num_tokens " + std::to_string(args.num_tokens) + ", hidden_size " +
                  std::to_string(args.hidden_size));
  }
  if (args.num_tokens == 0) return;
  const DType x = args.x_dtype, y = args.y_dtype;
  if (x == DType::kF32 && y == DType::kF16) return launch_with_delta<float, __half>(args, context);
  if (x == DType::kF32 && y == DType::kBF16) {
    return launch_with_delta<float, __nv_bfloat16>(args, context);
  }
  if (x == DType::kF32 && y == DType::kF32) return launch_with_delta<float, float>(args, context);
  if (x == DType::kF16 && y == DType::kF16) return launch_with_delta<__half, __half>(args, context);
  if (x == DType::kBF16 && y == DType::kBF16) {
    return launch_with_delta<__nv_bfloat16, __nv_bfloat16>(args, context);
  }
  throw_unsupported("layer_norm: x_dtype must be y_dtype or float32");
}

}  // namespace caravan::cuda
