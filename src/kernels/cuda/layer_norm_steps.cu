#include <algorithm>

#include "kernels/cuda/layer_norm.h"
#include "kernels/cuda/layer_norm_common.cuh"

// The way to the product kernel, one idea a step; docs/kernels/layer_norm.md has their figures.

namespace caravan::cuda {

namespace {

// Block sums as the older kernels have them: warp shuffles, the warps' parts through shared memory
// to the first warp, which adds them and broadcasts the sum. Two barriers a sum.
__device__ float block_sum(float value, float (&parts)[32], float& total) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0.0f;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
    }
    if (threadIdx.x == 0) total = value;
  }
  __syncthreads();
  return total;
}

// kScalar (kWidth 2): one block of up to 1024 threads a row, accesses of 4 bytes, the row kept in
// shared memory between the passes, two dependent block sums: the design of TensorRT-LLM's
// generalLayerNorm. kVectorized (kWidth 8): the same with accesses of 16 bytes.
template <typename T, int kWidth>
__global__ void __launch_bounds__(1024)
    layer_norm_shared_row_kernel(const LayerNormKernelParams p) {
  using Chunk = Vector<T, kWidth>;
  using FloatChunk = Vector<float, kWidth>;
  extern __shared__ __align__(16) unsigned char shared_row[];
  T* row = reinterpret_cast<T*>(shared_row);
  __shared__ float parts[32];
  __shared__ float total;
  pdl_launch_dependents();
  pdl_wait();
  const int hidden_size = static_cast<int>(p.hidden_size);
  const int first = static_cast<int>(threadIdx.x) * kWidth;
  const int step = static_cast<int>(blockDim.x) * kWidth;
  const int64_t offset = static_cast<int64_t>(blockIdx.x) * p.hidden_size;
  const T* x = static_cast<const T*>(p.x) + offset;
  T* y = static_cast<T*>(p.y) + offset;
  float sum = 0.0f;
  for (int k = first; k < hidden_size; k += step) {
    const Chunk chunk = Chunk::load(x + k);
    chunk.store(row + k);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += chunk.get(i);
  }
  const float mean = row_mean(block_sum(sum, parts, total), p);
  float squares = 0.0f;
  for (int k = first; k < hidden_size; k += step) {
    const Chunk chunk = Chunk::load(row + k);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float deviation = chunk.get(i) - mean;
      squares += deviation * deviation;
    }
  }
  const float scale = row_scale(block_sum(squares, parts, total), p);
  for (int k = first; k < hidden_size; k += step) {
    const Chunk chunk = Chunk::load(row + k);
    const FloatChunk weight = FloatChunk::load_weight(p.weight + k);
    const FloatChunk bias = FloatChunk::load_weight(p.bias + k);
    float out[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      out[i] = normalise(chunk.get(i) - mean, scale, weight.get(i), bias.get(i));
    }
    Chunk::pack(out).store(y + k);
  }
}

// kRegisters: the row stays in registers, 32 elements a thread, so a row of 4096 takes four warps
// and each sum one barrier; many small blocks an SM hide each other's loads and barriers.
constexpr int kStepChunks = 4;
template <typename T>
__global__ void __launch_bounds__(512)
    layer_norm_register_row_kernel(const LayerNormKernelParams p) {
  constexpr int kWidth = 8;
  using Chunk = Vector<T, kWidth>;
  using FloatChunk = Vector<float, kWidth>;
  __shared__ RowScratch scratch;
  pdl_launch_dependents();
  init_scratch(scratch);
  pdl_wait();
  const int64_t offset = static_cast<int64_t>(blockIdx.x) * p.hidden_size;
  const T* x = static_cast<const T*>(p.x) + offset;
  T* y = static_cast<T*>(p.y) + offset;
  const auto column = [](int c) { return static_cast<int>(threadIdx.x + c * blockDim.x) * kWidth; };
  float v[kStepChunks][kWidth];
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kStepChunks; ++c) {
    Chunk chunk{};
    if (column(c) < p.hidden_size) chunk = Chunk::load(x + column(c));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[c][i] = chunk.get(i);
    sum += tree_sum<kWidth>(v[c]);
  }
  const float mean = row_mean(row_sum(sum, scratch.sums), p);
  float squares = 0.0f;
#pragma unroll
  for (int c = 0; c < kStepChunks; ++c) {
    const bool has = column(c) < p.hidden_size;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      v[c][i] -= mean;
      if (has) squares += v[c][i] * v[c][i];
    }
  }
  const float scale = row_scale(row_sum(squares, scratch.squares), p);
#pragma unroll
  for (int c = 0; c < kStepChunks; ++c) {
    if (column(c) >= p.hidden_size) continue;
    const FloatChunk weight = FloatChunk::load_weight(p.weight + column(c));
    const FloatChunk bias = FloatChunk::load_weight(p.bias + column(c));
    float out[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      out[i] = normalise(v[c][i], scale, weight.get(i), bias.get(i));
    }
    Chunk::pack(out).store(y + column(c));
  }
}

template <typename T>
void launch_step(LayerNormStep step, const LayerNormArgs& args, const LaunchContext& context) {
  const LayerNormKernelParams params = layer_norm_kernel_params(args);
  const dim3 grid(static_cast<unsigned>(args.num_tokens));
  const auto threads_for = [&](int64_t per_thread, int64_t most) {
    const int64_t warps = (args.hidden_size + per_thread * 32 - 1) / (per_thread * 32);
    return dim3(static_cast<unsigned>(std::min(warps * 32, most)));
  };
  const size_t row_bytes = static_cast<size_t>(args.hidden_size) * sizeof(T);
  if (step == LayerNormStep::kScalar) {
    launch(context, layer_norm_shared_row_kernel<T, 2>, grid, threads_for(2, 1024), row_bytes,
           params);
  } else if (step == LayerNormStep::kVectorized) {
    launch(context, layer_norm_shared_row_kernel<T, 8>, grid, threads_for(8, 1024), row_bytes,
           params);
  } else {
    launch(context, layer_norm_register_row_kernel<T>, grid, threads_for(kStepChunks * 8, 512), 0,
           params);
  }
}

}  // namespace

const char* layer_norm_step_name(LayerNormStep step) {
  switch (step) {
    case LayerNormStep::kScalar:
      return "scalar";
    case LayerNormStep::kVectorized:
      return "vectorized";
    case LayerNormStep::kRegisters:
      return "registers";
    case LayerNormStep::kFinal:
      return "final";
  }
  return "?";
}

void launch_layer_norm_step(LayerNormStep step, const LayerNormArgs& args,
                            const LaunchContext& context) {
  if (step == LayerNormStep::kFinal) return launch_layer_norm(args, context);
  if (args.num_tokens == 0) return;
  if (args.hidden_size % 8 != 0 || args.hidden_size > 16384 || args.delta != nullptr ||
      args.x_dtype != args.y_dtype) {
    throw_unsupported(
        "layer_norm_step: hidden_size " + std::to_string(args.hidden_size) +
        " must be a multiple of 8 up to 16384, x and y of one 16-bit dtype, no delta");
  }
  if (args.x_dtype == DType::kF16) return launch_step<__half>(step, args, context);
  if (args.x_dtype == DType::kBF16) return launch_step<__nv_bfloat16>(step, args, context);
  throw_unsupported("layer_norm_step: x_dtype must be float16 or bfloat16");
}

}  // namespace caravan::cuda
