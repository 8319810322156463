#include <dlfcn.h>

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/tensor.h"
#include "kernels/cuda/ceilings.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/embedding.h"

// A toolkit may lack the library's header; then there is no figure, as without the library.
#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define CARAVAN_HAS_CUBLASLT_HEADER
#endif

namespace caravan::cuda {

#ifdef CARAVAN_HAS_CUBLASLT_HEADER

namespace {

// Plain first: the loader knows LD_LIBRARY_PATH and the system's folders.
constexpr const char* kLibraryNames[] = {
    "libcublasLt.so.13",
    "/usr/local/cuda/lib64/libcublasLt.so.13",
    "/usr/local/cuda/targets/x86_64-linux/lib/libcublasLt.so.13",
};
constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr int kSuggestions = 8;
constexpr int64_t kNumTokens = 8192;
constexpr float kSustainedMs = 500;

struct Size {
  int64_t in_features, out_features;
};
// camel-5b: c_attn, attn.c_proj, c_fc, mlp.c_proj.
constexpr Size kSizes[] = {{4096, 12288}, {4096, 4096}, {4096, 16384}, {16384, 4096}};

/// The functions of the library that are used here. It stays open: its threads and contexts do not
/// all end with a dlclose.
struct Library {
  void* handle = nullptr;
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmulDescCreate) create_desc = nullptr;
  decltype(&cublasLtMatmulDescDestroy) destroy_desc = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_desc = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) create_layout = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;

  bool open() {
    for (const char* name : kLibraryNames) {
      handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) break;
    }
    return handle != nullptr && find(create, "cublasLtCreate") &&
           find(destroy, "cublasLtDestroy") && find(create_desc, "cublasLtMatmulDescCreate") &&
           find(destroy_desc, "cublasLtMatmulDescDestroy") &&
           find(set_desc, "cublasLtMatmulDescSetAttribute") &&
           find(create_layout, "cublasLtMatrixLayoutCreate") &&
           find(destroy_layout, "cublasLtMatrixLayoutDestroy") &&
           find(create_preference, "cublasLtMatmulPreferenceCreate") &&
           find(destroy_preference, "cublasLtMatmulPreferenceDestroy") &&
           find(set_preference, "cublasLtMatmulPreferenceSetAttribute") &&
           find(get_heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(matmul, "cublasLtMatmul");
  }

 private:
  template <typename Function>
  bool find(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    return function != nullptr;
  }
};

void check(cublasStatus_t status, const char* what) {
  CARAVAN_CHECK_CODE(status == CUBLAS_STATUS_SUCCESS, kInternal, "cuBLASLt: {}: status {}", what,
                     static_cast<int>(status));
}

