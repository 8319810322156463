#pragma once

#include <omp.h>

#include <cstddef>
#include <cstdint>

#include "core/linear_layout.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/element_types.h"

namespace caravan::cpu {

// How linear layers with many rows are cut: pure functions of sizes. Nothing here can change a
// result, only who computes it and when.

/// Rows that are packed and multiplied at a time; bounds the scratch memory of a long prefill.
inline constexpr int64_t kChunkRows = 512;
/// Depth of a block of k: a widened panel block, 256 x 32 floats, fills two thirds of L1.
inline constexpr int64_t kDepthBlock = 256;
/// Most panels that share one pass over a packed block of rows: their accumulators, 512 x 32 x 8
/// floats, lie in L2 beside the block.
inline constexpr int64_t kPanelGroup = 8;

/// A thread's turn: tiles of rows [first_tile, last_tile) times panels [first_panel, last_panel).
struct GemmItem {
  int64_t first_tile;
  int64_t last_tile;
  int64_t first_panel;
  int64_t last_panel;
};

struct GemmPlan {
  int64_t num_tiles;
  int64_t row_parts;
  int64_t num_panels;
  int64_t num_groups;

  int64_t num_items() const { return row_parts * num_groups; }
  GemmItem item(int64_t index) const {
    // Turns that share weights follow each other.
    const int64_t part = index % row_parts;
    const int64_t group = index / row_parts;
    return {part_begin(num_tiles, row_parts, part), part_begin(num_tiles, row_parts, part + 1),
            part_begin(num_panels, num_groups, group),
            part_begin(num_panels, num_groups, group + 1)};
  }
};

/// Groups of `max_group` panels or fewer, `min_turns` or more for each thread if the layer has so
/// many panels; rows are split only when there are too few panels for the threads. Every turn reads
/// all rows once, so wide groups spare the caches and many turns balance uneven threads.
static inline GemmPlan plan_gemm(int64_t num_panels, int64_t num_tiles, int64_t max_group,
                                 int num_threads, int64_t min_turns) {
  const int64_t threads = num_threads;
  if (threads == 1) return {num_tiles, 1, num_panels, div_up(num_panels, max_group)};
  const int64_t turns = max_of(min_turns, div_up(num_panels, threads * max_group));
  const int64_t num_groups = min_of(num_panels, threads * turns);
  const int64_t row_parts = max_of(1, min_of(div_up(threads * turns, num_groups), num_tiles / 4));
  return {num_tiles, row_parts, num_panels, num_groups};
}

/// Brings `num_bytes` from `from` on into a cache level in `num_steps` equal steps: spread evenly,
/// prefetches never fill the queue of misses that the loads beside them need.
template <int kLocality>
class BlockPrefetch {
 public:
  BlockPrefetch(const void* from, int64_t num_bytes, int64_t num_steps)
      : next_(static_cast<const char*>(from)),
        end_(next_ + num_bytes),
        bytes_per_step_(align_up(div_up(num_bytes, num_steps), 64)) {}
  [[gnu::always_inline]] void step() {
    for (int64_t i = 0; i < bytes_per_step_ && next_ < end_; i += 64, next_ += 64) {
      __builtin_prefetch(next_, 0, kLocality);
    }
  }

 private:
  const char* next_;
  const char* end_;
  int64_t bytes_per_step_;
};
using L2Prefetch = BlockPrefetch<2>;
using L1Prefetch = BlockPrefetch<3>;

// Prefetches of the FMA kernels, one step for each k.

struct NoPrefetch {
  void step() {}
};

/// A stream from memory: `kBytes` at a time, `kAhead` bytes ahead of where it is read.
template <int64_t kBytes, int64_t kAhead>
class StreamPrefetch {
 public:
  explicit StreamPrefetch(const void* from) : next_(static_cast<const char*>(from) + kAhead) {}
  [[gnu::always_inline]] void step() {
    for (int64_t i = 0; i < kBytes; i += 64) __builtin_prefetch(next_ + i, 0, 3);
    next_ += kBytes;
  }

 private:
  const char* next_;
};

/// `num_bytes` from `from` on come into L2 during num_steps steps, a cache line or less in each.
class PacedPrefetch {
 public:
  PacedPrefetch(const void* from, int64_t num_bytes, int64_t num_steps)
      : next_(static_cast<const char*>(from)), bytes_per_step_(div_up(num_bytes, num_steps)) {}
  [[gnu::always_inline]] void step() {
    __builtin_prefetch(next_, 0, 2);
    next_ += bytes_per_step_;
  }

 private:
  const char* next_;
  int64_t bytes_per_step_;
};

static inline int64_t thread_number() { return omp_get_thread_num(); }

/// Scratch memory of the FMA linear layers: packed rows, shared, then one part for each thread.
static inline int64_t fma_packed_bytes(int64_t num_rows, int64_t in_features) {
  return align_up(min_of(num_rows, kChunkRows) * in_features * int64_t{sizeof(float)}, 64);
}
static inline int64_t fma_thread_bytes(int64_t num_rows) {
  return (kDepthBlock + kPanelGroup * min_of(num_rows, kChunkRows)) * kPanelWidth *
         int64_t{sizeof(float)};
}
static inline int64_t fma_scratch_bytes(int64_t num_rows, int64_t in_features, int num_threads) {
  return fma_packed_bytes(num_rows, in_features) + num_threads * fma_thread_bytes(num_rows);
}

}  // namespace caravan::cpu

namespace caravan {

/// Throws kInternal when the context has less scratch memory than `num_bytes`. Out of line, so that
/// no code for an error message is compiled for a wider instruction set.
void check_scratch(int64_t num_bytes, const CpuContext& context);

}  // namespace caravan
