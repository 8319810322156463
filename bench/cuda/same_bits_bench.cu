// What it costs that linear layers never split k: the layers of camel-5b against the fastest
// product that cuBLASLt has, with a split of k and without.
//
// Microseconds of one launch in a CUDA graph of 20, median of 9 replays. Every launch reads weights
// of its own, from a pool of 10 GB. cuBLASLt: of its 32 first suggestions with 64 MiB of workspace
// the fastest, measured in the same way; no bias and no activation, which ours have.

#include <cublasLt.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/cuda/linear.h"

#define CHECK_LT(call)                                                        \
  do {                                                                        \
    const cublasStatus_t status = (call);                                     \
    if (status != CUBLAS_STATUS_SUCCESS) {                                    \
      std::fprintf(stderr, "%s: %s\n", #call, cublasLtGetStatusName(status)); \
      std::exit(1);                                                           \
    }                                                                         \
  } while (false)

namespace caravan::cuda {
namespace {

struct Shape {
  const char* name;
  int64_t out, in;
  Activation activation;
  int64_t num_bytes() const { return out * in * 2; }
};
constexpr Shape kShapes[] = {{"attn.c_attn", 12288, 4096, Activation::kNone},
                             {"attn.c_proj", 4096, 4096, Activation::kNone},
                             {"mlp.c_fc", 16384, 4096, Activation::kGelu},
                             {"mlp.c_proj", 4096, 16384, Activation::kNone}};
constexpr int64_t kMaxTokens = 512, kMaxWidth = 16384;
constexpr int64_t kPoolBytes = int64_t{10} << 30;
constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr int kLaunches = 20, kReplays = 9, kSuggestions = 32;

// Uniform in +-[2^-7, 2^-6): finite, and as costly in power as real weights.
__global__ void fill_kernel(uint16_t* data, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += stride) {
    uint32_t bits = static_cast<uint32_t>(i) * 2654435761u ^ static_cast<uint32_t>(i >> 20);
    bits ^= bits >> 15;
    bits *= 0x846ca68bu;
    data[i] = static_cast<uint16_t>((bits & 0x83FF) | (8 << 10));
  }
}

// Median milliseconds of the replays of what `record` queues.
double median_ms(cudaStream_t stream, const std::function<void()>& record) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  record();
  CARAVAN_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CARAVAN_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t start, stop;
  CARAVAN_CUDA_CHECK(cudaEventCreate(&start));
  CARAVAN_CUDA_CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = -2; i < kReplays; ++i) {
    CARAVAN_CUDA_CHECK(cudaEventRecord(start, stream));
    CARAVAN_CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CARAVAN_CUDA_CHECK(cudaEventRecord(stop, stream));
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
    CARAVAN_CUDA_CHECK(cudaMalloc(&pool_, kPoolBytes));
    CARAVAN_CUDA_CHECK(cudaMalloc(&x_, kMaxTokens * kMaxWidth * 2));
    CARAVAN_CUDA_CHECK(cudaMalloc(&y_, kMaxTokens * kMaxWidth * 2));
    CARAVAN_CUDA_CHECK(cudaMalloc(&bias_, kMaxWidth * 4));
    CARAVAN_CUDA_CHECK(cudaMemset(bias_, 0, kMaxWidth * 4));
    CARAVAN_CUDA_CHECK(cudaMalloc(&workspace_, kWorkspaceBytes));
    fill_kernel<<<2048, 256, 0, context_.stream>>>(static_cast<uint16_t*>(pool_), kPoolBytes / 2);
    fill_kernel<<<512, 256, 0, context_.stream>>>(static_cast<uint16_t*>(x_),
                                                  kMaxTokens * kMaxWidth);
    CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());  // the default stream's fill too
    CHECK_LT(cublasLtCreate(&lt_));
    std::printf("%s\n%-12s %4s %9s %12s %12s %9s\n", properties.name, "layer", "rows", "us",
                "cuBLASLt us", "unsplit us", "ratio");
  }

  void run(const Shape& shape, int64_t num_tokens) {
    const double ours =
        launch_us(shape, [&](const void* weight) { linear(shape, num_tokens, weight); });
    double any = std::numeric_limits<double>::infinity(), unsplit = any;
    library(shape, num_tokens, any, unsplit);
    std::printf("%-12s %4ld %9.2f %12.2f %12.2f %9.3f\n", shape.name, num_tokens, ours, any,
                unsplit, any / ours);
  }

 private:
  double launch_us(const Shape& shape, const std::function<void(const void*)>& launch) {
    int64_t offset = 0;
    return median_ms(context_.stream,
                     [&] {
                       for (int i = 0; i < kLaunches; ++i) {
                         launch(static_cast<const uint8_t*>(pool_) + offset);
                         offset += shape.num_bytes();
                         if (offset + shape.num_bytes() > kPoolBytes) offset = 0;
                       }
                     }) *
           1e3 / kLaunches;
  }

  void linear(const Shape& shape, int64_t num_tokens, const void* weight) {
    launch_linear({.num_tokens = num_tokens,
                   .in_features = shape.in,
                   .out_features = shape.out,
                   .dtype = DType::kF16,
                   .x = x_,
                   .weight = weight,
                   .bias = bias_,
                   .activation = shape.activation,
                   .y = y_,
                   .y_stride = shape.out,
                   .y_dtype = DType::kF16},
                  context_);
  }

  void library(const Shape& shape, int64_t num_tokens, double& any, double& unsplit) {
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulPreference_t preference;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const auto out = static_cast<uint64_t>(shape.out), in = static_cast<uint64_t>(shape.in);
    const auto rows = static_cast<uint64_t>(num_tokens);
    CHECK_LT(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CHECK_LT(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof(transposed)));
    CHECK_LT(cublasLtMatrixLayoutCreate(&w, CUDA_R_16F, in, out, shape.in));
    CHECK_LT(cublasLtMatrixLayoutCreate(&x, CUDA_R_16F, in, rows, shape.in));
    CHECK_LT(cublasLtMatrixLayoutCreate(&y, CUDA_R_16F, out, rows, shape.out));
    CHECK_LT(cublasLtMatmulPreferenceCreate(&preference));
    CHECK_LT(cublasLtMatmulPreferenceSetAttribute(preference,
                                                  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                  &kWorkspaceBytes, sizeof(kWorkspaceBytes)));
    cublasLtMatmulHeuristicResult_t results[kSuggestions];
    int count = 0;
    CHECK_LT(cublasLtMatmulAlgoGetHeuristic(lt_, product, w, x, y, y, preference, kSuggestions,
                                            results, &count));
    const float one = 1.0f, zero = 0.0f;
    for (int i = 0; i < count; ++i) {
      const cublasLtMatmulAlgo_t& algorithm = results[i].algo;
      uint32_t splits = 0;
      size_t written = 0;
      CHECK_LT(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                    &splits, sizeof(splits), &written));
      const double us = launch_us(shape, [&](const void* weight) {
        CHECK_LT(cublasLtMatmul(lt_, product, &one, weight, w, x_, x, &zero, y_, y, y_, y,
                                &algorithm, workspace_, kWorkspaceBytes, context_.stream));
      });
      any = std::min(any, us);
      if (splits <= 1) unsplit = std::min(unsplit, us);
    }
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(w);
    cublasLtMatrixLayoutDestroy(x);
    cublasLtMatrixLayoutDestroy(y);
    cublasLtMatmulDescDestroy(product);
  }

  LaunchContext context_;
  cublasLtHandle_t lt_ = nullptr;
  void* pool_ = nullptr;
  void* x_ = nullptr;
  void* y_ = nullptr;
  void* workspace_ = nullptr;
  float* bias_ = nullptr;
};

}  // namespace
}  // namespace caravan::cuda

int main() {
  using namespace caravan::cuda;
  Bench bench;
  for (const Shape& shape : kShapes) {
    for (const int64_t num_tokens : {1, 8, 16, 32, 64, 192, 320}) bench.run(shape, num_tokens);
  }
}
