// Embedding, row gather, weight packing and random fill against the copy and write bandwidth of the
// same run.

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "kernels/cuda/embedding.h"

namespace caravan::cuda {
namespace {

double time_us(const LaunchContext& context, const std::function<void()>& run, int launches = 5) {
  cudaEvent_t begin, end;
  CARAVAN_CUDA_CHECK(cudaEventCreate(&begin));
  CARAVAN_CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> samples;
  for (int sample = -1; sample < 7; ++sample) {
    CARAVAN_CUDA_CHECK(cudaEventRecord(begin, context.stream));
    for (int j = 0; j < launches; ++j) run();
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

void report(const char* name, double us, double bytes) {
  std::printf("%-40s %10.2f us %7.0f GB/s\n", name, us, bytes / us / 1e3);
}

int run() {
  LaunchContext context;
  cudaDeviceProp properties{};
  CARAVAN_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  context.num_sms = properties.multiProcessorCount;
  context.compute_capability = properties.major * 10 + properties.minor;
  CARAVAN_CUDA_CHECK(cudaStreamCreate(&context.stream));
  constexpr int64_t kBytes = 10'000'000'000;
  unsigned char* data = nullptr;
  CARAVAN_CUDA_CHECK(cudaMalloc(&data, kBytes));
  const double copied = 4e9;
  report("cudaMemcpy of 4 GB, read + written",
         time_us(context,
                 [&] {
                   CARAVAN_CUDA_CHECK(cudaMemcpyAsync(data + 5'000'000'000, data,
                                                      static_cast<size_t>(copied),
                                                      cudaMemcpyDeviceToDevice, context.stream));
                 }),
         2 * copied);
  report("cudaMemset of 10 GB",
         time_us(context,
                 [&] { CARAVAN_CUDA_CHECK(cudaMemsetAsync(data, 0, kBytes, context.stream)); }),
         kBytes);
  report("fill_random float16, 10 GB",
         time_us(context,
                 [&] { launch_fill_random(data, DType::kF16, kBytes / 2, 0, 0.02f, 1, context); }),
         kBytes);
  report("fill_random float32, 10 GB",
         time_us(context,
                 [&] { launch_fill_random(data, DType::kF32, kBytes / 4, 0, 0.02f, 1, context); }),
         kBytes);

  constexpr int64_t kIn = 16384, kOut = 16384;
  for (const DType src : {DType::kF16, DType::kF32}) {
    for (const bool is_in_out : {false, true}) {
      PackWeightArgs args;
      args.in_features = kIn;
      args.out_features = kOut;
      args.is_in_out = is_in_out;
      args.src = data;
      args.src_dtype = src;
      args.dst = data + 5'000'000'000;
      args.dst_dtype = DType::kF16;
      char name[64];
      std::snprintf(name, sizeof name, "pack_weight %s %s -> f16",
                    src == DType::kF16 ? "f16" : "f32", is_in_out ? "[in, out]" : "[out, in]");
      report(name, time_us(context, [&] { launch_pack_weight(args, context); }),
             static_cast<double>(kIn * kOut) * (src == DType::kF16 ? 4 : 6));
    }
  }

  std::vector<int32_t> ids(65536), positions(65536), rows(65536);
  for (size_t t = 0; t < ids.size(); ++t) {
    ids[t] = static_cast<int32_t>(t * 7919 % 50258);
    positions[t] = static_cast<int32_t>(t % 2048);
    rows[t] = static_cast<int32_t>(t * 37 % 65536);
  }
  const size_t index_bytes = ids.size() * sizeof(int32_t);
  int32_t* indices = nullptr;
  CARAVAN_CUDA_CHECK(cudaMalloc(&indices, 3 * index_bytes));
  CARAVAN_CUDA_CHECK(cudaMemcpy(indices, ids.data(), index_bytes, cudaMemcpyHostToDevice));
  CARAVAN_CUDA_CHECK(
      cudaMemcpy(indices + ids.size(), positions.data(), index_bytes, cudaMemcpyHostToDevice));
  CARAVAN_CUDA_CHECK(
      cudaMemcpy(indices + 2 * ids.size(), rows.data(), index_bytes, cudaMemcpyHostToDevice));
  for (const int64_t num_tokens : {1, 32, 2048, 65536}) {
    EmbeddingArgs args;
    args.num_tokens = num_tokens;
    args.hidden_size = 4096;
    args.vocab_size = 50258;
    args.token_ids = indices;
    args.positions = indices + ids.size();
    args.wte = data;
    args.wpe = data + 1'000'000'000;
    args.out = reinterpret_cast<float*>(data + 2'000'000'000);
    char name[64];
    std::snprintf(name, sizeof name, "embedding f16 [%ld, 4096]", static_cast<long>(num_tokens));
    report(name,
           time_us(
               context, [&] { launch_embedding(args, context); }, 20),
           static_cast<double>(num_tokens) * 4096 * 8);
    GatherRowsArgs gather;
    gather.num_rows = num_tokens;
    gather.row_bytes = 4096 * 4;
    gather.rows = indices + 2 * ids.size();
    gather.x = data;
    gather.out = data + 5'000'000'000;
    std::snprintf(name, sizeof name, "gather_rows f32 [%ld, 4096]", static_cast<long>(num_tokens));
    report(name,
           time_us(
               context, [&] { launch_gather_rows(gather, context); }, 20),
           static_cast<double>(num_tokens) * 4096 * 8);
  }
  return 0;
}

}  // namespace
}  // namespace caravan::cuda

int main() { return caravan::cuda::run(); }
