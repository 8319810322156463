// LayerNorm against the copy bandwidth of the same run: the ladder of docs/kernels/layer_norm.md,
// the product kernel over row lengths and dtypes, and launches of few rows in a graph.
//   layer_norm_bench [--csv FILE]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/embedding.h"
#include "kernels/cuda/layer_norm.h"
#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 30;  // windows of it, one after the other: L2 is cold
constexpr int kCopyThreads = 512;

// kLoads 16-byte loads in flight a thread, nothing kept in caches.
template <int kLoads>
__global__ void __launch_bounds__(kCopyThreads)
    copy_kernel(const uint4* __restrict__ from, uint4* __restrict__ to) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kCopyThreads * kLoads + threadIdx.x;
  uint4 words[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) words[i] = __ldcs(from + first + i * kCopyThreads);
#pragma unroll
  for (int i = 0; i < kLoads; ++i) __stcs(to + first + i * kCopyThreads, words[i]);
}

__global__ void floor_kernel(float* data) {
  pdl_launch_dependents();
  pdl_wait();
  if (data != nullptr) data[threadIdx.x] += 1.0f;
}

struct Bench {
  LaunchContext context;
  unsigned char *x = nullptr, *delta = nullptr, *y = nullptr;
  float *weight = nullptr, *bias = nullptr, *delta_bias = nullptr;
  double ceiling = 0;  // GB/s read + written
  FILE* csv = nullptr;

