#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv_element.cuh"
#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {
namespace {

constexpr int kSimpleWarps = 4;
constexpr int kSliceColumns = 256;  // of the output, at a time
constexpr int kColumnsPerLane = kSliceColumns / 32;

struct SimpleParams {
  const void* qkv;
  void* out;
  const void* k;
  const void* v;
  const int32_t* query_start;
  const int32_t* context_lens;
  const int32_t* block_tables;
  int64_t max_blocks_per_seq;
  int64_t num_tokens;
  int64_t num_seqs;
  int64_t block_size;
  int64_t num_heads;
  int64_t head_dim;
  float scale;
  const float* k_scales;  // [num_heads] or null
  const float* v_scales;
  bool is_k_interleaved;
};

/// The sequence of a token: the last s with query_start[s] <= token (an empty one never is).
__device__ __forceinline__ int64_t sequence_of(const int32_t* query_start, int64_t num_seqs,
                                               int64_t token) {
  int64_t low = 0;
  int64_t high = num_seqs;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (query_start[middle] <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// One warp a query and head; 32 tokens at a time, one a lane for the scores, one or more output
/// columns a lane for the sums. Scores in float64: those of a badly scaled model reach 1e5, where
/// float32 rounds them by 1e-2, which is a factor of 1.01 on a weight.
template <typename T, typename C>
__global__ void __launch_bounds__(kSimpleWarps * 32)
    attention_simple_kernel(const SimpleParams params) {
  pdl_launch_dependents();
  pdl_wait();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * kSimpleWarps + static_cast<int>(threadIdx.x) / 32;
  if (row >= params.num_tokens * params.num_heads) return;
  const int64_t token = row / params.num_heads;
  const int64_t head = row % params.num_heads;
  const int64_t head_dim = params.head_dim;
  const int64_t seq = sequence_of(params.query_start, params.num_seqs, token);
  const int64_t length = params.context_lens[seq] - (params.query_start[seq + 1] - 1 - token);
  const int32_t* table = params.block_tables + seq * params.max_blocks_per_seq;
  const int64_t hidden = params.num_heads * head_dim;
  const T* q = static_cast<const T*>(params.qkv) + token * 3 * hidden + head * head_dim;
  T* out = static_cast<T*>(params.out) + token * hidden + head * head_dim;
  const auto cache_row = [&](int64_t position) {
    const int64_t block = table[position / params.block_size];
    return ((block * params.num_heads + head) * params.block_size + position % params.block_size) *
           head_dim;
  };
  double scale = static_cast<double>(params.scale);
  float v_scale = 1.0f;
  if constexpr (kIsQuantized<C>) {
    scale *= static_cast<double>(params.k_scales[head]);
    v_scale = params.v_scales[head];
  }
  const bool is_padding = params.context_lens[seq] <= 0 || length <= 0;

  for (int64_t slice = 0; slice < head_dim; slice += kSliceColumns) {
    double m = -__builtin_huge_val();
    float l = 0.0f;
    float o[kColumnsPerLane] = {};
    for (int64_t base = 0; base < length && !is_padding; base += 32) {
      const int64_t position = base + lane;
      double score = -__builtin_huge_val();
      int64_t my_row = 0;
      if (position < length) {
        my_row = cache_row(position);
        const C* k = static_cast<const C*>(params.k) + my_row;
        double sum = 0.0;
        for (int64_t d = 0; d < head_dim; ++d) {
          const int64_t column =
              kIsQuantized<C> && params.is_k_interleaved ? interleaved_column(d) : d;
          sum = fma(static_cast<double>(to_float(q[d])),
                    static_cast<double>(element_to_float(k[column])), sum);
        }
        score = sum * scale;
      }
      double chunk_m = score;
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        chunk_m = fmax(chunk_m, __shfl_xor_sync(0xFFFFFFFFu, chunk_m, step));
      }
      const double merged = fmax(m, chunk_m);
      const float rescale = expf(static_cast<float>(m - merged));
      const float p = position < length ? expf(static_cast<float>(score - merged)) : 0.0f;
      m = merged;
      float chunk_l = p;
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        chunk_l += __shfl_xor_sync(0xFFFFFFFFu, chunk_l, step);
      }
      l = __fmaf_rn(l, rescale, chunk_l);
#pragma unroll
      for (int c = 0; c < kColumnsPerLane; ++c) o[c] = __fmul_rn(o[c], rescale);
      const int count = static_cast<int>(min(static_cast<int64_t>(32), length - base));
      for (int j = 0; j < count; ++j) {
        const float weight = __shfl_sync(0xFFFFFFFFu, p, j);
        const C* v = static_cast<const C*>(params.v) + __shfl_sync(0xFFFFFFFFu, my_row, j) + slice;
#pragma unroll
        for (int c = 0; c < kColumnsPerLane; ++c) {
          const int64_t column = c * 32 + lane;
          if (slice + column < head_dim)
            o[c] = __fmaf_rn(weight, element_to_float(v[column]), o[c]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumnsPerLane; ++c) {
      const int64_t column = slice + c * 32 + lane;
      if (column < head_dim) {
        out[column] = from_float<T>(is_padding ? 0.0f : __fmul_rn(__fdiv_rn(o[c], l), v_scale));
      }
    }
  }
}

template <typename T>
void launch_simple_dtype(const AttentionArgs& args, const SimpleParams& params,
                         const LaunchContext& context) {
  const int64_t rows = args.num_tokens * args.cache.num_heads;
  const dim3 grid(static_cast<unsigned>((rows + kSimpleWarps - 1) / kSimpleWarps));
  const dim3 block(kSimpleWarps * 32);
  const auto start = [&](auto kernel) { launch(context, kernel, grid, block, 0, params); };
  if (args.cache.dtype == args.dtype) return start(attention_simple_kernel<T, T>);
  if (args.cache.dtype == DType::kI8) return start(attention_simple_kernel<T, int8_t>);
  if (args.cache.dtype == DType::kF8E4M3) return start(attention_simple_kernel<T, Float8>);
  throw_unsupported("attention: a cache of " + std::string(dtype_name(args.dtype)) +
                    ", int8 or float8_e4m3fn needed, got " + dtype_name(args.cache.dtype));
}

}  // namespace

void launch_attention_simple(const AttentionArgs& args, const LaunchContext& context) {
  check_kv_scales(args.cache, "attention");
  if (args.num_tokens == 0 || args.num_seqs == 0) return;
  SimpleParams params{};
  params.qkv = args.qkv;
  params.out = args.out;
  params.k = args.cache.k;
  params.v = args.cache.v;
  params.query_start = args.query_start;
  params.context_lens = args.context_lens;
  params.block_tables = args.block_tables;
  params.max_blocks_per_seq = args.max_blocks_per_seq;
  params.num_tokens = args.num_tokens;
  params.num_seqs = args.num_seqs;
  params.block_size = args.cache.block_size;
  params.num_heads = args.cache.num_heads;
  params.head_dim = args.cache.head_dim;
  params.scale = args.scale;
  params.k_scales = args.cache.k_scale;
  params.v_scales = args.cache.v_scale;
  params.is_k_interleaved = is_k_interleaved(args.cache.dtype, args.cache.head_dim);
  switch (args.dtype) {
    case DType::kF32:
      return launch_simple_dtype<float>(args, params, context);
    case DType::kF16:
      return launch_simple_dtype<__half>(args, params, context);
    case DType::kBF16:
      return launch_simple_dtype<__nv_bfloat16>(args, params, context);
    default:
      throw_unsupported("attention: f16, bf16 or f32 needed, got " +
                        std::string(dtype_name(args.dtype)));
  }
}

}  // namespace caravan::cuda
