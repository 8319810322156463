#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/op_params.h"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

// Matrix product of prefill for sm_90a: one producer warpgroup fetches tiles of x and W with tensor
// copies, two consumer warpgroups multiply them with wgmma and write y. Blocks are persistent, so
// the producer fills the next tile's stages while the consumers finish the last tile.

namespace caravan::cuda {

struct LinearWgmmaParams {
  int64_t num_tokens;
  int64_t out_features;
  int32_t num_k_blocks;
  int32_t num_row_tiles;
  int32_t num_column_tiles;
  int32_t group_rows;  // row tiles that are walked before the next column tile
  const float* bias;   // [out_features] or null
  void* y;             // [num_tokens, y_stride]
  int64_t y_stride;
  Activation activation;
  bool is_y_float;
  bool is_y_aligned;  // every row of y starts at a multiple of 16 bytes
};

inline constexpr int kWgmmaK = 64;      // k of one stage: 128 bytes, the width of the swizzle
inline constexpr int kWgmmaChunk = 32;  // columns of y that a warp writes at a time
inline constexpr int kWgmmaConsumers = 2;
inline constexpr int kWgmmaThreads = 128 * (1 + kWgmmaConsumers);
inline constexpr int kWgmmaWarps = 4 * kWgmmaConsumers;

/// Shared memory of a block, offsets from an address that is a multiple of 1024.
template <int kRows, int kColumns>
struct LinearWgmmaShared {
  static constexpr int kBytesX = kRows * kWgmmaK * 2;
  static constexpr int kBytesW = kColumns * kWgmmaK * 2;
  // As many stages as 200 KiB hold: with 128 x 256 four of 48 KiB.
  static constexpr int kStages = 200 * 1024 / (kBytesX + kBytesW);
  static constexpr int kStagingBytes = 16 * kWgmmaChunk * 4;  // of a warp
  static constexpr int kX = 0;
  static constexpr int kW = kX + kStages * kBytesX;
  static constexpr int kStaging = kW + kStages * kBytesW;
  static constexpr int kBias = kStaging + kWgmmaWarps * kStagingBytes;
  static constexpr int kBarriers = kBias + kWgmmaConsumers * kColumns * 4;
  static constexpr int kEnd = kBarriers + 2 * kStages * 8;
  static constexpr int kTotal = kEnd + 1024;  // slack for the alignment
  static_assert(kTotal <= 227 * 1024);
};

struct WgmmaTile {
  int32_t row;
  int32_t column;
};

/// Rows fastest within groups of group_rows row tiles, then columns, then the next group: blocks
/// that run at the same time read few rows and few columns, which L2 holds.
__device__ __forceinline__ WgmmaTile wgmma_tile(const LinearWgmmaParams& p, int32_t index) {
  const int32_t group_size = p.group_rows * p.num_column_tiles;
  const int32_t group = index / group_size;
  const int32_t first_row = group * p.group_rows;
  const int32_t rows = min(p.group_rows, p.num_row_tiles - first_row);
  const int32_t rest = index - group * group_size;
  return {first_row + rest % rows, rest / rows};
}

/// Shared memory of a warp's 16 rows of kWgmmaChunk columns in float32, eight pieces of 16 bytes a
/// row. A pair of pieces moves to another place of its row, so that the four rows that half a warp
/// writes lie in different banks.
__device__ __forceinline__ uint32_t wgmma_staging(uint32_t staging, int row, int piece) {
  return staging + static_cast<uint32_t>(row * 8 + (piece ^ (row & 3) << 1)) * 16;
}

// Written as one instruction: the compiler sees that the path for tails does the same, one element
// at a time, and folds a plain vector store into it.
__device__ __forceinline__ void store_global_16(void* to, float4 v) {
  asm volatile("st.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}
__device__ __forceinline__ void store_global_8(void* to, uint32_t a, uint32_t b) {
  asm volatile("st.global.v2.b32 [%0], {%1,%2};" ::"l"(to), "r"(a), "r"(b) : "memory");
}

/// y of a warp's 16 rows of kWgmmaChunk columns: shared memory plus bias, activated, rounded. Eight
/// lanes write the contiguous columns of a row.
template <typename T, typename Out, Activation kActivation>
__device__ __forceinline__ void store_chunk(const LinearWgmmaParams& p, uint32_t staging,
                                            float4 bias, int64_t row, int64_t column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = column + lane % 8 * 4;
  const int64_t first_row = row + lane / 8;
  const bool is_whole = p.is_y_aligned && first + 4 <= p.out_features;
  Out* y = static_cast<Out*>(p.y) + first_row * p.y_stride + first;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float4 v = load_shared_float4(wgmma_staging(staging, i * 4 + lane / 8, lane % 8));
    if (p.bias != nullptr) {
      v.x = __fadd_rn(v.x, bias.x);
      v.y = __fadd_rn(v.y, bias.y);
      v.z = __fadd_rn(v.z, bias.z);
      v.w = __fadd_rn(v.w, bias.w);
    }
    v.x = activate_for<T, Out>(v.x, kActivation);
    v.y = activate_for<T, Out>(v.y, kActivation);
    v.z = activate_for<T, Out>(v.z, kActivation);
    v.w = activate_for<T, Out>(v.w, kActivation);
    if (first_row + i * 4 < p.num_tokens) {
      Out* to = y + i * 4 * p.y_stride;
      if (!is_whole) {
        const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (first + e < p.out_features) to[e] = from_float<Out>(values[e]);
        }
      } else if constexpr (sizeof(Out) == 4) {
        store_global_16(to, v);
      } else {
        store_global_8(to, pack_pair<T>(v.x, v.y), pack_pair<T>(v.z, v.w));
      }
    }
  }
}

template <typename T, typename Out>
__device__ __forceinline__ void store_chunk(const LinearWgmmaParams& p, uint32_t staging,
                                            float4 bias, int64_t row, int64_t column) {
  switch (p.activation) {
    case Activation::kNone:
      return store_chunk<T, Out, Activation::kNone>(p, staging, bias, row, column);
    case Activation::kGelu:
      return store_chunk<T, Out, Activation::kGelu>(p, staging, bias, row, column);
    case Activation::kGeluTanh:
      return store_chunk<T, Out, Activation::kGeluTanh>(p, staging, bias, row, column);
    case Activation::kQuickGelu:
      return store_chunk<T, Out, Activation::kQuickGelu>(p, staging, bias, row, column);
    case Activation::kRelu:
      return store_chunk<T, Out, Activation::kRelu>(p, staging, bias, row, column);
    case Activation::kSilu:
      return store_chunk<T, Out, Activation::kSilu>(p, staging, bias, row, column);
    case Activation::kTanh:
      return store_chunk<T, Out, Activation::kTanh>(p, staging, bias, row, column);
  }
}

/// x_map: [num_tokens][in_features], box kWgmmaK x kRows, 128-byte swizzle.
/// w_map: [out/8][in/8][64], box 64 x kWgmmaK / 8 x kColumns / 8.
/// With 128 rows a consumer takes 64 of them, with 64 rows half of the columns.
template <typename T, int kRows, int kColumns>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    linear_wgmma_kernel(const __grid_constant__ CUtensorMap x_map,
                        const __grid_constant__ CUtensorMap w_map,
                        const __grid_constant__ LinearWgmmaParams p) {
  using Shared = LinearWgmmaShared<kRows, kColumns>;
  constexpr int kStages = Shared::kStages;
  constexpr bool kSplitsRows = kRows == 128;
  constexpr int kN = kSplitsRows ? kColumns : kColumns / kWgmmaConsumers;  // of a consumer

  extern __shared__ uint8_t dynamic_shared[];
  const uint32_t base = (shared_address(dynamic_shared) + 1023) & ~1023u;
  const uint32_t x_tiles = base + Shared::kX;
  const uint32_t w_tiles = base + Shared::kW;
  const uint32_t full = base + Shared::kBarriers;
  const uint32_t empty = full + kStages * 8;

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(full + s * 8, 1);
      mbarrier_init(empty + s * 8, kWgmmaWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  pdl_launch_dependents();

  const int num_tiles = p.num_row_tiles * p.num_column_tiles;
  const int num_blocks = static_cast<int>(gridDim.x);
  const int first_tile = static_cast<int>(blockIdx.x);

  if (warp >= kWgmmaWarps) {
    setmaxnreg_dec<40>();
    if (threadIdx.x == kWgmmaWarps * 32) {
      prefetch_tensor_map(&w_map);
      prefetch_tensor_map(&x_map);
      const auto load_w = [&](const WgmmaTile& tile, int k, int stage) {
        mbarrier_arrive_expect(full + stage * 8, Shared::kBytesX + Shared::kBytesW);
        tensor_copy_3d(w_tiles + stage * Shared::kBytesW, &w_map, 0, k * (kWgmmaK / 8),
                       tile.column * (kColumns / 8), full + stage * 8);
      };
      const auto load_x = [&](const WgmmaTile& tile, int k, int stage) {
        tensor_copy_2d(x_tiles + stage * Shared::kBytesX, &x_map, k * kWgmmaK, tile.row * kRows,
                       full + stage * 8);
      };
      // Weights never change: the first stages of W are fetched while the kernel before this one
      // still writes x.
      const int num_early = first_tile < num_tiles ? min(kStages, p.num_k_blocks) : 0;
      for (int k = 0; k < num_early; ++k) load_w(wgmma_tile(p, first_tile), k, k);
      pdl_wait();
      int stage = 0;
      uint32_t parity = 0;
      int num_done = 0;
      for (int index = first_tile; index < num_tiles; index += num_blocks) {
        const WgmmaTile tile = wgmma_tile(p, index);
        for (int k = 0; k < p.num_k_blocks; ++k) {
          if (num_done < num_early) {
            ++num_done;
          } else {
            mbarrier_wait(empty + stage * 8, parity ^ 1);
            load_w(tile, k, stage);
          }
          load_x(tile, k, stage);
          if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
    } else {
      pdl_wait();
    }
    __syncwarp();
  } else {
    setmaxnreg_inc<232>();
    pdl_wait();
    const int consumer = warp / 4;
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const uint32_t staging = base + Shared::kStaging + warp * Shared::kStagingBytes;
    float* bias = reinterpret_cast<float*>(
                      dynamic_shared + (base - shared_address(dynamic_shared)) + Shared::kBias) +
                  consumer * kN;
    const auto release = [&](int stage) {
      if (lane == 0) mbarrier_arrive(empty + stage * 8);
    };
    const uint32_t x_offset = kSplitsRows ? consumer * 64 * 128 : 0;
    const uint32_t w_offset = kSplitsRows ? 0 : consumer * kN * 128;

    int stage = 0;
    uint32_t parity = 0;
    for (int index = first_tile; index < num_tiles; index += num_blocks) {
      const WgmmaTile tile = wgmma_tile(p, index);
      const int64_t row = static_cast<int64_t>(tile.row) * kRows +
                          (kSplitsRows ? consumer * 64 : 0) + warp % 4 * 16;
      const int64_t column =
          static_cast<int64_t>(tile.column) * kColumns + (kSplitsRows ? 0 : consumer * kN);
      // Asked for now, used after the products.
      constexpr int kBiasPerThread = (kN + 127) / 128;
      float bias_values[kBiasPerThread];
#pragma unroll
      for (int i = 0; i < kBiasPerThread; ++i) {
        const int64_t n = column + thread + i * 128;
        const bool is_used = p.bias != nullptr && thread + i * 128 < kN && n < p.out_features;
        bias_values[i] = is_used ? __ldg(p.bias + n) : 0.0f;
      }

      float acc[kN / 2];
      int last_stage = 0;
      for (int k = 0; k < p.num_k_blocks; ++k) {
        mbarrier_wait(full + stage * 8, parity);
        const uint64_t a =
            wgmma_descriptor_swizzle128(x_tiles + stage * Shared::kBytesX + x_offset);
        const uint64_t b =
            wgmma_descriptor_core8x8(w_tiles + stage * Shared::kBytesW + w_offset, 128, 1024);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kWgmmaK / 16; ++i) {
          wgmma_m64k16<T, kN>(acc, a + i * 32 / 16, b + i * 256 / 16, k + i > 0 ? 1 : 0);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (k > 0) release(last_stage);
        last_stage = stage;
        if (++stage == kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
      wgmma_wait<0>();
      release(last_stage);

      const auto consumer_sync = [&] {
        asm volatile("bar.sync %0, 128;" ::"r"(1 + consumer) : "memory");
      };
      if (p.bias != nullptr) {
        consumer_sync();  // the last tile's bias has been read
#pragma unroll
        for (int i = 0; i < kBiasPerThread; ++i) {
          if (thread + i * 128 < kN) bias[thread + i * 128] = bias_values[i];
        }
        consumer_sync();
      }
      // A loop, so that the code stays small; only the choice of registers is written out for every
      // chunk.
#pragma unroll 1
      for (int chunk = 0; chunk < kN / kWgmmaChunk; ++chunk) {
#pragma unroll
        for (int c = 0; c < kN / kWgmmaChunk; ++c) {
          if (c != chunk) continue;
#pragma unroll
          for (int j = 0; j < kWgmmaChunk / 8; ++j) {
            const float* d = acc + c * (kWgmmaChunk / 2) + j * 4;
            const int piece = 2 * j + lane % 4 / 2;
            const uint32_t half = lane % 2 * 8;
            store_shared_8(wgmma_staging(staging, lane / 4, piece) + half, d[0], d[1]);
            store_shared_8(wgmma_staging(staging, lane / 4 + 8, piece) + half, d[2], d[3]);
          }
        }
        __syncwarp();
        const int n = chunk * kWgmmaChunk;
        const float4 b = *reinterpret_cast<const float4*>(bias + n + lane % 8 * 4);
        if (p.is_y_float) {
          store_chunk<T, float>(p, staging, b, row, column + n);
        } else {
          store_chunk<T, T>(p, staging, b, row, column + n);
        }
        __syncwarp();
      }
    }
  }
}

}  // namespace caravan::cuda