  /// Median of 7 samples of several launches each; run(i) is the i-th launch.
  double time_us(const std::function<void(int)>& run, int launches = 10) const {
    cudaEvent_t begin, end;
    CARAVAN_CUDA_CHECK(cudaEventCreate(&begin));
    CARAVAN_CUDA_CHECK(cudaEventCreate(&end));
    std::vector<float> samples;
    int i = 0;
    for (int sample = -1; sample < 7; ++sample) {
      CARAVAN_CUDA_CHECK(cudaEventRecord(begin, context.stream));
      for (int j = 0; j < launches; ++j) run(i++);
      CARAVAN_CUDA_CHECK(cudaEventRecord(end, context.stream));
      CARAVAN_CUDA_CHECK(cudaEventSynchronize(end));
      float ms = 0;
      CARAVAN_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
      if (sample >= 0) samples.push_back(ms);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(samples.begin(), samples.end());
    return samples[samples.size() / 2] * 1e3 / launches;
  }

  void report(const char* name, int64_t num_tokens, int64_t hidden_size, double us,
              double bytes) const {
    const double gbps = bytes / us / 1e3;
    std::printf("%-24s [%6ld, %5ld] %9.2f us %7.0f GB/s %5.1f %% of copy\n", name,
                static_cast<long>(num_tokens), static_cast<long>(hidden_size), us, gbps,
                100 * gbps / ceiling);
    if (csv != nullptr) {
      std::fprintf(csv, "%s,%ld,%ld,%.3f,%.1f,%.4f\n", name, static_cast<long>(num_tokens),
                   static_cast<long>(hidden_size), us, gbps, gbps / ceiling);
    }
  }

  /// bytes: a multiple of 64 KiB.
  template <int kLoads>
  void copy(size_t offset, size_t bytes) const {
    copy_kernel<kLoads><<<static_cast<unsigned>(bytes / (16 * kCopyThreads * kLoads)), kCopyThreads,
                          0, context.stream>>>(reinterpret_cast<const uint4*>(x + offset),
                                               reinterpret_cast<uint4*>(y + offset));
  }

  void measure_ceiling() {
    for (const size_t bytes : {kBufferBytes / 8, kBufferBytes / 2, kBufferBytes}) {
      const auto gbps = [&](const std::function<void(size_t)>& run) {
        const double us =
            time_us([&](int i) { run(static_cast<size_t>(i) % (kBufferBytes / bytes) * bytes); });
        return 2.0 * static_cast<double>(bytes) / us / 1e3;
      };
      const double one = gbps([&](size_t offset) { copy<1>(offset, bytes); });
      const double four = gbps([&](size_t offset) { copy<4>(offset, bytes); });
      const double runtime = gbps([&](size_t offset) {
        CARAVAN_CUDA_CHECK(cudaMemcpyAsync(y + offset, x + offset, bytes, cudaMemcpyDeviceToDevice,
                                           context.stream));
      });
      std::printf("copy of %4zu MB: one load a thread %.0f, four %.0f, cudaMemcpy %.0f GB/s\n",
                  bytes >> 20, one, four, runtime);
      const double best = std::max({one, four, runtime});
      ceiling = std::max(ceiling, best);
      if (csv != nullptr) std::fprintf(csv, "copy,%zu,0,0,%.1f,1\n", bytes >> 20, best);
    }
    std::printf("ceiling: %.0f GB/s read + written\n", ceiling);
  }

  LayerNormArgs args(int64_t num_tokens, int64_t hidden_size, DType x_dtype, DType y_dtype,
                     bool with_delta, int i) const {
    const auto rows = static_cast<size_t>(num_tokens * hidden_size);
    const size_t windows = std::max<size_t>(1, kBufferBytes / (rows * dtype_bytes(x_dtype)));
    const size_t window = static_cast<size_t>(i) % windows;
    LayerNormArgs a;
    a.num_tokens = num_tokens;
    a.hidden_size = hidden_size;
    a.x = x + window * rows * dtype_bytes(x_dtype);
    a.x_dtype = x_dtype;
    if (with_delta) {
      a.delta = delta + window * rows * dtype_bytes(y_dtype);
      a.delta_bias = delta_bias;
    }
    a.weight = weight;
    a.bias = bias;
    a.y = y + window * rows * dtype_bytes(y_dtype);
    a.y_dtype = y_dtype;
    return a;
  }
  static size_t dtype_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
  static double traffic(const LayerNormArgs& a) {
    const double x_bytes = static_cast<double>(dtype_bytes(a.x_dtype));
    const double y_bytes = static_cast<double>(dtype_bytes(a.y_dtype));
    const double each = a.delta != nullptr ? 2 * x_bytes + 2 * y_bytes : x_bytes + y_bytes;
    return each * static_cast<double>(a.num_tokens * a.hidden_size);
  }

  void product(const char* name, int64_t num_tokens, int64_t hidden_size, DType x_dtype,
               DType y_dtype, bool with_delta) const {
    const double us = time_us([&](int i) {
      launch_layer_norm(args(num_tokens, hidden_size, x_dtype, y_dtype, with_delta, i), context);
    });
    report(name, num_tokens, hidden_size, us,
           traffic(args(num_tokens, hidden_size, x_dtype, y_dtype, with_delta, 0)));
  }

  /// Time of one of 200 launches in a graph, each waiting for the one before.
  double chain_us(const std::function<void(const LaunchContext&)>& start, bool with_pdl) const {
    constexpr int kChain = 200;
    LaunchContext chained = context;
    chained.use_pdl = with_pdl;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kChain; ++i) start(chained);
    CARAVAN_CUDA_CHECK(cudaStreamEndCapture(context.stream, &graph));
    CARAVAN_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
    const double us =
        time_us([&](int) { CARAVAN_CUDA_CHECK(cudaGraphLaunch(executable, context.stream)); }, 3);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    return us / kChain;
  }

  /// What one more LayerNorm costs a decode step (rows stay in L2, as there), beside a kernel that
  /// only waits and one that waits, reads a value and writes one.
  void latency(bool with_pdl) const {
    const char* mode = with_pdl ? "pdl" : "graph";
    const auto floor = [&](const char* name, bool has_access) {
      const double us = chain_us(
          [&](const LaunchContext& chained) {
            launch(chained, floor_kernel, dim3(1), dim3(32), 0, has_access ? weight : nullptr);
          },
          with_pdl);
      report((std::string(name) + "_" + mode).c_str(), 0, 0, us, 0);
    };
    floor("latency_empty", false);
    floor("latency_access", true);
    for (const int64_t num_tokens : {1, 8, 32, 64}) {
      const LayerNormArgs one = args(num_tokens, 4096, DType::kF32, DType::kF16, true, 0);
      const double us = chain_us(
          [&](const LaunchContext& chained) { launch_layer_norm(one, chained); }, with_pdl);
      report((std::string("latency_") + mode).c_str(), num_tokens, 4096, us, traffic(one));
    }
  }
};

