#include <algorithm>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {

namespace {

struct MmaParams {
  const void* x;
  const void* weight;
  const float* bias;
  void* y;
  int64_t num_tokens;
  int64_t in_features;
  int64_t out_features;
  int64_t y_stride;
  int num_row_tiles;
  int num_out_tiles;
  Activation activation;
  bool is_y_f32;
  bool is_y_vectorized;  // rows of y start on 16-byte boundaries
};

/// Row tiles of one group share the weights that are in L2: 16 * 128 rows of 4096 are 16 MiB of x.
constexpr int kGroupRowTiles = 16;

/// A block computes kRows x kOuts outputs, kWarpsM x kWarpsN warps side by side, k in blocks of
/// kBlockK through kStages buffers of shared memory.
template <int kRowsV, int kOutsV, int kBlockKV, int kStagesV, int kWarpsMV, int kWarpsNV,
          int kBlocksPerSmV>
struct Tile {
  static constexpr int kRows = kRowsV;
  static constexpr int kOuts = kOutsV;
  static constexpr int kBlockK = kBlockKV;
  static constexpr int kStages = kStagesV;
  static constexpr int kWarpsN = kWarpsNV;
  static constexpr int kBlocksPerSm = kBlocksPerSmV;
  static constexpr int kThreads = 32 * kWarpsMV * kWarpsNV;
  static constexpr int kWarpRows = kRows / kWarpsMV;
  static constexpr int kWarpOuts = kOuts / kWarpsNV;
  static constexpr int kChunks = kBlockK / 8;  // 16 bytes of one row
  static constexpr int kXBytes = kRows * kBlockK * 2;
  static constexpr int kStageBytes = kXBytes + kOuts * kBlockK * 2;
  static constexpr int kEpiloguePitch = kWarpOuts + 8;  // floats; two-float writes hit all banks
  static constexpr int kEpilogueBytes = kThreads / 32 * 16 * kEpiloguePitch * 4;
  static constexpr int kSharedBytes =
      kStages * kStageBytes > kEpilogueBytes ? kStages* kStageBytes : kEpilogueBytes;
  static_assert(kWarpRows % 16 == 0 && (kWarpOuts == 8 || kWarpOuts % 16 == 0));
  static_assert(kBlockK % 32 == 0 && kCoreOutMultiple % kOuts == 0);
  static_assert(kRows * kChunks % kThreads == 0 && kOuts * kChunks % kThreads == 0);
};

/// Where chunk `chunk` of row `row` lies: eight rows of one chunk fall into different banks.
template <int kChunks>
__device__ __forceinline__ int row_phase(int row) {
  return kChunks == 4 ? row / 2 % 4 : row % 8;
}

/// bias, activation and rounding of one warp's 16 x kWarpOuts sums, which lie in shared memory.
template <typename T, typename TileT>
__device__ __forceinline__ void store_rows(const MmaParams& p, const float* staged, int64_t row0,
                                           int64_t n0, int lane) {
  constexpr int kOutChunks = TileT::kWarpOuts / 8;
#pragma unroll 1
  for (int i = lane; i < 16 * kOutChunks; i += 32) {
    const int64_t row = row0 + i / kOutChunks;
    const int64_t n = n0 + i % kOutChunks * 8;
    if (row >= p.num_tokens || n >= p.out_features) continue;
    const float* source = staged + i / kOutChunks * TileT::kEpiloguePitch + i % kOutChunks * 8;
    const auto num_valid = static_cast<int>(min(static_cast<int64_t>(8), p.out_features - n));
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      v[j] = source[j];
      if (p.bias != nullptr && j < num_valid) v[j] += p.bias[n + j];
    }
    const bool is_whole = p.is_y_vectorized && num_valid == 8;
    if (p.is_y_f32) {
      float* y = static_cast<float*>(p.y) + row * p.y_stride + n;
      if (p.activation != Activation::kNone) {
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = activate_f32(v[j], p.activation);
      }
      if (is_whole) {
        reinterpret_cast<float4*>(y)[0] = make_float4(v[0], v[1], v[2], v[3]);
        reinterpret_cast<float4*>(y)[1] = make_float4(v[4], v[5], v[6], v[7]);
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (j < num_valid) y[j] = v[j];
        }
      }
    } else {
      T* y = static_cast<T*>(p.y) + row * p.y_stride + n;
      if (p.activation != Activation::kNone) {
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = activate_16bit<T>(v[j], p.activation);
      }
      if (is_whole) {
        *reinterpret_cast<uint4*>(y) =
            make_uint4(pack_pair<T>(v[0], v[1]), pack_pair<T>(v[2], v[3]), pack_pair<T>(v[4], v[5]),
                       pack_pair<T>(v[6], v[7]));
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (j < num_valid) y[j] = from_float<T>(v[j]);
        }
      }
    }
  }
}

