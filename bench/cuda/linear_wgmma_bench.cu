// Prefill's matrix products: launch_linear_wgmma with the epilogues of camel-5b's four layers, and
// cuBLASLt's plain product (no bias, no activation; the best of the first eight algorithms of its
// heuristics) in the same run. float16, random data, weights rotated so that L2 does not hold them.
//
//   linear_wgmma_bench [--configs] [T...]     --configs: every tile configuration

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/cuda/linear_wgmma.h"

namespace caravan::cuda {
namespace {

constexpr int kRounds = 9;
constexpr int64_t kRotatedBytes = 256 << 20;

struct Shape {
  const char* name;
  int64_t out, in;
  bool has_bias;
  Activation activation;
};
constexpr Shape kShapes[] = {{"qkv", 12288, 4096, true, Activation::kNone},
                             {"out", 4096, 4096, false, Activation::kNone},
                             {"fc_in", 16384, 4096, true, Activation::kGelu},
                             {"fc_out", 4096, 16384, false, Activation::kNone}};

__global__ void fill_kernel(uint16_t* data, int64_t count, uint32_t seed, float scale) {
  for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    h = (h ^ h >> 16) * 0x7feb352du;
    h = (h ^ h >> 15) * 0x846ca68bu;
    h ^= h >> 16;
    const float v = (static_cast<float>(h >> 8) / 8388608.0f - 1.0f) * scale;
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    data[i] = bits;
  }
}

void* device_random(int64_t count, uint32_t seed, float scale) {
  void* data = nullptr;
  CARAVAN_CUDA_CHECK(cudaMalloc(&data, static_cast<size_t>(count) * 2));
  fill_kernel<<<1024, 256>>>(static_cast<uint16_t*>(data), count, seed, scale);
  CARAVAN_CUDA_CHECK(cudaGetLastError());
  return data;
}

/// One candidate: a graph of `launches` launches, and what one launch took in every round.
struct Timed {
  cudaGraphExec_t exec = nullptr;
  int launches = 0;
  std::vector<double> us;
  double median() {
    std::sort(us.begin(), us.end());
    return us[us.size() / 2];
  }
};

/// Launch i is body(i).
Timed capture(cudaStream_t stream, int launches, const std::function<void(int)>& body) {
  Timed timed;
  timed.launches = launches;
  body(0);
  cudaGraph_t graph;
  CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) body(i);
  CARAVAN_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CARAVAN_CUDA_CHECK(cudaGraphInstantiate(&timed.exec, graph, 0));
  CARAVAN_CUDA_CHECK(cudaGraphDestroy(graph));
  return timed;
}

/// The candidates take turns: under full load the clock follows the power limit and falls within a
/// second, so candidates that ran one after the other would not be comparable.
void measure(cudaStream_t stream, int rounds, std::vector<Timed>& candidates) {
  cudaEvent_t begin, end;
  CARAVAN_CUDA_CHECK(cudaEventCreate(&begin));
  CARAVAN_CUDA_CHECK(cudaEventCreate(&end));
  for (int r = -1; r < rounds; ++r) {
    for (Timed& c : candidates) {
      CARAVAN_CUDA_CHECK(cudaEventRecord(begin, stream));
      CARAVAN_CUDA_CHECK(cudaGraphLaunch(c.exec, stream));
      CARAVAN_CUDA_CHECK(cudaEventRecord(end, stream));
      CARAVAN_CUDA_CHECK(cudaEventSynchronize(end));
      float ms = 0;
      CARAVAN_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
      if (r >= 0) c.us.push_back(ms * 1000 / c.launches);
    }
  }
  CARAVAN_CUDA_CHECK(cudaEventDestroy(begin));
  CARAVAN_CUDA_CHECK(cudaEventDestroy(end));
}

