// Attention kernels over a paged cache of camel-5b's shape (32 heads of 128, float16 queries; a
// cache of float16, int8 and float8_e4m3fn): decode in us, GB/s of K and V and share of the read
// ceiling of the same run, prefill in us and TFLOP/s.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {
namespace {

constexpr int64_t kHeads = 32;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kBlock = 16;
constexpr int64_t kNumBlocks = 16384;  // 2.1 GB of K, as much of V
constexpr int64_t kBlockBytes = kHeads * kBlock * kHeadDim * 2;

__global__ void __launch_bounds__(512)
    read_kernel(const uint4* data, int64_t count, uint32_t* out) {
  constexpr int kUnroll = 8;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  uint32_t sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = __ldcs(data + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (sum == 0x12345678u) *out = sum;
}

template <typename T>
T* upload(const std::vector<T>& values) {
  T* data = nullptr;
  CARAVAN_CUDA_CHECK(cudaMalloc(&data, values.size() * sizeof(T)));
  CARAVAN_CUDA_CHECK(
      cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

/// Median microseconds of one of `launches` launches in a graph, over `replays` replays.
double median_us(const LaunchContext& context, int launches, int replays,
                 const std::function<void(int)>& launch_one) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
  CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) launch_one(i);
  CARAVAN_CUDA_CHECK(cudaStreamEndCapture(context.stream, &graph));
  CARAVAN_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  CARAVAN_CUDA_CHECK(cudaEventCreate(&begin));
  CARAVAN_CUDA_CHECK(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i < replays + 1; ++i) {
    CARAVAN_CUDA_CHECK(cudaEventRecord(begin, context.stream));
    CARAVAN_CUDA_CHECK(cudaGraphLaunch(exec, context.stream));
    CARAVAN_CUDA_CHECK(cudaEventRecord(end, context.stream));
    CARAVAN_CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0.0f;
    CARAVAN_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) times.push_back(ms * 1e3 / launches);
  }
  CARAVAN_CUDA_CHECK(cudaEventDestroy(begin));
  CARAVAN_CUDA_CHECK(cudaEventDestroy(end));
  CARAVAN_CUDA_CHECK(cudaGraphExecDestroy(exec));
  CARAVAN_CUDA_CHECK(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct Device {
  LaunchContext context;
  __half* k = nullptr;
  __half* v = nullptr;
  __half* qkv = nullptr;
  __half* out = nullptr;
  void* workspace = nullptr;
  float* kv_scale = nullptr;
  double read_ceiling = 0.0;  // GB/s

  /// As many blocks of any dtype, so that the caches stay as cold.
  KvCacheArgs cache(DType dtype) const {
    return {k, v, dtype, kNumBlocks, kBlock, kHeads, kHeadDim, kv_scale, kv_scale};
  }
  /// Values up to 1.
  void fill_cache(DType dtype) const {
    const float one = 1.0f / scale(dtype);
    const int64_t count = kNumBlocks * kBlockBytes / 2;
    launch_fill_random(k, dtype, count, 0.0f, one, 1, context);
    launch_fill_random(v, dtype, count, 0.0f, one, 2, context);
    const std::vector<float> scales(kHeads, scale(dtype));
    CARAVAN_CUDA_CHECK(
        cudaMemcpy(kv_scale, scales.data(), kHeads * sizeof(float), cudaMemcpyHostToDevice));
    CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
  }
  static float scale(DType dtype) {
    return dtype == DType::kI8 ? 8.0f / 127.0f : dtype == DType::kF8E4M3 ? 8.0f / 448.0f : 1.0f;
  }
};

constexpr int64_t kMaxRows = 32768;

Device make_device() {
  Device device;
  cudaDeviceProp properties{};
  CARAVAN_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  device.context.num_sms = properties.multiProcessorCount;
  device.context.compute_capability = properties.major * 10 + properties.minor;
  device.context.use_pdl = properties.major >= 9;
  CARAVAN_CUDA_CHECK(cudaStreamCreateWithFlags(&device.context.stream, cudaStreamNonBlocking));
  const int64_t qkv_elements = kMaxRows * 3 * kHeads * kHeadDim;
  CARAVAN_CUDA_CHECK(cudaMalloc(&device.k, kNumBlocks * kBlockBytes));
  CARAVAN_CUDA_CHECK(cudaMalloc(&device.v, kNumBlocks * kBlockBytes));
  CARAVAN_CUDA_CHECK(cudaMalloc(&device.qkv, qkv_elements * 2));
  CARAVAN_CUDA_CHECK(cudaMalloc(&device.out, qkv_elements * 2 / 3));
  CARAVAN_CUDA_CHECK(
      cudaMalloc(&device.workspace, attention_workspace_bytes(128, kHeads, kHeadDim, 2048)));
  CARAVAN_CUDA_CHECK(cudaMalloc(&device.kv_scale, kHeads * sizeof(float)));
  device.fill_cache(DType::kF16);
  launch_fill_random(device.qkv, DType::kF16, qkv_elements, 0.0f, 1.0f, 3, device.context);
  uint32_t* sink = nullptr;
  CARAVAN_CUDA_CHECK(cudaMalloc(&sink, 4));
  for (int blocks : {2, 4, 8}) {
    const double us = median_us(device.context, 3, 5, [&](int i) {
      read_kernel<<<device.context.num_sms * blocks, 512, 0, device.context.stream>>>(
          reinterpret_cast<const uint4*>(i % 2 == 0 ? device.k : device.v),
          kNumBlocks * kBlockBytes / 16, sink);
    });
    device.read_ceiling =
        std::max(device.read_ceiling, static_cast<double>(kNumBlocks * kBlockBytes) / us * 1e-3);
  }
  CARAVAN_CUDA_CHECK(cudaFree(sink));
  std::printf("%s, %d SMs, read ceiling %.0f GB/s\n", properties.name, device.context.num_sms,
              device.read_ceiling);
  return device;
}

/// Block tables of `copies` batches, each of other blocks of the cache as far as they last.
std::vector<int32_t> make_tables(int64_t copies, int64_t num_seqs, int64_t blocks_per_seq) {
  std::vector<int32_t> order(kNumBlocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  std::vector<int32_t> tables(copies * num_seqs * blocks_per_seq);
  for (size_t i = 0; i < tables.size(); ++i) tables[i] = order[i % kNumBlocks];
  return tables;
}

/// Returns microseconds. max_context_len: what a captured graph would have been sized for.
double time_decode(const Device& device, const LaunchContext& context, DType dtype,
                   int64_t num_seqs, int64_t context_len, int64_t max_context_len,
                   bool is_settled) {
  const int64_t blocks_per_seq = (context_len + kBlock - 1) / kBlock;
  const int64_t copies = std::max<int64_t>(1, kNumBlocks / (num_seqs * blocks_per_seq));
  int32_t* tables = upload(make_tables(copies, num_seqs, blocks_per_seq));
  int32_t* lens = upload(std::vector<int32_t>(num_seqs, static_cast<int32_t>(context_len)));
  AttentionArgs args;
  args.num_tokens = num_seqs;
  args.num_seqs = num_seqs;
  args.qkv = device.qkv;
  args.context_lens = lens;
  args.max_blocks_per_seq = blocks_per_seq;
  args.max_context_len = max_context_len;
  args.cache = device.cache(dtype);
  args.scale = 0.0883883f;
  args.out = device.out;
  args.workspace = device.workspace;
  args.is_context_settled = is_settled;
  const int launches = num_seqs * context_len > 16384 ? 20 : 60;
  const double us = median_us(context, launches, 5, [&](int i) {
    args.block_tables = tables + i % copies * num_seqs * blocks_per_seq;
    launch_attention_decode(args, context);
  });
  CARAVAN_CUDA_CHECK(cudaFree(tables));
  CARAVAN_CUDA_CHECK(cudaFree(lens));
  return us;
}

void bench_decode(const Device& device, DType dtype) {
  for (const bool is_settled : {false, true}) {
    for (const int64_t num_seqs : {1, 8, 32, 128}) {
      for (const int64_t context_len : {512, 1500, 2048}) {
        const double us =
            time_decode(device, device.context, dtype, num_seqs, context_len, 2048, is_settled);
        const double bytes = 2.0 * static_cast<double>(dtype_size(dtype)) * kHeads * kHeadDim *
                             static_cast<double>(num_seqs * context_len);
        std::printf(
            "decode %s%s batch %3d context %4d: %8.2f us %6.0f GB/s %5.1f %% of the ceiling\n",
            dtype_name(dtype), is_settled ? " (settled)" : "", static_cast<int>(num_seqs),
            static_cast<int>(context_len), us, bytes / us * 1e-3,
            bytes / us * 1e-1 / device.read_ceiling);
      }
    }
  }
}

/// num_seqs sequences of num_tokens query tokens after `prefix` cached ones.
void bench_prefill(const Device& device, const char* name, const LaunchContext& context,
                   DType dtype, bool is_settled, int64_t num_seqs, int64_t num_tokens,
                   int64_t prefix) {
  const int64_t context_len = prefix + num_tokens;
  const int64_t blocks_per_seq = (context_len + kBlock - 1) / kBlock;
  int32_t* tables = upload(make_tables(1, num_seqs, blocks_per_seq));
  int32_t* lens = upload(std::vector<int32_t>(num_seqs, static_cast<int32_t>(context_len)));
  std::vector<int32_t> starts;
  std::vector<int32_t> tiles;
  for (int64_t s = 0; s <= num_seqs; ++s) starts.push_back(static_cast<int32_t>(s * num_tokens));
  for (int64_t s = 0; s < num_seqs; ++s) {
    for (int64_t first = 0; first < num_tokens; first += kQueryTile) {
      tiles.push_back(static_cast<int32_t>(s));
      tiles.push_back(static_cast<int32_t>(first));
    }
  }
  int32_t* query_start = upload(starts);
  int32_t* device_tiles = upload(tiles);
  AttentionArgs args;
  args.num_tokens = num_seqs * num_tokens;
  args.num_seqs = num_seqs;
  args.qkv = device.qkv;
  args.query_start = query_start;
  args.context_lens = lens;
  args.block_tables = tables;
  args.max_blocks_per_seq = blocks_per_seq;
  args.max_context_len = context_len;
  args.cache = device.cache(dtype);
  args.scale = 0.0883883f;
  args.out = device.out;
  args.is_context_settled = is_settled;
  const double us = median_us(context, 20, 5, [&](int) {
    launch_attention_prefill(args, device_tiles, static_cast<int64_t>(tiles.size()) / 2, context);
  });
  const double flops = 4.0 * kHeads * kHeadDim * static_cast<double>(num_seqs * num_tokens) *
                       (static_cast<double>(prefix) + 0.5 * static_cast<double>(num_tokens));
  std::printf("%s %s %2d x %4d after %4d: %9.2f us %6.1f TFLOP/s\n", name, dtype_name(dtype),
              static_cast<int>(num_seqs), static_cast<int>(num_tokens), static_cast<int>(prefix),
              us, flops / us * 1e-6);
  for (int32_t* p : {tables, lens, query_start, device_tiles}) CARAVAN_CUDA_CHECK(cudaFree(p));
}

void bench_prefill_shapes(const Device& device, const char* name, const LaunchContext& context,
                          DType dtype, bool is_settled) {
  bench_prefill(device, name, context, dtype, is_settled, 1, 512, 0);
  bench_prefill(device, name, context, dtype, is_settled, 1, 2048, 0);
  bench_prefill(device, name, context, dtype, is_settled, 8, 2048, 0);
  bench_prefill(device, name, context, dtype, is_settled, 32, 512, 0);
  bench_prefill(device, name, context, dtype, is_settled, 1, 512, 1536);
}

}  // namespace
}  // namespace caravan::cuda

// usage: attention_bench [all|decode|prefill [float16|int8|float8_e4m3fn]]
int main(int argc, char** argv) {
  using namespace caravan::cuda;
  using caravan::DType;
  const std::string what = argc > 1 ? argv[1] : "all";
  const std::string only = argc > 2 ? argv[2] : "";
  const Device device = make_device();
  LaunchContext before_hopper = device.context;
  before_hopper.compute_capability = 80;
  for (const DType dtype : {DType::kF16, DType::kI8, DType::kF8E4M3}) {
    if (!only.empty() && only != caravan::dtype_name(dtype)) continue;
    device.fill_cache(dtype);
    if (what != "prefill") bench_decode(device, dtype);
    if (what == "decode") continue;
    bench_prefill_shapes(device, "prefill", device.context, dtype, false);
    bench_prefill_shapes(device, "prefill (settled)", device.context, dtype, true);
    bench_prefill_shapes(device, "prefill (mma.sync)", before_hopper, dtype, false);
  }
  return 0;
}
