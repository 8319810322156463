#include <algorithm>
#include <string>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"

namespace caravan::cuda {

namespace {

// A block streams its tiles of 16 outputs through a ring of stages; a stage holds some k of all the
// tiles of a pass, and the same k of x. One warp computes one tile over all of k, one more warp
// asks for the copies: warps that compute and ask for their own weights reached 53 % of the
// memory's speed where two of them share a multiprocessor (out 4096), this 95 % (H100, in 16384).
// Blocks in clusters of two that share x by multicast were slower at 16, 32 and 64 rows.
constexpr int kTileOutputs = 16;
constexpr int kMaxWarps = 8;  // that compute
constexpr int kPieceK = 64;
constexpr int kTilePieceBytes = kPieceK * kTileOutputs * 2;
constexpr int kStripPieceBytes = kTilePieceBytes / 2;  // of eight outputs
// One row of a piece of x: the span of the 128-byte swizzle.
constexpr int kXRowBytes = kPieceK * 2;

struct StreamParams {
  CUtensorMap weight_map;  // [out/8][in/8][64], box: two strips, a stage's k
  CUtensorMap x_map;       // [in/64][num_tokens][64], box: a stage's k, kRows rows
  const float* bias;
  void* y;
  int64_t y_stride;
  int num_tokens;
  int out_features;
  int num_tiles;
  int num_pieces;    // k in steps of kPieceK
  int num_passes;    // over x, with at most one tile a warp each
  int num_stages;    // of the ring
  int stage_pieces;  // of a stage
  bool x_is_flat;    // x_map is [1][num_tokens][in_features], box: one piece
  bool y_is_f32;
  bool y_has_pairs;  // two outputs of a row may be stored at once
  Activation activation;
};

__device__ __forceinline__ void prefetch_tensor_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The switch outside, so that only one activation's code is fetched.
template <typename T, typename Out>
__device__ __forceinline__ void activate_four(float (&v)[4], Activation activation) {
  const auto apply = [&](auto one) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = one(v[i]);
  };
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kGelu:
      return apply([](float x) { return activate_for<T, Out>(x, Activation::kGelu); });
    case Activation::kGeluTanh:
      return apply([](float x) { return activate_for<T, Out>(x, Activation::kGeluTanh); });
    case Activation::kQuickGelu:
      return apply([](float x) { return activate_for<T, Out>(x, Activation::kQuickGelu); });
    case Activation::kRelu:
      return apply([](float x) { return activate_for<T, Out>(x, Activation::kRelu); });
    case Activation::kSilu:
      return apply([](float x) { return activate_for<T, Out>(x, Activation::kSilu); });
    case Activation::kTanh:
      return apply([](float x) { return activate_for<T, Out>(x, Activation::kTanh); });
  }
}

// y[0] and y[1], as far as num_left outputs are left.
template <typename Out>
__device__ __forceinline__ void store_pair(Out* y, float v0, float v1, int num_left,
                                           bool has_pairs) {
  if (num_left >= 2 && has_pairs) {
    if constexpr (sizeof(Out) == 4) {
      *reinterpret_cast<float2*>(y) = make_float2(v0, v1);
    } else {
      *reinterpret_cast<uint32_t*>(y) = pack_pair<Out>(v0, v1);
    }
  } else {
    if (num_left >= 1) y[0] = from_float<Out>(v0);
    if (num_left >= 2) y[1] = from_float<Out>(v1);
  }
}

// One lane of a warp that has converged. ptxas knows elect.sync: behind `lane == 0` it wraps every
// copy in a loop over lanes.
__device__ __forceinline__ bool elect_one() {
  uint32_t is_elected;
  asm volatile(
      "{\n.reg .pred elected;\n"
      "elect.sync _|elected, 0xFFFFFFFF;\n"
      "selp.u32 %0, 1, 0, elected;\n}\n"
      : "=r"(is_elected));
  return is_elected != 0;
}