/// y[T, out] = x[T, in] W[out, in]^T, all row-major: in the library's column-major terms y' = W'^T
/// x'.
class Product {
 public:
  Product(const Library& library, cublasLtHandle_t handle, const Size& size, cudaDataType_t type)
      : library_(library), handle_(handle) {
    check(library_.create_desc(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(library_.set_desc(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
          "transposition");
    const auto in = static_cast<uint64_t>(size.in_features);
    const auto out = static_cast<uint64_t>(size.out_features);
    check(library_.create_layout(&weight_, type, in, out, size.in_features), "layout of W");
    check(library_.create_layout(&x_, type, in, kNumTokens, size.in_features), "layout of x");
    check(library_.create_layout(&y_, type, out, kNumTokens, size.out_features), "layout of y");
    cublasLtMatmulPreference_t preference = nullptr;
    check(library_.create_preference(&preference), "preference");
    library_.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                            sizeof(kWorkspaceBytes));
    int found = 0;
    const cublasStatus_t status = library_.get_heuristic(
        handle_, desc_, weight_, x_, y_, y_, preference, kSuggestions, suggestions_.data(), &found);
    library_.destroy_preference(preference);
    check(status, "heuristics");
    num_suggestions_ = static_cast<size_t>(found);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product() {
    library_.destroy_layout(y_);
    library_.destroy_layout(x_);
    library_.destroy_layout(weight_);
    library_.destroy_desc(desc_);
  }

  struct Buffers {
    const void* x;
    const void* weight;
    void* y;
    void* workspace;
  };
  /// Milliseconds of the fastest suggestion.
  float best_ms(const Buffers& buffers, const LaunchContext& context) {
    size_t best = 0;
    float best_time = 1e30f;
    for (size_t i = 0; i < num_suggestions_; ++i) {
      const float ms = time(i, 3, buffers, context);
      if (ms < best_time) {
        best_time = ms;
        best = i;
      }
    }
    best_ = best;
    return num_suggestions_ > 0 ? time(best, 9, buffers, context) : best_time;
  }
  /// Milliseconds of the suggestion that best_ms() found to take `ms`, after kSustainedMs of it.
  float sustained_ms(float ms, const Buffers& buffers, const LaunchContext& context) {
    time(best_, static_cast<int>(kSustainedMs / ms), buffers, context);
    return time(best_, 9, buffers, context);
  }

 private:
  float time(size_t suggestion, int repeats, const Buffers& buffers, const LaunchContext& context) {
    auto run = [&] {
      const float alpha = 1.0f;
      const float beta = 0.0f;
      check(library_.matmul(handle_, desc_, &alpha, buffers.weight, weight_, buffers.x, x_, &beta,
                            buffers.y, y_, buffers.y, y_, &suggestions_[suggestion].algo,
                            buffers.workspace, kWorkspaceBytes, context.stream),
            "product");
    };
    return median_ms(
        context, repeats, [](void* user) { (*static_cast<decltype(run)*>(user))(); }, &run);
  }

  const Library& library_;
  cublasLtHandle_t handle_;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t weight_ = nullptr;
  cublasLtMatrixLayout_t x_ = nullptr;
  cublasLtMatrixLayout_t y_ = nullptr;
  std::array<cublasLtMatmulHeuristicResult_t, kSuggestions> suggestions_{};
  size_t num_suggestions_ = 0;
  size_t best_ = 0;
};

double flops(const Size& size) {
  return 2.0 * static_cast<double>(kNumTokens) * static_cast<double>(size.in_features) *
         static_cast<double>(size.out_features);
}

cudaDataType_t data_type(DType dtype) {
  return dtype == DType::kF16 ? CUDA_R_16F : dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
}

}  // namespace

MatmulCeiling measure_matmul(DType dtype, const LaunchContext& context) {
  Library library;
  if (!library.open()) return {0, "no libcublasLt.so.13: no matmul ceiling"};
  constexpr int64_t kWidest = 16384;
  const size_t size = dtype_size(dtype);
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  CARAVAN_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (free_bytes < size_t{2} << 30) return {0, "less than 2 GiB are free: no matmul ceiling"};
  const DeviceMemory x(static_cast<size_t>(kNumTokens * kWidest) * size);
  const DeviceMemory weight(static_cast<size_t>(kWidest * 4096) * size);
  const DeviceMemory y(x.num_bytes());
  const DeviceMemory workspace(kWorkspaceBytes);
  // Random values: of zeros the GPU makes more products a second, because it stays cooler.
  launch_fill_random(x.as<>(), dtype, kNumTokens * kWidest, 0.0f, 1.0f, 1, context);
  launch_fill_random(weight.as<>(), dtype, kWidest * 4096, 0.0f, 0.03f, 2, context);
  cublasLtHandle_t handle = nullptr;
  if (library.create(&handle) != CUBLAS_STATUS_SUCCESS) {
    return {0, "cuBLASLt does not start: no matmul ceiling"};
  }
  const Product::Buffers buffers{
      .x = x.as<>(), .weight = weight.as<>(), .y = y.as<>(), .workspace = workspace.as<>()};
  MatmulCeiling ceiling;
  for (const Size& s : kSizes) {
    // Float32 products take fifteen times as long and reach the same rate at every size.
    if (dtype == DType::kF32 && ceiling.tflops > 0) break;
    Product product(library, handle, s, data_type(dtype));
    const double tflops = flops(s) / product.best_ms(buffers, context) * 1e-9;
    if (tflops <= ceiling.tflops) continue;
    ceiling = {tflops, fmt::format("cuBLASLt {}, [{}, {}] x [{}, {}]", dtype_name(dtype),
                                   kNumTokens, s.in_features, s.in_features, s.out_features)};
  }
  {
    // A GPU lowers its clock when it is busy for long: an H100 made 799 TFLOP/s in its first 0.2 s
    // and 661 after a second. Prompts of some milliseconds meet the first figure, long ones this.
    Product product(library, handle, kSizes[0], data_type(dtype));
    const float ms = product.sustained_ms(product.best_ms(buffers, context), buffers, context);
    ceiling.note +=
        fmt::format("; {:.1f} TFLOP/s after half a second", flops(kSizes[0]) / ms * 1e-9);
  }
  library.destroy(handle);
  return ceiling;
}

#else

MatmulCeiling measure_matmul(DType, const LaunchContext&) {
  return {0, "built without cublasLt.h: no matmul ceiling"};
}

#endif

}  // namespace caravan::cuda