template <typename T, typename TileT>
__global__ void __launch_bounds__(TileT::kThreads, TileT::kBlocksPerSm)
    linear_mma_kernel(const MmaParams p) {
  constexpr int kThreads = TileT::kThreads;
  constexpr int kChunks = TileT::kChunks;
  constexpr int kStages = TileT::kStages;
  constexpr int kSteps = TileT::kBlockK / 16;
  constexpr int kRowTiles = TileT::kWarpRows / 16;
  constexpr int kOutTiles = TileT::kWarpOuts / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  pdl_launch_dependents();

  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_row = thread / 32 / TileT::kWarpsN * TileT::kWarpRows;
  const int warp_out = thread / 32 % TileT::kWarpsN * TileT::kWarpOuts;
  const uint32_t shared_base = shared_address(shared);

  // Blocks that run side by side: all row tiles of a group for one stripe of weights, then the
  // next.
  const int group_size = kGroupRowTiles * p.num_out_tiles;
  const int tile = static_cast<int>(blockIdx.x);
  const int first_row_tile = tile / group_size * kGroupRowTiles;
  const int rows_of_group = min(kGroupRowTiles, p.num_row_tiles - first_row_tile);
  const int64_t row0 =
      static_cast<int64_t>(first_row_tile + tile % group_size % rows_of_group) * TileT::kRows;
  const int64_t n0 = static_cast<int64_t>(tile % group_size / rows_of_group) * TileT::kOuts;

  const int64_t padded_in =
      (p.in_features + kCoreInMultiple - 1) / kCoreInMultiple * kCoreInMultiple;
  const int num_blocks = static_cast<int>((p.in_features + TileT::kBlockK - 1) / TileT::kBlockK);
  const T* __restrict__ x = static_cast<const T*>(p.x) + row0 * p.in_features;
  const T* __restrict__ weight = static_cast<const T*>(p.weight) + n0 * padded_in;
  const int64_t num_rows = p.num_tokens - row0;

  const auto copy_weights = [&](int block) {
    const uint32_t to = shared_base + block % kStages * TileT::kStageBytes + TileT::kXBytes;
#pragma unroll
    for (int i = 0; i < TileT::kOuts * kChunks / kThreads; ++i) {
      // Eight outputs of this block of k are one contiguous piece.
      const int chunk = thread + i * kThreads;
      const int out_group = chunk / (kChunks * 8);
      const int64_t k_chunk =
          static_cast<int64_t>(block) * kChunks * 8 + chunk % (kChunks * 8);  // of 8 values
      const bool is_valid = k_chunk < padded_in;
      const T* from = weight + out_group * 8 * padded_in + (is_valid ? k_chunk * 8 : 0);
      cp_async_16(to + chunk * 16, from, is_valid ? 16 : 0);
    }
  };
  const auto copy_x = [&](int block) {
    const uint32_t to = shared_base + block % kStages * TileT::kStageBytes;
#pragma unroll
    for (int i = 0; i < TileT::kRows * kChunks / kThreads; ++i) {
      const int row = (thread + i * kThreads) / kChunks;
      const int chunk = (thread + i * kThreads) % kChunks;
      if (row >= num_rows) continue;  // zeros since the beginning
      const int64_t k = static_cast<int64_t>(block) * TileT::kBlockK + chunk * 8;
      const bool is_valid = k < p.in_features;
      cp_async_16(to + (row * kChunks + (chunk ^ row_phase<kChunks>(row))) * 16,
                  x + row * p.in_features + (is_valid ? k : 0), is_valid ? 16 : 0);
    }
  };

#pragma unroll 1
  for (int block = 0; block < min(kStages - 1, num_blocks); ++block) copy_weights(block);
  if (num_rows < TileT::kRows) {
#pragma unroll 1
    for (int i = thread; i < kStages * TileT::kRows * kChunks; i += kThreads) {
      const int stage = i / (TileT::kRows * kChunks);
      const int chunk = i % (TileT::kRows * kChunks);
      if (chunk / kChunks < num_rows) continue;
      *reinterpret_cast<uint4*>(shared + stage * TileT::kStageBytes + chunk * 16) =
          make_uint4(0, 0, 0, 0);
    }
  }
  pdl_wait();
#pragma unroll 1
  for (int block = 0; block < kStages - 1; ++block) {
    if (block < num_blocks) copy_x(block);
    cp_async_commit();
  }

  // ldmatrix: lanes 0-15 name the rows of the first 8 k, lanes 16-31 of the next 8.
  const int a_row = warp_row + lane % 16;
  const uint32_t a_offset = a_row * kChunks * 16;
  const uint32_t a_chunk = (lane / 16) ^ row_phase<kChunks>(a_row);
  // Matrices 0, 1: eight outputs, k 0-7 and 8-15; matrices 2, 3: the next eight outputs.
  const uint32_t b_offset =
      TileT::kXBytes + ((warp_out / 8 + lane / 16) * kChunks + lane / 8 % 2) * 128 + lane % 8 * 16;
  uint32_t a[2][kRowTiles][4];
  uint32_t b[2][kOutTiles][2];
  const auto load_fragments = [&](int buffer, uint32_t stage, int step) {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      ldmatrix_x4(a[buffer][i],
                  stage + a_offset + i * 16 * kChunks * 16 + (a_chunk ^ (step * 2)) * 16);
    }
    if constexpr (kOutTiles == 1) {
      ldmatrix_x2(b[buffer][0], stage + b_offset + step * 256);  // of lanes 0-15
    } else {
#pragma unroll
      for (int i = 0; i < kOutTiles; i += 2) {
        uint32_t r[4];
        ldmatrix_x4(r, stage + b_offset + i * kChunks * 128 + step * 256);
        b[buffer][i][0] = r[0];
        b[buffer][i][1] = r[1];
        b[buffer][i + 1][0] = r[2];
        b[buffer][i + 1][1] = r[3];
      }
    }
  };

  float sum[kRowTiles][kOutTiles][4] = {};
  cp_async_wait<kStages - 2>();
  __syncthreads();
  load_fragments(0, shared_base, 0);
  int stage_index = 0;
