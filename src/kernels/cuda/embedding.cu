#include "kernels/cuda/embedding.h"

#include <algorithm>

#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kWidth = 8;  // one row of a core matrix: 16 bytes of 16-bit weights

struct EmbeddingKernelParams {
  int64_t hidden_size;
  int64_t vocab_size;
  const int32_t* token_ids;
  const int32_t* sampled;
  const int32_t* positions;
  const void* wte;
  const void* wpe;
  float* out;
  bool is_vector;  // hidden_size % 8 == 0 and aligned pointers
};

template <typename T>
__device__ __forceinline__ void load_chunk(const T* p, float (&values)[kWidth]) {
  constexpr int kWords = kWidth * static_cast<int>(sizeof(T)) / 16;
  uint4 words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __ldg(reinterpret_cast<const uint4*>(p) + i);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values[i] = to_float(reinterpret_cast<const T*>(words)[i]);
}

// Where eight k values of row n of wte start: LinearLayout::kCore8x8 for 16 bits, row-major for
// float32. A whole chunk may be read in the first (the padding is there).
template <typename T>
__device__ __forceinline__ int64_t wte_offset(int64_t n, int64_t k, int64_t hidden_size) {
  if constexpr (sizeof(T) == 2) {
    const int64_t chunks = (hidden_size + 63) / 64 * 8;
    return (n / 8 * chunks + k / 8) * 64 + n % 8 * 8;
  } else {
    return n * hidden_size + k;
  }
}

// Block (t, j): eight values of token t a thread.
template <typename T>
__global__ void __launch_bounds__(kThreads) embedding_kernel(const EmbeddingKernelParams p) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t t = blockIdx.x;
  const int64_t k = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kWidth;
  if (k >= p.hidden_size) return;
  int64_t id = p.token_ids[t];
  if (id < 0) id = p.sampled == nullptr ? -1 : p.sampled[-1 - id];
  float* out = p.out + t * p.hidden_size + k;
  const int width = static_cast<int>(min(static_cast<int64_t>(kWidth), p.hidden_size - k));
  if (id < 0 || id >= p.vocab_size) {
    // Not a token: NaN shows in every result of this sequence, and nothing out of range is read.
    for (int i = 0; i < width; ++i) out[i] = __int_as_float(0x7FFFFFFF);
    return;
  }
  const T* wte = static_cast<const T*>(p.wte) + wte_offset<T>(id, k, p.hidden_size);
  const T* wpe = static_cast<const T*>(p.wpe) + p.positions[t] * p.hidden_size + k;
  if (p.is_vector) {
    float token[kWidth], position[kWidth];
    load_chunk(wte, token);
    load_chunk(wpe, position);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) token[i] += position[i];
    reinterpret_cast<float4*>(out)[0] = make_float4(token[0], token[1], token[2], token[3]);
    reinterpret_cast<float4*>(out)[1] = make_float4(token[4], token[5], token[6], token[7]);
  } else {
    for (int i = 0; i < width; ++i) out[i] = to_float(wte[i]) + to_float(wpe[i]);
  }
}

template <typename Word>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(int64_t row_words, const int32_t* __restrict__ rows,
                       const Word* __restrict__ x, Word* __restrict__ out) {
  pdl_launch_dependents();
  pdl_wait();
  const Word* from = x + rows[blockIdx.x] * row_words;
  Word* to = out + blockIdx.x * row_words;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x; i < row_words;
       i += step) {
    to[i] = from[i];
  }
}

bool is_aligned(const void* p, size_t num_bytes) {
  return reinterpret_cast<uintptr_t>(p) % num_bytes == 0;
}

template <typename Word>
void launch_gather(const GatherRowsArgs& args, const LaunchContext& context) {
  const int64_t row_words = args.row_bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t blocks_per_row = std::min<int64_t>((row_words + kThreads - 1) / kThreads, 64);
  launch(context, gather_rows_kernel<Word>,
         dim3(static_cast<unsigned>(args.num_rows), static_cast<unsigned>(blocks_per_row)),
         dim3(kThreads), 0, row_words, args.rows, static_cast<const Word*>(args.x),
         static_cast<Word*>(args.out));
}

__global__ void __launch_bounds__(256)
    copy_kernel(const uint4* __restrict__ src, uint4* __restrict__ dst, int64_t count) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) dst[i] = src[i];
}

}  // namespace

void launch_embedding(const EmbeddingArgs& args, const LaunchContext& context) {
  if (args.num_tokens == 0 || args.hidden_size == 0) return;
  const EmbeddingKernelParams params{args.hidden_size,
                                     args.vocab_size,
                                     args.token_ids,
                                     args.sampled,
                                     args.positions,
                                     args.wte,
                                     args.wpe,
                                     args.out,
                                     args.hidden_size % kWidth == 0 && is_aligned(args.wte, 16) &&
                                         is_aligned(args.wpe, 16) && is_aligned(args.out, 16)};
  constexpr int64_t kBlockWidth = kThreads * kWidth;
  const dim3 grid(static_cast<unsigned>(args.num_tokens),
                  static_cast<unsigned>((args.hidden_size + kBlockWidth - 1) / kBlockWidth));
  const auto start = [&](auto kernel) { launch(context, kernel, grid, kThreads, 0, params); };
  if (args.dtype == DType::kF16) return start(embedding_kernel<__half>);
  if (args.dtype == DType::kBF16) return start(embedding_kernel<__nv_bfloat16>);
  if (args.dtype == DType::kF32) return start(embedding_kernel<float>);
  throw_unsupported("embedding: weights must be float32, float16 or bfloat16");
}

void launch_gather_rows(const GatherRowsArgs& args, const LaunchContext& context) {
  if (args.num_rows == 0 || args.row_bytes == 0) return;
  const auto all_multiples_of = [&](size_t n) {
    return args.row_bytes % static_cast<int64_t>(n) == 0 && is_aligned(args.x, n) &&
           is_aligned(args.out, n);
  };
  if (all_multiples_of(16)) return launch_gather<uint4>(args, context);
  if (all_multiples_of(4)) return launch_gather<uint32_t>(args, context);
  launch_gather<uint8_t>(args, context);
}

void launch_copy(const void* src, void* dst, int64_t num_bytes, const LaunchContext& context) {
  const int64_t count = (num_bytes + 15) / 16;
  if (count == 0) return;
  launch(context, copy_kernel, dim3(static_cast<unsigned>((count + 255) / 256)), dim3(256), 0,
         static_cast<const uint4*>(src), static_cast<uint4*>(dst), count);
}

}  // namespace caravan::cuda
