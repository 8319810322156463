// Time of launch_linear_mma over the layers of a 5-billion-parameter GPT-2, beside the card's read
// bandwidth and its mma.sync rate measured in the same run. CUDA_FORCE_PTX_JIT=1 runs the
// compute_80 PTX, which is what other GPUs than Hopper run; "nopdl" as argument goes with it.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/ptx.cuh"

using namespace caravan;
using namespace caravan::cuda;

namespace {

__global__ void fill_kernel(__half* data, size_t count, float scale) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count;
       i += stride) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    data[i] = __float2half(scale * (static_cast<float>(z >> 40) * 0x1p-23f - 1.0f));
  }
}

__global__ void __launch_bounds__(512)
    read_kernel(const uint4* __restrict__ p, size_t n, uint32_t* out) {
  uint32_t sum = 0;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
  for (; i + 7 * stride < n; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) v[u] = __ldcs(p + i + u * stride);
#pragma unroll
    for (int u = 0; u < 8; ++u) sum ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (sum == 0x12345678u) *out = sum;
}

/// 16 independent accumulators a warp, operands in registers.
__global__ void __launch_bounds__(256)
    mma_rate_kernel(const uint32_t* __restrict__ seed, float* out, int count) {
  uint32_t a[4][4], b[4][2];
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) a[i][j] = seed[threadIdx.x * 16 + i * 4 + j];
    for (int j = 0; j < 2; ++j) b[i][j] = seed[threadIdx.x * 16 + i * 2 + j + 5];
  }
  float sum[4][4][4] = {};
  for (int n = 0; n < count; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) mma_m16n8k16<__half>(sum[i][j], a[i], b[j][0], b[j][1]);
    }
  }
  float total = 0;
  for (int i = 0; i < 64; ++i) total += sum[i / 16][i / 4 % 4][i % 4];
  if (total == 0.12345f) *out = total;
}

template <typename Launch>
double median_us(cudaStream_t stream, int num_launches, Launch launch_one) {
  cudaEvent_t begin, end;
  CARAVAN_CUDA_CHECK(cudaEventCreate(&begin));
  CARAVAN_CUDA_CHECK(cudaEventCreate(&end));
  for (int i = 0; i < 3; ++i) launch_one();
  std::vector<float> times;
  for (int repeat = 0; repeat < 7; ++repeat) {
    CARAVAN_CUDA_CHECK(cudaEventRecord(begin, stream));
    for (int i = 0; i < num_launches; ++i) launch_one();
    CARAVAN_CUDA_CHECK(cudaEventRecord(end, stream));
    CARAVAN_CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CARAVAN_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms * 1e3f / static_cast<float>(num_launches));
  }
  CARAVAN_CUDA_CHECK(cudaEventDestroy(begin));
  CARAVAN_CUDA_CHECK(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp properties{};
  CARAVAN_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  LaunchContext context;
  context.num_sms = properties.multiProcessorCount;
  context.compute_capability = properties.major * 10 + properties.minor;
  context.use_pdl =
      context.compute_capability >= 90 && !(argc > 1 && std::strcmp(argv[1], "nopdl") == 0);
  CARAVAN_CUDA_CHECK(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));

  constexpr size_t kPoolBytes = size_t{1} << 30;
  constexpr int64_t kMaxTokens = 2048;
  __half *pool = nullptr, *x = nullptr;
  void* y = nullptr;
  CARAVAN_CUDA_CHECK(cudaMalloc(&pool, kPoolBytes));
  CARAVAN_CUDA_CHECK(cudaMalloc(&x, kMaxTokens * 16384 * 2));
  CARAVAN_CUDA_CHECK(cudaMalloc(&y, kMaxTokens * 50304 * 4));
  fill_kernel<<<1024, 256, 0, context.stream>>>(pool, kPoolBytes / 2, 0.02f);
  fill_kernel<<<1024, 256, 0, context.stream>>>(x, kMaxTokens * 16384, 1.0f);

  const double read_us = median_us(context.stream, 2, [&] {
    read_kernel<<<context.num_sms * 4, 512, 0, context.stream>>>(
        reinterpret_cast<const uint4*>(pool), kPoolBytes / 16, static_cast<uint32_t*>(y));
  });
  const double read_gbs = kPoolBytes / read_us * 1e-3;
  constexpr int kMmas = 4096;
  const double mma_us = median_us(context.stream, 2, [&] {
    mma_rate_kernel<<<context.num_sms * 2, 256, 0, context.stream>>>(
        reinterpret_cast<const uint32_t*>(x), static_cast<float*>(y), kMmas);
  });
  const double mma_tflops = 2.0 * context.num_sms * 8 * kMmas * 16 * 4096 / mma_us * 1e-6;
  std::printf("%s: read %.0f GB/s, mma.sync %.0f TFLOP/s, pdl %d\n", properties.name, read_gbs,
              mma_tflops, context.use_pdl);

  struct Layer {
    const char* name;
    int64_t in_features, out_features;
    bool is_logits;
  };
  const Layer layers[] = {{"qkv", 4096, 12288, false},
                          {"proj", 4096, 4096, false},
                          {"fc1", 4096, 16384, false},
                          {"fc2", 16384, 4096, false},
                          {"head", 4096, 50258, true}};
  for (const int64_t num_tokens : {1, 8, 16, 32, 64, 128, 512, 2048}) {
    for (const Layer& layer : layers) {
      if (layer.is_logits && num_tokens > 64) continue;
      LinearArgs args;
      args.num_tokens = num_tokens;
      args.in_features = layer.in_features;
      args.out_features = layer.out_features;
      args.x = x;
      args.activation = layer.out_features == 16384 ? Activation::kGelu : Activation::kNone;
      args.y = y;
      args.y_stride = (layer.out_features + 7) / 8 * 8;
      args.y_dtype = layer.is_logits ? DType::kF32 : DType::kF16;
      const auto num_bytes = static_cast<size_t>(
          linear_num_elements(LinearLayout::kCore8x8, layer.in_features, layer.out_features) * 2);
      size_t offset = 0;
      const double us = median_us(context.stream, num_tokens <= 64 ? 20 : 10, [&] {
        if (offset + num_bytes > kPoolBytes) offset = 0;
        args.weight = reinterpret_cast<const char*>(pool) + offset;
        offset += num_bytes;
        launch_linear_mma(args, context);
      });
      const double gbs = static_cast<double>(num_bytes) / us * 1e-3;
      const double tflops = 2.0 * static_cast<double>(num_tokens) *
                            static_cast<double>(layer.in_features * layer.out_features) / us * 1e-6;
      std::printf("T %4d %-4s %8.2f us  %6.0f GB/s %5.1f %%  %6.1f TFLOP/s %5.1f %%\n",
                  static_cast<int>(num_tokens), layer.name, us, gbs, 100 * gbs / read_gbs, tflops,
                  100 * tflops / mma_tflops);
    }
  }
  CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
  return 0;
}