/// cuBLASLt, loaded at run time: the project does not link with it.
class CublasLt {
 public:
  CublasLt() {
    library_ = dlopen("libcublasLt.so.13", RTLD_NOW);
    if (library_ == nullptr) {
      printf("no cuBLASLt: %s\n", dlerror());
      return;
    }
    load(create_, "cublasLtCreate");
    load(matmul_, "cublasLtMatmul");
    load(heuristic_, "cublasLtMatmulAlgoGetHeuristic");
    load(desc_create_, "cublasLtMatmulDescCreate");
    load(desc_set_, "cublasLtMatmulDescSetAttribute");
    load(layout_create_, "cublasLtMatrixLayoutCreate");
    load(preference_create_, "cublasLtMatmulPreferenceCreate");
    load(preference_set_, "cublasLtMatmulPreferenceSetAttribute");
    check(create_(&handle_));
    CARAVAN_CUDA_CHECK(cudaMalloc(&workspace_, kWorkspace));
  }
  /// y = x W^T with each of the first eight algorithms; none without the library. The graphs refer
  /// to nothing of this object but the workspace.
  std::vector<Timed> capture_all(const LinearArgs& a, int64_t w_stride, int num_weights,
                                 int launches, cudaStream_t stream) {
    std::vector<Timed> all;
    if (library_ == nullptr) return all;
    cublasLtMatmulDesc_t desc;
    check(desc_create_(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(desc_set_(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    cublasLtMatrixLayout_t w, x, y;
    check(layout_create_(&w, CUDA_R_16F, a.in_features, a.out_features, a.in_features));
    check(layout_create_(&x, CUDA_R_16F, a.in_features, a.num_tokens, a.in_features));
    check(layout_create_(&y, CUDA_R_16F, a.out_features, a.num_tokens, a.out_features));
    cublasLtMatmulPreference_t preference;
    check(preference_create_(&preference));
    const size_t workspace = kWorkspace;
    check(preference_set_(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                          sizeof(workspace)));
    cublasLtMatmulHeuristicResult_t results[8];
    int count = 0;
    check(heuristic_(handle_, desc, w, x, y, y, preference, 8, results, &count));
    const float one = 1, zero = 0;
    for (int i = 0; i < count; ++i) {
      all.push_back(capture(stream, launches, [&](int launch) {
        const void* weight =
            static_cast<const uint16_t*>(a.weight) + launch % num_weights * w_stride;
        check(matmul_(handle_, desc, &one, weight, w, a.x, x, &zero, a.y, y, a.y, y,
                      &results[i].algo, workspace_, kWorkspace, stream));
      }));
    }
    return all;
  }

 private:
  static constexpr size_t kWorkspace = 64 << 20;
  template <typename F>
  void load(F& function, const char* name) {
    function = reinterpret_cast<F>(dlsym(library_, name));
  }
  static void check(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) {
      printf("cuBLASLt: status %d\n", static_cast<int>(status));
      exit(1);
    }
  }
  void* library_ = nullptr;
  void* workspace_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  decltype(&cublasLtCreate) create_ = nullptr;
  decltype(&cublasLtMatmul) matmul_ = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic_ = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create_ = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set_ = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create_ = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create_ = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set_ = nullptr;
};

int run(int argc, char** argv) {
  bool all_configs = false;
  std::vector<int64_t> token_counts;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--configs") == 0) {
      all_configs = true;
    } else {
      token_counts.push_back(atoll(argv[i]));
    }
  }
  if (token_counts.empty()) token_counts = {128, 256, 512, 1024, 2048, 4096, 16384};
  const int64_t max_tokens = *std::max_element(token_counts.begin(), token_counts.end());

  cudaDeviceProp properties{};
  CARAVAN_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  LaunchContext context;
  context.num_sms = properties.multiProcessorCount;
  context.compute_capability = properties.major * 10 + properties.minor;
  context.use_pdl = true;
  CARAVAN_CUDA_CHECK(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));
  printf("%s, %d SMs; float16; TFLOP/s (ratio to cuBLASLt without bias and activation)\n",
         properties.name, context.num_sms);

  const int64_t widest = 16384;
  const int64_t weight_elements = std::max<int64_t>(kRotatedBytes / 2, 2 * widest * 4096);
  void* x = device_random(max_tokens * widest, 1, 1.0f);
  void* y = device_random(max_tokens * widest, 2, 1.0f);
  void* weights = device_random(weight_elements, 3, 0.03f);
  float* bias = nullptr;
  CARAVAN_CUDA_CHECK(cudaMalloc(&bias, widest * sizeof(float)));
  CARAVAN_CUDA_CHECK(cudaMemset(bias, 0, widest * sizeof(float)));
  CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
  CublasLt cublas;