template <typename T, int kRows>
__global__ void __launch_bounds__((kMaxWarps + 1) * 32, kRows <= 32 ? 2 : 1)
    linear_stream_kernel(const __grid_constant__ StreamParams p) {
  constexpr int kGroups = kRows / 8;                              // of rows: one mma's n
  constexpr int kSteps = kRows <= 8 ? 4 : (kRows <= 32 ? 2 : 1);  // k16 steps loaded at a time
  constexpr int kChunks = 4 / kSteps;                             // of a piece
  constexpr int kXPieceBytes = kRows * kXRowBytes;

  extern __shared__ uint8_t shared[];
  const int num_warps = static_cast<int>(blockDim.x) / 32 - 1;
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int num_stages = p.num_stages;
  const uint32_t tile_bytes = p.stage_pieces * kTilePieceBytes;
  const uint32_t x_bytes = p.stage_pieces * kXPieceBytes;
  const uint32_t stage_bytes = num_warps * tile_bytes + x_bytes;
  const uint32_t ring = (shared_address(shared) + 1023u) & ~1023u;  // of the swizzle of x
  const uint32_t full = ring + num_stages * stage_bytes;
  const uint32_t empty = full + num_stages * 8;
  const int stages_of_pass = (p.num_pieces + p.stage_pieces - 1) / p.stage_pieces;

  pdl_launch_dependents();
  if (warp == num_warps && lane == 0) {
    prefetch_tensor_map(&p.weight_map);
    prefetch_tensor_map(&p.x_map);
    for (int i = 0; i < num_stages; ++i) {
      mbarrier_init(full + i * 8, 1);
      mbarrier_init(empty + i * 8, num_warps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();

  if (warp == num_warps) {
    const int total = p.num_passes * stages_of_pass;
    const auto ask_weights = [&](int stage, int pass, int index) {
      const int first =
          static_cast<int>(blockIdx.x) + pass * num_warps * static_cast<int>(gridDim.x);
      const int num_tiles = min(num_warps, (p.num_tiles - first + static_cast<int>(gridDim.x) - 1) /
                                               static_cast<int>(gridDim.x));
      mbarrier_arrive_expect(full + stage * 8, max(num_tiles, 0) * tile_bytes + x_bytes);
#pragma unroll 2
      for (int i = 0; i < num_tiles; ++i) {
        tensor_copy_3d(ring + stage * stage_bytes + i * tile_bytes, &p.weight_map, 0,
                       index * p.stage_pieces * (kPieceK / 8),
                       (first + i * static_cast<int>(gridDim.x)) * 2, full + stage * 8,
                       kEvictFirst);
      }
    };
    const auto ask_x = [&](int stage, int index) {
      const uint32_t target = ring + stage * stage_bytes + num_warps * tile_bytes;
      const int num_copies = p.x_is_flat ? p.stage_pieces : 1;
#pragma unroll 1
      for (int i = 0; i < num_copies; ++i) {
        const int piece = index * p.stage_pieces + i;
        const int k = p.x_is_flat ? piece * kPieceK : 0, plane = p.x_is_flat ? 0 : piece;
        tensor_copy_3d(target + i * kXPieceBytes, &p.x_map, k, 0, plane, full + stage * 8);
      }
    };
    // Weights do not depend on the kernel before: the whole ring is asked for ahead of the wait.
    const int num_ahead = min(num_stages, total);
    if (elect_one()) {
      for (int i = 0, pass = 0, index = 0; i < num_ahead; ++i) {
        ask_weights(i, pass, index);
        if (++index == stages_of_pass) {
          index = 0;
          ++pass;
        }
      }
    }
    pdl_wait();
    if (elect_one()) {
      int pass = 0, index = 0, stage = 0;
      uint32_t parity = 1;
      for (int i = 0; i < total; ++i) {
        if (i >= num_stages) {
          mbarrier_wait(empty + stage * 8, parity);
          ask_weights(stage, pass, index);
        }
        ask_x(stage, index);
        if (++stage == num_stages) {
          stage = 0;
          parity ^= 1;
        }
        if (++index == stages_of_pass) {
          index = 0;
          ++pass;
        }
      }
    }
  } else {
    pdl_wait();
    // Lane addresses. Weights: matrices (strip, k8) = (0,0) (1,0) (0,1) (1,1), as mma's A wants
    // them. x: with 4 or 2 steps a chunk four k8 of one group of rows; with one step two k8 of two
    // groups. The 16-byte unit of k8 c in row r lies at c ^ r.
    const uint32_t a_lane =
        warp * tile_bytes + (lane / 8 % 2) * (tile_bytes / 2) + (lane / 16) * 128 + lane % 8 * 16;
    const int unit = kSteps == 1 ? lane / 8 % 2 : lane / 8;
    const int group = kSteps == 1 ? lane / 16 : 0;
    const uint32_t b_lane =
        num_warps * tile_bytes + lane % 8 * kXRowBytes + ((unit ^ (lane % 8)) * 16) + group * 1024;

    int load_stage = 0, free_stage = 0;
    uint32_t parity = 0;
    const auto release_stage = [&]() {
      __syncwarp();
      if (lane == 0) {
        mbarrier_arrive(empty + free_stage * 8);
      }
      if (++free_stage == num_stages) free_stage = 0;
    };
    const auto next_stage = [&]() {
      if (++load_stage == num_stages) {
        load_stage = 0;
        parity ^= 1;
      }
    };

    for (int pass = 0; pass < p.num_passes; ++pass) {
      const int tile =
          static_cast<int>(blockIdx.x) + (pass * num_warps + warp) * static_cast<int>(gridDim.x);
      if (tile >= p.num_tiles) {  // the stages are others' too: keep pace with them
        for (int i = 0; i < stages_of_pass; ++i) {
          mbarrier_wait(full + load_stage * 8, parity);
          next_stage();
          release_stage();
        }
        continue;
      }
      const int n0 = tile * kTileOutputs + lane / 4;
      const bool has_low = n0 < p.out_features, has_high = n0 + 8 < p.out_features;
      const float bias_low = p.bias != nullptr && has_low ? __ldg(p.bias + n0) : 0.0f;
      const float bias_high = p.bias != nullptr && has_high ? __ldg(p.bias + n0 + 8) : 0.0f;

      float sum[kGroups][4];
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[j][i] = 0.0f;
      }
      // Two sets of fragments: the next chunk is read while this one is multiplied.
      uint32_t a[2][kSteps][4];
      uint32_t b[2][kGroups][kSteps * 2];
      uint32_t a_base = 0, b_base = 0;
      int load_left = 0, free_left = p.stage_pieces;  // pieces of the stage
      const auto open_piece = [&]() {
        if (load_left == 0) {
          mbarrier_wait(full + load_stage * 8, parity);
          a_base = ring + load_stage * stage_bytes;
          b_base = a_base + b_lane;
          a_base += a_lane;
          next_stage();
          load_left = p.stage_pieces;
        } else {
          a_base += kStripPieceBytes;
          b_base += kXPieceBytes;
        }
        --load_left;
      };
      // Of the next chunk's loads, those that go with its step s.
      const auto load_step = [&](uint32_t(&a_next)[kSteps][4],
                                 uint32_t(&b_next)[kGroups][kSteps * 2], int chunk, int s) {
        ldmatrix_x4(a_next[s], a_base + (chunk * kSteps + s) * 256);
        const auto x_address = [&](int j, int xor_bytes) {
          return (b_base ^ xor_bytes) + j * 1024;
        };
        uint32_t r[4];
        if constexpr (kSteps == 1) {
#pragma unroll
          for (int j = 0; j < kGroups; j += 2) {
            ldmatrix_x4(r, x_address(j, chunk * 32));
            b_next[j][0] = r[0];
            b_next[j][1] = r[1];
            b_next[j + 1][0] = r[2];
            b_next[j + 1][1] = r[3];
          }
        } else if constexpr (kSteps == 2) {
#pragma unroll
          for (int j = s * kGroups / 2; j < (s + 1) * kGroups / 2; ++j) {
            ldmatrix_x4(r, x_address(j, chunk * 64));
#pragma unroll
            for (int i = 0; i < 4; ++i) b_next[j][i] = r[i];
          }
        } else if (s % 2 == 0) {
          ldmatrix_x4(r, x_address(0, s * 32));
#pragma unroll
          for (int i = 0; i < 4; ++i) b_next[0][s * 2 + i] = r[i];
        }
      };

      open_piece();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) load_step(a[0], b[0], 0, s);
      for (int pair = 0; pair < p.num_pieces; pair += 2) {
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const int piece = pair + odd;
          if (piece < p.num_pieces) {
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
              const int now = (odd * kChunks + chunk) % 2;
              const bool opens = chunk + 1 == kChunks;
              const bool has_next = !opens || piece + 1 < p.num_pieces;
#pragma unroll
              for (int s = 0; s < kSteps; ++s) {
#pragma unroll
                for (int j = 0; j < kGroups; ++j) {
                  mma_m16n8k16<T>(sum[j], a[now][s], b[now][j][2 * s], b[now][j][2 * s + 1]);
                  // Waiting and loading hide behind the 33 cycles of an mma of the same chain.
                  if (j == 0 && has_next) {
                    if (opens && s == 0) open_piece();
                    load_step(a[1 - now], b[1 - now], opens ? 0 : chunk + 1, s);
                  }
                }
              }
            }
            // The piece is in registers: after its last piece a stage is free.
            if (--free_left == 0 || piece == p.num_pieces - 1) {
              release_stage();
              free_left = p.stage_pieces;
            }
          }
        }
      }

      // Not unrolled: the code of 16 and more activations is not in the instruction cache when a
      // kernel ends; fetching it took 2.5 us at 32 rows, this takes 1.0 us.
#pragma unroll 1
      for (int j = 0; j < kGroups; ++j) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          v[i] = sum[0][i];
#pragma unroll
          for (int k = 1; k < kGroups; ++k) v[i] = j == k ? sum[k][i] : v[i];
          if (p.bias != nullptr) v[i] += i < 2 ? bias_low : bias_high;
        }
        if (j * 8 >= p.num_tokens) break;
        if (p.y_is_f32) {
          activate_four<T, float>(v, p.activation);
        } else {
          activate_four<T, T>(v, p.activation);
        }
        // Lanes of outputs n and n + 1, n even, exchange values: one stores row 2t, one row 2t + 1.
        const bool is_odd = lane / 4 % 2 != 0;
        const float low = __shfl_xor_sync(0xFFFFFFFF, is_odd ? v[0] : v[1], 4);
        const float high = __shfl_xor_sync(0xFFFFFFFF, is_odd ? v[2] : v[3], 4);
        const int row = j * 8 + lane % 4 * 2 + (is_odd ? 1 : 0);
        if (row < p.num_tokens) {
          const int n = n0 - (is_odd ? 1 : 0);
          const int64_t i = row * p.y_stride + n;
          if (p.y_is_f32) {
            float* y = static_cast<float*>(p.y) + i;
            store_pair(y, is_odd ? low : v[0], is_odd ? v[1] : low, p.out_features - n,
                       p.y_has_pairs);
            store_pair(y + 8, is_odd ? high : v[2], is_odd ? v[3] : high, p.out_features - n - 8,
                       p.y_has_pairs);
          } else {
            T* y = static_cast<T*>(p.y) + i;
            store_pair(y, is_odd ? low : v[0], is_odd ? v[1] : low, p.out_features - n,
                       p.y_has_pairs);
            store_pair(y + 8, is_odd ? high : v[2], is_odd ? v[3] : high, p.out_features - n - 8,
                       p.y_has_pairs);
          }
        }
      }
    }
  }
}

