#include <algorithm>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {
namespace {

constexpr int kAppendThreads = 256;

struct AppendKvParams {
  const void* qkv;
  const int64_t* slot_mapping;
  void* k;
  void* v;
  int64_t block_size;
  int64_t num_heads;
  int64_t head_units;  // Units of one head
};

/// Unit: what one thread copies, 16 bytes or one element. Block (part of a row, token).
template <typename Unit>
__global__ void __launch_bounds__(kAppendThreads) append_kv_kernel(const AppendKvParams params) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.y;
  const int64_t slot = params.slot_mapping[token];
  const int64_t row_units = params.num_heads * params.head_units;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kAppendThreads + threadIdx.x;
  if (slot < 0 || index >= 2 * row_units) return;
  const bool is_v = index >= row_units;
  const int64_t in_row = is_v ? index - row_units : index;
  const int64_t head = in_row / params.head_units;
  const int64_t block = slot / params.block_size;
  const int64_t offset = slot - block * params.block_size;
  Unit* cache = static_cast<Unit*>(is_v ? params.v : params.k);
  cache[((block * params.num_heads + head) * params.block_size + offset) * params.head_units +
        in_row - head * params.head_units] =
      static_cast<const Unit*>(params.qkv)[(token * 3 + 1) * row_units + index];
}

template <typename Unit>
void launch_units(const AppendKvArgs& args, const LaunchContext& context) {
  AppendKvParams params{};
  params.qkv = args.qkv;
  params.slot_mapping = args.slot_mapping;
  params.k = args.cache.k;
  params.v = args.cache.v;
  params.block_size = args.cache.block_size;
  params.num_heads = args.cache.num_heads;
  params.head_units = args.cache.head_dim * static_cast<int64_t>(dtype_size(args.cache.dtype)) /
                      static_cast<int64_t>(sizeof(Unit));
  const int64_t row_units = 2 * params.num_heads * params.head_units;
  // gridDim.y is 65,535 at most.
  constexpr int64_t kMaxTokens = 65535;
  for (int64_t first = 0; first < args.num_tokens; first += kMaxTokens) {
    const int64_t count = std::min(kMaxTokens, args.num_tokens - first);
    params.qkv =
        static_cast<const Unit*>(args.qkv) + first * 3 * params.num_heads * params.head_units;
    params.slot_mapping = args.slot_mapping + first;
    launch(context, append_kv_kernel<Unit>,
           dim3(static_cast<unsigned>((row_units + kAppendThreads - 1) / kAppendThreads),
                static_cast<unsigned>(count)),
           dim3(kAppendThreads), 0, params);
  }
}

}  // namespace

void launch_append_kv(const AppendKvArgs& args, const LaunchContext& context) {
  const size_t element = dtype_size(args.cache.dtype);
  if (element != 2 && element != 4) {
    throw_unsupported("append_kv: f16, bf16 or f32 needed, got " +
                      std::string(dtype_name(args.cache.dtype)));
  }
  const auto is_aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool fits_16 = args.cache.head_dim * static_cast<int64_t>(element) % 16 == 0 &&
                       is_aligned(args.qkv) && is_aligned(args.cache.k) && is_aligned(args.cache.v);
  if (fits_16) {
    launch_units<uint4>(args, context);
  } else if (element == 4) {
    launch_units<uint32_t>(args, context);
  } else {
    launch_units<uint16_t>(args, context);
  }
}

}  // namespace caravan::cuda
