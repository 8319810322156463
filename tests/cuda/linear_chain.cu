#include "tests/cuda/linear_chain.h"

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {

namespace {

template <typename T, typename Out>
__global__ void __launch_bounds__(32) linear_chain_kernel(const LinearArgs args) {
  pdl_wait();
  const int g = threadIdx.x / 4;
  const int t = threadIdx.x % 4;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * 16 + g;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 8;
  const int64_t num_cores = (args.in_features + 63) / 64 * 8;
  const T* weight = static_cast<const T*>(args.weight) + column * num_cores * 8;
  const auto x_pair = [&](int64_t r, int64_t k) -> uint32_t {
    if (r >= args.num_tokens || k >= args.in_features) return 0;
    return *reinterpret_cast<const uint32_t*>(static_cast<const T*>(args.x) + r * args.in_features +
                                              k);
  };
  const auto w_pair = [&](int64_t k) {
    return *reinterpret_cast<const uint32_t*>(weight + k / 8 * 64 + g * 8 + k % 8);
  };
  float d[4] = {0, 0, 0, 0};
  for (int64_t k = 2 * t; k < args.in_features + 2 * t; k += 16) {
    const uint32_t a[4] = {x_pair(row, k), x_pair(row + 8, k), x_pair(row, k + 8),
                           x_pair(row + 8, k + 8)};
    mma_m16n8k16<T>(d, a, w_pair(k), w_pair(k + 8));
  }
  for (int i = 0; i < 4; ++i) {
    const int64_t r = row + i / 2 * 8;
    const int64_t n = column + 2 * t + i % 2;
    if (r >= args.num_tokens || n >= args.out_features) continue;
    const float v = args.bias == nullptr ? d[i] : __fadd_rn(d[i], args.bias[n]);
    static_cast<Out*>(args.y)[r * args.y_stride + n] =
        from_float<Out>(activate_for<T, Out>(v, args.activation));
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    activate_kernel(const float* __restrict__ x, T* __restrict__ y, Activation activation,
                    int64_t count) {
  pdl_wait();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  if constexpr (sizeof(T) == 4) {
    y[i] = activate_f32(x[i], activation);
  } else {
    y[i] = from_float<T>(activate_16bit<T>(x[i], activation));
  }
}

}  // namespace

void chain_linear(const LinearArgs& args, const LaunchContext& context) {
  const dim3 grid(static_cast<unsigned>((args.out_features + 7) / 8),
                  static_cast<unsigned>((args.num_tokens + 15) / 16));
  const bool is_half = args.dtype == DType::kF16;
  if (args.y_dtype == DType::kF32) {
    launch(context,
           is_half ? linear_chain_kernel<__half, float> : linear_chain_kernel<__nv_bfloat16, float>,
           grid, dim3(32), 0, args);
  } else if (is_half) {
    launch(context, linear_chain_kernel<__half, __half>, grid, dim3(32), 0, args);
  } else {
    launch(context, linear_chain_kernel<__nv_bfloat16, __nv_bfloat16>, grid, dim3(32), 0, args);
  }
}

void activate_array(const float* x, void* y, DType dtype, Activation activation, int64_t count,
                    const LaunchContext& context) {
  const dim3 grid(static_cast<unsigned>((count + 255) / 256));
  if (dtype == DType::kF16) {
    launch(context, activate_kernel<__half>, grid, dim3(256), 0, x, static_cast<__half*>(y),
           activation, count);
  } else if (dtype == DType::kBF16) {
    launch(context, activate_kernel<__nv_bfloat16>, grid, dim3(256), 0, x,
           static_cast<__nv_bfloat16*>(y), activation, count);
  } else {
    launch(context, activate_kernel<float>, grid, dim3(256), 0, x, static_cast<float*>(y),
           activation, count);
  }
}

}  // namespace caravan::cuda