int run(int argc, char** argv) {
  Bench bench;
  if (argc == 3 && std::strcmp(argv[1], "--csv") == 0) {
    bench.csv = std::fopen(argv[2], "w");
    if (bench.csv == nullptr) return 1;
    std::fprintf(bench.csv, "case,tokens,hidden,us,gbps,share\n");
  }
  cudaDeviceProp properties{};
  CARAVAN_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  bench.context.num_sms = properties.multiProcessorCount;
  bench.context.compute_capability = properties.major * 10 + properties.minor;
  CARAVAN_CUDA_CHECK(cudaStreamCreate(&bench.context.stream));
  for (unsigned char** buffer : {&bench.x, &bench.delta, &bench.y}) {
    CARAVAN_CUDA_CHECK(cudaMalloc(buffer, kBufferBytes));
    // As bytes of every dtype these are small finite numbers: x stays finite under many deltas.
    launch_fill_random(*buffer, DType::kF16, kBufferBytes / 2, 0, 0.1f, 1, bench.context);
  }
  for (float** vector : {&bench.weight, &bench.bias, &bench.delta_bias}) {
    CARAVAN_CUDA_CHECK(cudaMalloc(vector, 65536 * sizeof(float)));
    launch_fill_random(*vector, DType::kF32, 65536, 0, 1, 2, bench.context);
  }
  std::printf("%s\n", properties.name);
  bench.measure_ceiling();
  for (const int64_t num_tokens : {65536, 16384}) {
    for (const LayerNormStep step : {LayerNormStep::kScalar, LayerNormStep::kVectorized,
                                     LayerNormStep::kRegisters, LayerNormStep::kFinal}) {
      const auto window = [&](int i) {
        return bench.args(num_tokens, 4096, DType::kF16, DType::kF16, false, i);
      };
      const double us =
          bench.time_us([&](int i) { launch_layer_norm_step(step, window(i), bench.context); });
      bench.report((std::string("step_") + layer_norm_step_name(step)).c_str(), num_tokens, 4096,
                   us, Bench::traffic(window(0)));
    }
  }
  const int64_t kHiddenSizes[] = {768, 1024, 1600, 2048, 4096, 8192, 16384};
  for (const int64_t hidden_size : kHiddenSizes) {
    const int64_t num_tokens = (int64_t{1} << 28) / hidden_size;
    bench.product("f16", num_tokens, hidden_size, DType::kF16, DType::kF16, false);
  }
  bench.product("bf16", 65536, 4096, DType::kBF16, DType::kBF16, false);
  for (const int64_t hidden_size : kHiddenSizes) {
    const int64_t num_tokens = (int64_t{1} << 28) / hidden_size;
    bench.product("f16_delta", num_tokens, hidden_size, DType::kF16, DType::kF16, true);
  }
  for (const int64_t hidden_size : kHiddenSizes) {
    const int64_t num_tokens = (int64_t{1} << 27) / hidden_size;
    bench.product("f32_delta_f16", num_tokens, hidden_size, DType::kF32, DType::kF16, true);
  }
  bench.product("f16_delta", 16384, 4096, DType::kF16, DType::kF16, true);
  bench.product("f32_delta_f16", 2048, 4096, DType::kF32, DType::kF16, true);
  bench.product("f32_f32", 32768, 4096, DType::kF32, DType::kF32, false);
  bench.product("f16_odd", 53687, 5001, DType::kF16, DType::kF16, false);
  bench.product("f16_long", 8192, 32768, DType::kF16, DType::kF16, false);
  for (const bool with_pdl : {false, true}) bench.latency(with_pdl);
  if (bench.csv != nullptr) std::fclose(bench.csv);
  return 0;
}

}  // namespace
}  // namespace caravan::cuda

int main(int argc, char** argv) { return caravan::cuda::run(argc, argv); }