// Shared memory of a block. Two blocks of it and small kernels between them fit in the 227 KiB of a
// multiprocessor, so that a layer's weights arrive while the kernel before it ends. Layers that
// widen (q, k, v and the first of the MLP) follow a LayerNorm, whose time a long ring bridges; the
// others follow a kernel that keeps the memory busy. A decode step of camel-5b at context 512 on an
// H100, wide and narrow KiB: 108 and 108 3.76 ms (batch 1), 4.42 (8), 6.25 (32); 130, 90 3.74,
// 4.32, 6.15; 146, 72 3.67, 4.25, 6.17; 150, 60 3.66, 4.23, 6.46; 80, 140 3.73, 4.31, 6.24. Batch
// 16: 108, 108 5.02 in an earlier build; 146, 72 5.38.
int shared_limit(int max_rows, bool is_wide) {
  if (max_rows <= 8) return (is_wide ? 150 : 60) * 1024;
  if (max_rows <= 16) return 108 * 1024;
  return (is_wide ? 146 : 72) * 1024;
}

// Stages of a ring, as far as a stage's k (64, 128 or 256) can be chosen: longer stages cost fewer
// instructions, shorter ones are free again sooner. The same chain with at least 2, 3, 4 and 6
// stages: one row 94.3, 95.1, 94.7, 93.6 %; 16 rows 89.3, 91.7, 92.7, 93.1 %; 32 rows 86.5, 89.1,
// 88.2, 88.2 %; 64 rows 67.9, 76.6, 76.6 %, not measured.
constexpr int min_stages(int rows) { return rows == 16 ? 6 : 3; }