#pragma unroll 1
  for (int block = 0; block < num_blocks; ++block) {
    uint32_t stage = shared_base + stage_index * TileT::kStageBytes;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step == kSteps - 1) {
        // All of this block's fragments are in registers: its buffer is free, the next is full.
        cp_async_wait<kStages - 2>();
        __syncthreads();
        stage_index = stage_index + 1 == kStages ? 0 : stage_index + 1;
        stage = shared_base + stage_index * TileT::kStageBytes;
      }
      load_fragments((step + 1) % 2, stage, (step + 1) % kSteps);
      if (step == 0) {
        const int next = block + kStages - 1;
        if (next < num_blocks) {
          copy_weights(next);
          copy_x(next);
        }
        cp_async_commit();
      }
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kOutTiles; ++j) {
          mma_m16n8k16<T>(sum[i][j], a[step % 2][i], b[step % 2][j][0], b[step % 2][j][1]);
        }
      }
    }
  }

  cp_async_wait<0>();
  __syncthreads();
  float* staged = reinterpret_cast<float*>(shared) + thread / 32 * 16 * TileT::kEpiloguePitch;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kOutTiles; ++j) {
      float* at = staged + lane / 4 * TileT::kEpiloguePitch + j * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(at) = make_float2(sum[i][j][0], sum[i][j][1]);
      *reinterpret_cast<float2*>(at + 8 * TileT::kEpiloguePitch) =
          make_float2(sum[i][j][2], sum[i][j][3]);
    }
    __syncwarp();
    store_rows<T, TileT>(p, staged, row0 + warp_row + i * 16, n0 + warp_out, lane);
  }
}

template <typename T, typename TileT>
void launch_tile(MmaParams p, const LaunchContext& context) {
  const int64_t num_row_tiles = (p.num_tokens + TileT::kRows - 1) / TileT::kRows;
  const int64_t num_out_tiles = (p.out_features + TileT::kOuts - 1) / TileT::kOuts;
  if (num_row_tiles * num_out_tiles > INT32_MAX || num_out_tiles > INT32_MAX / kGroupRowTiles) {
    throw_invalid("linear: too many tiles");
  }
  p.num_row_tiles = static_cast<int>(num_row_tiles);
  p.num_out_tiles = static_cast<int>(num_out_tiles);
  launch(context, linear_mma_kernel<T, TileT>,
         dim3(static_cast<unsigned>(num_row_tiles * num_out_tiles)), dim3(TileT::kThreads),
         TileT::kSharedBytes, p);
}

