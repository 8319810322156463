// Time of launch_sample in a CUDA graph, as a decoding step runs it: the logits have just been
// written, so up to 50 MB of them are in L2. The ceiling printed beside it is an empty kernel of
// the same grid in the same kind of graph.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sampling.h"

using namespace caravan::cuda;

namespace {

constexpr int64_t kVocab = 50257;
constexpr int64_t kStride = 50304;
constexpr int64_t kMaxRows = 256;

__global__ void empty_kernel() {
  pdl_launch_dependents();
  pdl_wait();
}

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// Microseconds of one of the launches of a graph of 20.
template <typename Launch>
double graph_us(cudaStream_t stream, Launch launch_one) {
  constexpr int kLaunches = 20;
  CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < kLaunches; ++i) launch_one();
  cudaGraph_t graph;
  CARAVAN_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec;
  CARAVAN_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CARAVAN_CUDA_CHECK(cudaEventCreate(&begin));
  CARAVAN_CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 25; ++i) {
    CARAVAN_CUDA_CHECK(cudaEventRecord(begin, stream));
    CARAVAN_CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CARAVAN_CUDA_CHECK(cudaEventRecord(end, stream));
    CARAVAN_CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CARAVAN_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 4) times.push_back(ms * 1e3f / kLaunches);
  }
  CARAVAN_CUDA_CHECK(cudaGraphExecDestroy(exec));
  CARAVAN_CUDA_CHECK(cudaGraphDestroy(graph));
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
  // "generic": what compute_80 PTX can do, to go with CUDA_FORCE_PTX_JIT=1.
  const bool is_generic = argc > 1 && std::strcmp(argv[1], "generic") == 0;
  if (is_generic) context.compute_capability = 80;
  context.use_pdl = context.compute_capability >= 90;
  CARAVAN_CUDA_CHECK(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));

  // Bell-shaped, standard deviation 3: the 50 most likely tokens hold a fifth of the probability.
  std::vector<float> logits(kMaxRows * kStride);
  for (size_t i = 0; i < logits.size(); ++i) {
    double bell = 0;
    for (uint64_t u = 0; u < 4; ++u) {
      bell += static_cast<double>(mix((i * 4 + u + 1) * 0x9e3779b97f4a7c15ull) >> 11) * 0x1p-53;
    }
    logits[i] = static_cast<float>((bell - 2) * std::sqrt(3.0) * 3);
  }
  float* device_logits = nullptr;
  RowSampling* device_rows = nullptr;
  uint32_t* seen = nullptr;
  int32_t *tokens = nullptr, *host_tokens = nullptr;
  CARAVAN_CUDA_CHECK(cudaMalloc(&device_logits, logits.size() * 4));
  CARAVAN_CUDA_CHECK(
      cudaMemcpy(device_logits, logits.data(), logits.size() * 4, cudaMemcpyHostToDevice));
  CARAVAN_CUDA_CHECK(cudaMalloc(&device_rows, kMaxRows * sizeof(RowSampling)));
  CARAVAN_CUDA_CHECK(cudaMalloc(&seen, kMaxRows * (kVocab + 31) / 32 * 4 + 4096));
  CARAVAN_CUDA_CHECK(cudaMalloc(&tokens, kMaxRows * 4));
  CARAVAN_CUDA_CHECK(cudaHostAlloc(&host_tokens, kMaxRows * 4, cudaHostAllocMapped));

  std::printf("%s, vocabulary %d, us a launch in a graph of 20, pdl %d\n", properties.name,
              static_cast<int>(kVocab), context.use_pdl);
  struct Mode {
    const char* name;
    RowSampling sampling;
    bool has_seen;
  };
  RowSampling greedy{}, softmax{}, top_p{}, top_k{}, both{}, hot{}, penalty{};
  softmax.temperature = top_p.temperature = top_k.temperature = both.temperature = 0.8f;
  penalty.temperature = 0.8f;
  hot.temperature = 3.0f;
  top_p.top_p = both.top_p = hot.top_p = penalty.top_p = 0.9f;
  top_k.top_k = both.top_k = penalty.top_k = 50;
  penalty.repetition_penalty = 1.1f;
  const Mode modes[] = {{"greedy", greedy, false},         {"temperature .8", softmax, false},
                        {"top-p .9", top_p, false},        {"top-p .9 at T 3", hot, false},
                        {"top-k 50", top_k, false},        {"top-k 50, top-p .9", both, false},
                        {"... and penalty", penalty, true}};
  const int64_t row_counts[] = {1, 8, 32, 128, 256};
  std::printf("%-20s", "rows");
  for (const int64_t num_rows : row_counts) std::printf("%9d", static_cast<int>(num_rows));
  std::printf("\n%-20s", "empty kernel");
  for (const int64_t num_rows : row_counts) {
    std::printf("%9.2f", graph_us(context.stream, [&] {
                  launch(context, empty_kernel, dim3(static_cast<unsigned>(num_rows)), dim3(1024),
                         0);
                }));
  }
  for (const Mode& mode : modes) {
    std::printf("\n%-20s", mode.name);
    std::vector<RowSampling> rows(kMaxRows, mode.sampling);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].seed = i;
      rows[i].history_slot = static_cast<int32_t>(i);
    }
    CARAVAN_CUDA_CHECK(cudaMemcpy(device_rows, rows.data(), rows.size() * sizeof(RowSampling),
                                  cudaMemcpyHostToDevice));
    for (const int64_t num_rows : row_counts) {
      SampleArgs args;
      args.num_rows = num_rows;
      args.vocab_size = kVocab;
      args.logits_stride = kStride;
      args.logits = device_logits;
      args.rows = device_rows;
      args.is_greedy = mode.sampling.temperature == 0.0f;
      args.seen = mode.has_seen ? seen : nullptr;
      args.tokens = tokens;
      args.host_tokens = host_tokens;
      std::printf("%9.2f", graph_us(context.stream, [&] { launch_sample(args, context); }));
    }
  }
  std::printf("\n");
  CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
  return 0;
}