template <typename T, int kRows>
void launch_rows(const LinearArgs& args, const LaunchContext& context) {
  StreamParams p;
  p.bias = args.bias;
  p.y = args.y;
  p.y_stride = args.y_stride;
  p.num_tokens = static_cast<int>(args.num_tokens);
  p.out_features = static_cast<int>(args.out_features);
  p.num_tiles = (p.out_features + kTileOutputs - 1) / kTileOutputs;
  p.num_pieces = static_cast<int>((args.in_features + kPieceK - 1) / kPieceK);
  p.activation = args.activation;
  p.y_is_f32 = args.y_dtype == DType::kF32;
  const uint64_t pair_bytes = p.y_is_f32 ? 8 : 4;
  p.y_has_pairs = reinterpret_cast<uint64_t>(args.y) % pair_bytes == 0 && args.y_stride % 2 == 0;

  // One block a multiprocessor, so that with PDL this kernel and the next fit side by side.
  const int num_blocks = std::min(context.num_sms, p.num_tiles);
  const int tiles_of_block = (p.num_tiles + num_blocks - 1) / num_blocks;
  p.num_passes = (tiles_of_block + kMaxWarps - 1) / kMaxWarps;
  const int num_warps = (tiles_of_block + p.num_passes - 1) / p.num_passes;

  const int piece_bytes = num_warps * kTilePieceBytes + kRows * kXRowBytes;
  const int ring_bytes =  // 1024 to align the swizzle
      shared_limit(kRows, args.out_features > args.in_features) - 1024;
  p.stage_pieces = 4;
  while (p.stage_pieces > 1 &&
         ring_bytes / (p.stage_pieces * piece_bytes + 16) < min_stages(kRows)) {
    p.stage_pieces /= 2;
  }
  p.num_stages = ring_bytes / (p.stage_pieces * piece_bytes + 16);

  const uint64_t padded_in = static_cast<uint64_t>(p.num_pieces) * kPieceK;
  const uint64_t num_strips = static_cast<uint64_t>(args.out_features + kCoreOutMultiple - 1) /
                              kCoreOutMultiple * (kCoreOutMultiple / 8);
  const auto stage_pieces = static_cast<cuuint32_t>(p.stage_pieces);
  p.weight_map = make_tensor_map(args.dtype, args.weight, {64, padded_in / 8, num_strips},
                                 {128, padded_in * 16}, {64, stage_pieces * (kPieceK / 8), 2},
                                 CU_TENSOR_MAP_SWIZZLE_NONE);
  // What lies outside a map reads as zero: rows beyond num_tokens and k beyond in_features, for
  // which the planes of 64 k must not run into the next row.
  const auto in_features = static_cast<uint64_t>(args.in_features);
  const auto num_tokens = static_cast<uint64_t>(args.num_tokens);
  p.x_is_flat = in_features % kPieceK != 0;
  if (p.x_is_flat) {
    p.x_map = make_tensor_map(args.dtype, args.x, {in_features, num_tokens, 1},
                              {in_features * 2, in_features * 2 * num_tokens}, {kPieceK, kRows, 1},
                              CU_TENSOR_MAP_SWIZZLE_128B);
  } else {
    p.x_map = make_tensor_map(args.dtype, args.x, {kPieceK, num_tokens, in_features / kPieceK},
                              {in_features * 2, kXRowBytes}, {kPieceK, kRows, stage_pieces},
                              CU_TENSOR_MAP_SWIZZLE_128B);
  }
  launch(context, linear_stream_kernel<T, kRows>, dim3(num_blocks), dim3((num_warps + 1) * 32),
         1024 + p.num_stages * (p.stage_pieces * piece_bytes + 16), p);
}