// Rows, outputs, block of k, stages, warps along rows and outputs, blocks a multiprocessor.
using Tile16 = Tile<16, 32, 128, 5, 1, 4, 3>;
using Tile32 = Tile<32, 64, 64, 6, 1, 4, 3>;
using Tile64 = Tile<64, 64, 64, 4, 2, 2, 3>;
using TileWide = Tile<64, 128, 64, 3, 2, 2, 2>;
using TileLarge = Tile<256, 128, 32, 4, 4, 2, 1>;

/// Time of the busiest multiprocessor, in outputs at the rate of TileLarge. `rate`: that of the
/// tile when all multiprocessors are full, as measured on an H100 with 2048 rows; TileLarge's is 1.
template <typename TileT>
double estimate(const MmaParams& p, const LaunchContext& context, double rate) {
  const int64_t num_tiles = ((p.num_tokens + TileT::kRows - 1) / TileT::kRows) *
                            ((p.out_features + TileT::kOuts - 1) / TileT::kOuts);
  const int64_t num_sms = context.num_sms;
  int64_t tiles_of_sm = (num_tiles + num_sms - 1) / num_sms;
  if (tiles_of_sm > TileT::kBlocksPerSm) {
    const int64_t num_slots = num_sms * TileT::kBlocksPerSm;
    tiles_of_sm = (num_tiles + num_slots - 1) / num_slots * TileT::kBlocksPerSm;
  } else if (tiles_of_sm < TileT::kBlocksPerSm && tiles_of_sm == 1) {
    rate *= 0.65;  // a block alone does not hide its own latency
  }
  return static_cast<double>(tiles_of_sm * TileT::kRows * TileT::kOuts) / rate;
}

/// Which tile runs changes no bits: all walk k alike. On an H100 the estimates choose the fastest
/// tile, or one within 10 % of it, for 32 to 2048 rows of 4096 x 12288, 4096 x 4096, 4096 x 16384
/// and 16384 x 4096.
template <typename T>
void launch_typed(const MmaParams& p, const LaunchContext& context) {
  if (p.num_tokens <= Tile16::kRows) return launch_tile<T, Tile16>(p, context);
  if (p.num_tokens <= Tile32::kRows) return launch_tile<T, Tile32>(p, context);
  const double of_32 = estimate<Tile32>(p, context, 0.53);
  const double of_64 = estimate<Tile64>(p, context, 0.72);
  const double of_wide = estimate<TileWide>(p, context, 0.87);
  const double of_large = estimate<TileLarge>(p, context, 1.0);
  if (of_large <= std::min({of_32, of_64, of_wide})) {
    launch_tile<T, TileLarge>(p, context);
  } else if (of_wide <= std::min(of_32, of_64)) {
    launch_tile<T, TileWide>(p, context);
  } else if (of_64 <= of_32) {
    launch_tile<T, Tile64>(p, context);
  } else {
    launch_tile<T, Tile32>(p, context);
  }
}

}  // namespace

void launch_linear_mma(const LinearArgs& args, const LaunchContext& context) {
  if (args.num_tokens == 0 || args.out_features == 0) return;
  if (args.in_features % 8 != 0 || reinterpret_cast<uintptr_t>(args.x) % 16 != 0) {
    throw_invalid("linear_mma: rows of x do not start on 16-byte boundaries");
  }
  if (args.y_dtype != args.dtype && args.y_dtype != DType::kF32) {
    throw_invalid("linear: y_dtype is neither float32 nor the weight's dtype");
  }
  MmaParams p{};
  p.x = args.x;
  p.weight = args.weight;
  p.bias = args.bias;
  p.y = args.y;
  p.num_tokens = args.num_tokens;
  p.in_features = args.in_features;
  p.out_features = args.out_features;
  p.y_stride = args.y_stride;
  p.activation = args.activation;
  p.is_y_f32 = args.y_dtype == DType::kF32;
  p.is_y_vectorized = reinterpret_cast<uintptr_t>(args.y) % 16 == 0 &&
                      args.y_stride * dtype_size(args.y_dtype) % 16 == 0;
  switch (args.dtype) {
    case DType::kF16:
      return launch_typed<__half>(p, context);
    case DType::kBF16:
      return launch_typed<__nv_bfloat16>(p, context);
    default:
      throw_unsupported("linear_mma: dtype is not float16 or bfloat16");
  }
}

}  // namespace caravan::cuda