  const auto configs = wgmma_configs();
  for (const int64_t tokens : token_counts) {
    double total_us = 0, total_cublas = 0, total_flops = 0;
    for (const Shape& shape : kShapes) {
      LinearArgs args;
      args.num_tokens = tokens;
      args.num_readable_rows = max_tokens;
      args.in_features = shape.in;
      args.out_features = shape.out;
      args.x = x;
      args.bias = shape.has_bias ? bias : nullptr;
      args.activation = shape.activation;
      args.y = y;
      args.y_stride = shape.out;
      args.weight = weights;
      const int64_t elements = shape.out * shape.in;
      const int num_weights = static_cast<int>(weight_elements / elements);
      const double flops = 2.0 * tokens * elements;
      const int launches = tokens >= 4096 ? 4 : 20;
      const auto capture_config = [&](const LinearWgmmaConfig& config) {
        return capture(context.stream, launches, [&](int launch) {
          LinearArgs rotated = args;
          rotated.weight = static_cast<uint16_t*>(weights) + launch % num_weights * elements;
          launch_linear_wgmma_with(rotated, config, context);
        });
      };
      // The best algorithm of cuBLASLt first, then it and ours in turns.
      std::vector<Timed> algorithms =
          cublas.capture_all(args, elements, num_weights, launches, context.stream);
      measure(context.stream, 3, algorithms);
      std::sort(algorithms.begin(), algorithms.end(),
                [](Timed& a, Timed& b) { return a.median() < b.median(); });
      const LinearWgmmaConfig chosen = choose_wgmma_config(tokens, shape.out, context.num_sms);
      std::vector<Timed> candidates = {capture_config(chosen)};
      if (!algorithms.empty()) {
        algorithms[0].us.clear();
        candidates.push_back(algorithms[0]);
      }
      const size_t first_config = candidates.size();
      if (all_configs) {
        for (const LinearWgmmaConfig& c : configs) candidates.push_back(capture_config(c));
      }
      measure(context.stream, kRounds, candidates);
      const double us = candidates[0].median();
      const double cublas_us = algorithms.empty() ? 0 : candidates[1].median();
      printf(
          "T=%-5ld %-6s %5ldx%-5ld %3dx%-3d %8.1f us %5.0f TFLOP/s %5.0f GB/s of W; "
          "cuBLASLt %8.1f us %5.0f; ratio %.3f\n",
          static_cast<long>(tokens), shape.name, static_cast<long>(shape.out),
          static_cast<long>(shape.in), chosen.tile_rows, chosen.tile_columns, us, flops / us * 1e-6,
          elements * 2 / us * 1e-3, cublas_us, flops / cublas_us * 1e-6, cublas_us / us);
      if (all_configs) {
        printf("    ");
        for (size_t i = first_config; i < candidates.size(); ++i) {
          const LinearWgmmaConfig& c = configs[i - first_config];
          const double t = candidates[i].median();
          printf(" %dx%d:%.0f(%.1fus)", c.tile_rows, c.tile_columns, flops / t * 1e-6, t);
        }
        printf("\n");
      }
      for (size_t i = 0; i < candidates.size(); ++i) {
        if (i != 1 || algorithms.empty()) {
          CARAVAN_CUDA_CHECK(cudaGraphExecDestroy(candidates[i].exec));
        }
      }
      for (Timed& a : algorithms) CARAVAN_CUDA_CHECK(cudaGraphExecDestroy(a.exec));
      fflush(stdout);
      total_us += us;
      total_cublas += cublas_us;
      total_flops += flops;
    }
    printf("T=%-5ld all four: %.1f us %.0f TFLOP/s; cuBLASLt %.1f us %.0f; ratio %.3f\n",
           static_cast<long>(tokens), total_us, total_flops / total_us * 1e-6, total_cublas,
           total_flops / total_cublas * 1e-6, total_cublas / total_us);
  }
  return 0;
}

}  // namespace
}  // namespace caravan::cuda

int main(int argc, char** argv) { return caravan::cuda::run(argc, argv); }