void check(const LinearArgs& args) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (args.dtype != DType::kF16 && args.dtype != DType::kBF16) {
    throw_unsupported("launch_linear_stream: x and weight must be float16 or bfloat16");
  }
  if (args.y_dtype != args.dtype && args.y_dtype != DType::kF32) {
    throw_unsupported("launch_linear_stream: y must be float32 or of the dtype of x");
  }
  if (args.num_tokens > kMaxStreamTokens) {
    throw_invalid("launch_linear_stream: num_tokens " + std::to_string(args.num_tokens) +
                  ", at most " + std::to_string(kMaxStreamTokens));
  }
  if (args.in_features <= 0 || args.in_features % 8 != 0 || args.out_features <= 0 ||
      args.in_features > INT32_MAX / 2 || args.out_features > INT32_MAX / 2) {
    throw_invalid("launch_linear_stream: in_features " + std::to_string(args.in_features) +
                  " and out_features " + std::to_string(args.out_features) +
                  " must be positive, in_features a multiple of 8");
  }
  if (args.y_stride < args.out_features) {
    throw_invalid("launch_linear_stream: y_stride " + std::to_string(args.y_stride) +
                  " is less than out_features " + std::to_string(args.out_features));
  }
  if (!aligned(args.x) || !aligned(args.weight)) {
    throw_invalid("launch_linear_stream: x and weight must be aligned to 16 bytes");
  }
}

template <typename T>
void launch_dtype(const LinearArgs& args, const LaunchContext& context) {
  const int64_t rows = args.num_tokens;
  if (rows <= 8) return launch_rows<T, 8>(args, context);
  if (rows <= 16) return launch_rows<T, 16>(args, context);
  if (rows <= 32) return launch_rows<T, 32>(args, context);
  launch_rows<T, 64>(args, context);
}

}  // namespace

void launch_linear_stream(const LinearArgs& args, const LaunchContext& context) {
  if (args.num_tokens == 0) return;
  check(args);
  if (args.dtype == DType::kF16) {
    launch_dtype<__half>(args, context);
  } else {
    launch_dtype<__nv_bfloat16>(args, context);
  }
}

}  // namespace caravan::cuda
