// Linear layers of 1..64 rows against the speed at which this GPU reads memory.
//
//   linear_stream_bench        shapes of camel-5b one by one, then all layers of a decode step
//
// Each figure is the median of CUDA graph replays. Every launch reads weights of its own: those of
// camel-5b lie in one pool of 10.1 GB, so that nothing is found in L2.

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "kernels/cuda/linear.h"

namespace caravan::cuda {
namespace {

constexpr int kNumLayers = 24;
constexpr int64_t kHidden = 4096, kInner = 16384, kVocab = 50258;
struct Shape {
  const char* name;
  int64_t out, in;
  Activation activation;
  int64_t num_bytes() const { return (out + 127) / 128 * 128 * in * 2; }
};
constexpr Shape kShapes[] = {{"qkv", 3 * kHidden, kHidden, Activation::kNone},
                             {"proj", kHidden, kHidden, Activation::kNone},
                             {"fc1", kInner, kHidden, Activation::kGelu},
                             {"fc2", kHidden, kInner, Activation::kNone},
                             {"head", kVocab, kHidden, Activation::kNone}};

// Uniform in +-[2^-7, 2^-6): finite, and as costly in power as real weights.
__global__ void fill_kernel(uint16_t* data, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += stride) {
    uint32_t bits = static_cast<uint32_t>(i) * 2654435761u ^ static_cast<uint32_t>(i >> 20);
    bits ^= bits >> 15;
    bits *= 0x846ca68bu;
    bits ^= bits >> 13;
    data[i] = static_cast<uint16_t>((bits & 0x83FF) | (8 << 10));
  }
}

__global__ void __launch_bounds__(512)
    read_kernel(const uint4* __restrict__ data, int64_t count, uint32_t* out) {
  constexpr int kUnroll = 8;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  uint32_t sum = 0;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = __ldcs(data + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (sum == 0x12345678u) *out = sum;
}

// Median milliseconds of the replays of what `record` queues.
double median_ms(const LaunchContext& context, int num_replays,
                 const std::function<void()>& record) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
  record();
  CARAVAN_CUDA_CHECK(cudaStreamEndCapture(context.stream, &graph));
  CARAVAN_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t start, stop;
  CARAVAN_CUDA_CHECK(cudaEventCreate(&start));
  CARAVAN_CUDA_CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = -2; i < num_replays; ++i) {
    CARAVAN_CUDA_CHECK(cudaEventRecord(start, context.stream));
    CARAVAN_CUDA_CHECK(cudaGraphLaunch(exec, context.stream));
    CARAVAN_CUDA_CHECK(cudaEventRecord(stop, context.stream));
    CARAVAN_CUDA_CHECK(cudaEventSynchronize(stop));
    float ms = 0;
    CARAVAN_CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 0) times.push_back(ms);
  }
  CARAVAN_CUDA_CHECK(cudaEventDestroy(start));
  CARAVAN_CUDA_CHECK(cudaEventDestroy(stop));
  CARAVAN_CUDA_CHECK(cudaGraphExecDestroy(exec));
  CARAVAN_CUDA_CHECK(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

class Bench {
 public:
  Bench() {
    cudaDeviceProp properties{};
    CARAVAN_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    context_.num_sms = properties.multiProcessorCount;
    context_.compute_capability = properties.major * 10 + properties.minor;
    context_.use_pdl = true;
    CARAVAN_CUDA_CHECK(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking));
    for (const Shape& s : kShapes)
      pool_bytes_ += s.num_bytes() * (s.out == kVocab ? 1 : kNumLayers);
    CARAVAN_CUDA_CHECK(cudaMalloc(&pool_, pool_bytes_));
    CARAVAN_CUDA_CHECK(cudaMalloc(&rows_, 2 * kRowsBytes));
    CARAVAN_CUDA_CHECK(cudaMalloc(&logits_, kMaxStreamTokens * kVocab * 4));
    CARAVAN_CUDA_CHECK(cudaMalloc(&bias_, kVocab * 4));
    CARAVAN_CUDA_CHECK(cudaMemset(bias_, 0, kVocab * 4));
    fill_kernel<<<2048, 256, 0, context_.stream>>>(static_cast<uint16_t*>(pool_), pool_bytes_ / 2);
    fill_kernel<<<512, 256, 0, context_.stream>>>(static_cast<uint16_t*>(rows_), kRowsBytes);
    CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());  // the default stream's fill too
    std::printf("%s, %d multiprocessors, weights %.2f GB\n", properties.name, context_.num_sms,
                pool_bytes_ / 1e9);
  }

  void measure_ceiling() {
    for (const int blocks_per_sm : {2, 4, 8}) {
      const double ms = median_ms(context_, 7, [&] {
        read_kernel<<<context_.num_sms * blocks_per_sm, 512, 0, context_.stream>>>(
            static_cast<const uint4*>(pool_), pool_bytes_ / 16, static_cast<uint32_t*>(logits_));
      });
      ceiling_ = std::max(ceiling_, pool_bytes_ / ms / 1e6);
    }
    std::printf("read ceiling %.1f GB/s\n", ceiling_);
  }

  // Consecutive launches of one shape, each with the next window of the pool.
  void bench_shape(const Shape& shape, int64_t num_tokens) {
    constexpr int kLaunches = 20;
    const double ms = median_ms(context_, 9, [&] {
      int64_t offset = 0;
      for (int i = 0; i < kLaunches; ++i) {
        linear(shape, num_tokens, offset, i % 2);
        offset += shape.num_bytes();
        if (offset + shape.num_bytes() > pool_bytes_) offset = 0;
      }
    });
    const double us = ms / kLaunches * 1e3, speed = shape.num_bytes() / us / 1e3;
    std::printf("%-5s %6ld x %6ld T %2ld %8.2f us %7.1f GB/s %5.1f %%\n", shape.name, shape.out,
                shape.in, num_tokens, us, speed, 100 * speed / ceiling_);
  }

  // The linear layers of a decode step: 24 times qkv, proj, fc1, fc2, and the head.
  void bench_chain(int64_t num_tokens) {
    const double ms = median_ms(context_, 21, [&] {
      int64_t offset = 0;
      int side = 0;
      for (int layer = 0; layer <= kNumLayers; ++layer) {
        for (const Shape& shape : kShapes) {
          if ((shape.out == kVocab) != (layer == kNumLayers)) continue;
          linear(shape, num_tokens, offset, side);
          offset += shape.num_bytes();
          side ^= 1;
        }
      }
    });
    const double speed = pool_bytes_ / ms / 1e6;
    std::printf("chain of %d layers and head, T %2ld %8.4f ms %7.1f GB/s %5.1f %%\n", kNumLayers,
                num_tokens, ms, speed, 100 * speed / ceiling_);
  }

 private:
  static constexpr int64_t kRowsBytes = kMaxStreamTokens * kInner * 2;

  // Reads what the launch before it wrote.
  void linear(const Shape& shape, int64_t num_tokens, int64_t offset, int side) {
    LinearArgs args;
    args.num_tokens = num_tokens;
    args.in_features = shape.in;
    args.out_features = shape.out;
    args.x = static_cast<const uint8_t*>(rows_) + side * kRowsBytes;
    args.weight = static_cast<const uint8_t*>(pool_) + offset;
    args.bias = bias_;
    args.activation = shape.activation;
    args.y = shape.out == kVocab ? logits_ : static_cast<uint8_t*>(rows_) + (1 - side) * kRowsBytes;
    args.y_dtype = shape.out == kVocab ? DType::kF32 : DType::kF16;
    args.y_stride = shape.out;
    launch_linear_stream(args, context_);
  }

  LaunchContext context_;
  int64_t pool_bytes_ = 0;
  void* pool_ = nullptr;
  void* rows_ = nullptr;
  void* logits_ = nullptr;
  float* bias_ = nullptr;
  double ceiling_ = 0;
};

}  // namespace
}  // namespace caravan::cuda

int main() {
  using namespace caravan::cuda;
  Bench bench;
  bench.measure_ceiling();
  for (const Shape& shape : kShapes) {
    for (const int64_t num_tokens : {1, 2, 4, 8, 16, 32, 64}) bench.bench_shape(shape, num_tokens);
  }
  for (const int64_t num_tokens : {1, 8, 16, 32, 64}) bench.bench_chain(num_tokens);
  bench.measure_ceiling();
}
