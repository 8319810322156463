#include "kernels/cuda/linear_wgmma.h"

#include <algorithm>
#include <string>

#include "core/linear_layout.h"
#include "core/tensor.h"
#include "kernels/cuda/linear_wgmma.cuh"
#include "kernels/cuda/tensor_map.h"

namespace caravan::cuda {

namespace {

template <typename T, int kRows, int kColumns>
void launch_tile(const LinearArgs& args, const LaunchContext& context) {
  using Shared = LinearWgmmaShared<kRows, kColumns>;

  const auto in_features = static_cast<cuuint64_t>(args.in_features);
  // What the rows beyond num_tokens give is not written.
  const int64_t num_rows =
      std::clamp(args.num_readable_rows, args.num_tokens, round_up(args.num_tokens, kRows));
  const CUtensorMap x_map =
      make_tensor_map(args.dtype, args.x, {in_features, static_cast<cuuint64_t>(num_rows)},
                      {in_features * 2}, {kWgmmaK, kRows}, CU_TENSOR_MAP_SWIZZLE_128B);

  const auto padded_in = static_cast<cuuint64_t>(round_up(args.in_features, kCoreInMultiple));
  const auto padded_out = static_cast<cuuint64_t>(round_up(args.out_features, kCoreOutMultiple));
  const CUtensorMap w_map = make_tensor_map(
      args.dtype, args.weight, {64, padded_in / 8, padded_out / 8}, {128, padded_in * 16},
      {64, kWgmmaK / 8, kColumns / 8}, CU_TENSOR_MAP_SWIZZLE_NONE);

  LinearWgmmaParams params{};
  params.num_tokens = args.num_tokens;
  params.out_features = args.out_features;
  params.num_k_blocks = static_cast<int32_t>(padded_in / kWgmmaK);
  params.num_row_tiles = static_cast<int32_t>(ceil_div(args.num_tokens, kRows));
  params.num_column_tiles = static_cast<int32_t>(ceil_div(args.out_features, kColumns));
  // 2,048 rows: x of 4,096 features is 16 MiB of the 50 MiB of L2.
  params.group_rows = 2048 / kRows;
  params.bias = args.bias;
  params.activation = args.activation;
  params.y = args.y;
  params.y_stride = args.y_stride;
  params.is_y_float = args.y_dtype == DType::kF32;
  params.is_y_aligned = reinterpret_cast<uintptr_t>(args.y) % 16 == 0 &&
                        args.y_stride * static_cast<int64_t>(dtype_size(args.y_dtype)) % 16 == 0;

  const int num_tiles = params.num_row_tiles * params.num_column_tiles;
  const int num_blocks = std::min(num_tiles, std::max(1, context.num_sms));
  launch(context, linear_wgmma_kernel<T, kRows, kColumns>, dim3(static_cast<unsigned>(num_blocks)),
         dim3(kWgmmaThreads), Shared::kTotal, x_map, w_map, params);
}

void check(const LinearArgs& args) {
  if (args.dtype != DType::kF16 && args.dtype != DType::kBF16) {
    throw_unsupported("launch_linear_wgmma takes float16 or bfloat16 weights");
  }
  if (args.y_dtype != args.dtype && args.y_dtype != DType::kF32) {
    throw_unsupported("launch_linear_wgmma writes the weights' dtype or float32");
  }
  if (args.in_features <= 0 || args.in_features % 8 != 0) {
    throw_unsupported("launch_linear_wgmma takes in_features that are a multiple of 8, not " +
                      std::to_string(args.in_features));
  }
  if (args.out_features <= 0 || args.y_stride < args.out_features) {
    throw_invalid("launch_linear_wgmma: out_features " + std::to_string(args.out_features) +
                  ", y_stride " + std::to_string(args.y_stride));
  }
  if (reinterpret_cast<uintptr_t>(args.x) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(args.weight) % 16 != 0) {
    throw_invalid("launch_linear_wgmma: x and weight must be aligned to 16 bytes");
  }
}

template <typename T>
bool launch_config(const LinearArgs& args, const LinearWgmmaConfig& c,
                   const LaunchContext& context) {
#define CARAVAN_WGMMA_TILE(rows, columns)         \
  if (c == LinearWgmmaConfig{rows, columns}) {    \
    launch_tile<T, rows, columns>(args, context); \
    return true;                                  \
  }
  CARAVAN_WGMMA_TILE(128, 256)
  CARAVAN_WGMMA_TILE(128, 192)
  CARAVAN_WGMMA_TILE(128, 128)
  CARAVAN_WGMMA_TILE(128, 96)
  CARAVAN_WGMMA_TILE(128, 64)
  CARAVAN_WGMMA_TILE(64, 64)
#undef CARAVAN_WGMMA_TILE
  return false;
}

}  // namespace

void launch_linear_wgmma_with(const LinearArgs& args, const LinearWgmmaConfig& config,
                              const LaunchContext& context) {
  check(args);
  if (args.num_tokens <= 0) return;
  const bool is_known = args.dtype == DType::kF16
                            ? launch_config<__half>(args, config, context)
                            : launch_config<__nv_bfloat16>(args, config, context);
  if (!is_known) throw_unsupported("launch_linear_wgmma: this tile configuration is not built");
}

void launch_linear_wgmma(const LinearArgs& args, const LaunchContext& context) {
  launch_linear_wgmma_with(
      args, choose_wgmma_config(args.num_tokens, args.out_features, context.num_sms), context);
}

}  // namespace caravan::cuda
