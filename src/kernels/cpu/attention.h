#pragma once

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/gemm_plan.h"
#include "kernels/cpu/simd_math.h"

namespace caravan::cpu {

// Attention of one (query, head): scores of all its tokens, their maximum, weights e^(s - max) with
// their sum in sixteen lanes, then the weighted sum of V token by token. Every step runs in the
// order of the tokens and sees no token past the query's own, so a row never depends on how many
// queries are computed together. Tokens are taken sixteen at a time, the lanes of a vector.
//
// With a float32 cache scores are doubles until the maximum is subtracted: trained models have
// scores of 1e5, of which a float keeps no digit behind the point, and softmax sees differences.
//
// Elements of a quantized cache are widened exactly; their head's scales are applied once a row:
// that of K with the scale of the scores, that of V with the sum of the weights.

inline constexpr int64_t kTokenLanes = 16;

/// Where one head of one sequence lies in the cache.
template <class E>
struct HeadCache {
  const E* k;  // head's part of block 0
  const E* v;
  int64_t block_stride;  // elements from one block to the next
  int64_t block_size;
  int64_t head_dim;
  const int32_t* block_table;

  /// Tokens j..j+15 of K: [head_dim] rows with a stride of block_size. j is a multiple of 16.
  const E* keys(int64_t j) const {
    return k + block_table[j / block_size] * block_stride + j % block_size;
  }
  /// Token j and those after it in its block of V: [][head_dim].
  const E* values(int64_t j) const {
    return v + block_table[j / block_size] * block_stride + j % block_size * head_dim;
  }
};

/// Some queries of one sequence and head; query r sees `first_length + r` tokens.
struct QueryTile {
  const float* q;  // [rows] with a stride of row_stride
  int64_t q_stride;
  float* out;  // [rows] with a stride of out_stride
  int64_t out_stride;
  int64_t rows;
  int64_t first_length;
  float scale;    // of the scores, the quantized K's included
  float v_scale;  // of the quantized V
  float* scores;  // [rows][score_stride]; first as doubles, [rows][score_stride / 2], if wide
  int64_t score_stride;
  double* wide_q;  // [rows][head_dim], for wide scores
};

/// Whether scores are doubles.
template <class E>
inline constexpr bool kWideScores = sizeof(E) == sizeof(float);

/// scores[r][j..j+16 kBlocks) = scale q[r] . K for blocks of sixteen tokens.
template <class V, class E, int kRows, int kBlocks>
[[gnu::always_inline]] inline void score_blocks(const HeadCache<E>& cache, const QueryTile& tile,
                                                int64_t j) {
  const E* keys[kBlocks];
  V acc[kRows][kBlocks];
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) keys[b] = cache.keys(j + b * kTokenLanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) acc[r][b] = V::zero();
  }
  for (int64_t d = 0; d < cache.head_dim; ++d) {
    V k[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) k[b] = V::load(keys[b] + d * cache.block_size);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V q = V::broadcast(tile.q[r * tile.q_stride + d]);
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) acc[r][b] = fma(q, k[b], acc[r][b]);
    }
  }
  const V scale = V::broadcast(tile.scale);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      (acc[r][b] * scale).store(tile.scores + r * tile.score_stride + j + b * kTokenLanes);
    }
  }
}

/// The same in doubles for rows [row, row + kRows): products of floats are exact, sums round at
/// 2^-53.
template <class V, int kRows, int kBlocks>
[[gnu::always_inline]] inline void wide_score_blocks(const HeadCache<float>& cache,
                                                     const QueryTile& tile, int64_t row,
                                                     int64_t j) {
  using Wide = typename V::Wide;
  const float* keys[kBlocks];
  Wide acc[kRows][kBlocks];
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) keys[b] = cache.keys(j + b * kTokenLanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) acc[r][b] = Wide::zero();
  }
  const double* q = tile.wide_q + row * cache.head_dim;
  for (int64_t d = 0; d < cache.head_dim; ++d) {
    Wide k[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) k[b] = Wide::widen(V::load(keys[b] + d * cache.block_size));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Wide query = Wide::broadcast(q[r * cache.head_dim + d]);
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) acc[r][b] = fma(query, k[b], acc[r][b]);
    }
  }
  const Wide scale = Wide::broadcast(static_cast<double>(tile.scale));
  double* scores = reinterpret_cast<double*>(tile.scores) + row * (tile.score_stride / 2) + j;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      (acc[r][b] * scale).store(scores + r * (tile.score_stride / 2) + b * kTokenLanes);
    }
  }
}

/// All wide scores of rows [row, row + kRows).
template <class V, int kRows>
[[gnu::always_inline]] inline void wide_scores(const HeadCache<float>& cache, const QueryTile& tile,
                                               int64_t row, int64_t longest) {
  if constexpr (kRows > V::kWideQueryRows) {
    wide_scores<V, V::kWideQueryRows>(cache, tile, row, longest);
    wide_scores<V, kRows - V::kWideQueryRows>(cache, tile, row + V::kWideQueryRows, longest);
  } else {
    constexpr int kBlocks = kRows == 1 ? V::kTileVecs : 1;
    int64_t j = 0;
    for (; j + (kBlocks - 1) * kTokenLanes < longest; j += kBlocks * kTokenLanes) {
      wide_score_blocks<V, kRows, kBlocks>(cache, tile, row, j);
    }
    for (; j < longest; j += kTokenLanes) wide_score_blocks<V, kRows, 1>(cache, tile, row, j);
  }
}

/// scores[0..length) become e^(score - max); returns their sum. Beyond length nothing is read.
template <class V>
inline float softmax_weights(float* scores, int64_t length) {
  const int64_t whole = length / 16 * 16;
  const int tail = static_cast<int>(length - whole);
  const V lowest = V::broadcast(-__builtin_inff());
  V largest = lowest;
  for (int64_t j = 0; j < whole; j += 16) largest = max(largest, V::load(scores + j));
  if (tail > 0) {
    largest = max(largest, first_lanes(tail, V::load(scores + whole, tail), lowest));
  }
  const V shift = V::broadcast(largest.largest());
  V sum = V::zero();
  for (int64_t j = 0; j < whole; j += 16) {
    const V weight = exponential(V::load(scores + j) - shift);
    weight.store(scores + j);
    sum = sum + weight;
  }
  if (tail > 0) {
    const V weight = exponential(V::load(scores + whole, tail) - shift);
    weight.store(scores + whole, tail);
    sum = sum + first_lanes(tail, weight, V::zero());
  }
  return sum.sum();
}

/// The same for wide scores; weights [length] take the place of the first half of the scores.
template <class V>
inline float wide_softmax_weights(const double* scores, int64_t length, float* weights) {
  using Wide = typename V::Wide;
  const int64_t whole = length / 16 * 16;
  const int tail = static_cast<int>(length - whole);
  Wide lanes = Wide::broadcast(-__builtin_inf());
  for (int64_t j = 0; j < whole; j += 16) lanes = max(lanes, Wide::load(scores + j));
  double parts[16];
  lanes.store(parts);
  double largest = parts[0];
  for (const double part : parts) largest = part > largest ? part : largest;
  for (int64_t j = whole; j < length; ++j) largest = scores[j] > largest ? scores[j] : largest;
  const Wide shift = Wide::broadcast(largest);
  V sum = V::zero();
  for (int64_t j = 0; j < whole; j += 16) {
    const V weight = exponential((Wide::load(scores + j) - shift).narrow());
    weight.store(weights + j);
    sum = sum + weight;
  }
  if (tail > 0) {
    const V weight = exponential((Wide::load(scores + whole) - shift).narrow());
    weight.store(weights + whole, tail);
    sum = sum + first_lanes(tail, weight, V::zero());
  }
  return sum.sum();
}

/// out[r][d..d + 16 kVecs) = sum over tokens of weight * V, divided by sums[r]. The last vector has
/// last_count elements.
template <class V, class E, int kRows, int kVecs, bool kWhole>
[[gnu::always_inline]] inline void weigh_values(const HeadCache<E>& cache, const QueryTile& tile,
                                                const float* sums, int64_t d, int last_count) {
  const auto load = [&](const E* from, int j) __attribute__((always_inline)) {
    return kWhole || j + 1 < kVecs ? V::load(from + j * 16) : V::load(from + j * 16, last_count);
  };
  V acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) acc[r][j] = V::zero();
  }
  // Tokens that all queries of the tile see.
  for (int64_t t = 0; t < tile.first_length; t += kTokenLanes) {
    const E* values = cache.values(t) + d;
    const float* weights = tile.scores + t;
    const int64_t count = min_of(kTokenLanes, tile.first_length - t);
    for (int64_t i = 0; i < count; ++i, values += cache.head_dim, ++weights) {
      V v[kVecs];
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) v[j] = load(values, j);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const V weight = V::broadcast(weights[r * tile.score_stride]);
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) acc[r][j] = fma(weight, v[j], acc[r][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    // Tokens that only the later queries see.
    for (int64_t t = tile.first_length; t < tile.first_length + r; ++t) {
      const E* values = cache.values(t) + d;
      const V weight = V::broadcast(tile.scores[r * tile.score_stride + t]);
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) acc[r][j] = fma(weight, load(values, j), acc[r][j]);
    }
    const V sum = V::broadcast(sums[r]);
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      float* to = tile.out + r * tile.out_stride + d + j * 16;
      if (kWhole || j + 1 < kVecs) {
        (acc[r][j] / sum).store(to);
      } else {
        (acc[r][j] / sum).store(to, last_count);
      }
    }
  }
}

/// weigh_values for elements from d on, in parts of 16 kVecs elements while they fit.
template <class V, class E, int kRows, int kVecs>
[[gnu::always_inline]] inline void weigh_all_values(const HeadCache<E>& cache,
                                                    const QueryTile& tile, const float* sums,
                                                    int64_t d) {
  for (; d + 16 * kVecs <= cache.head_dim; d += 16 * kVecs) {
    weigh_values<V, E, kRows, kVecs, true>(cache, tile, sums, d, 16);
  }
  if constexpr (kVecs > 1) {
    weigh_all_values<V, E, kRows, kVecs / 2>(cache, tile, sums, d);
  } else if (d < cache.head_dim) {
    weigh_values<V, E, kRows, 1, false>(cache, tile, sums, d, static_cast<int>(cache.head_dim - d));
  }
}

template <class V, class E, int kRows>
[[gnu::noinline]] void attend_tile(const HeadCache<E>& cache, const QueryTile& tile) {
  const int64_t longest = tile.first_length + kRows - 1;
  float sums[kRows];
  if constexpr (kWideScores<E>) {
    for (int r = 0; r < kRows; ++r) {
      for (int64_t d = 0; d < cache.head_dim; ++d) {
        tile.wide_q[r * cache.head_dim + d] = static_cast<double>(tile.q[r * tile.q_stride + d]);
      }
    }
    wide_scores<V, kRows>(cache, tile, 0, longest);
    for (int r = 0; r < kRows; ++r) {
      float* scores = tile.scores + r * tile.score_stride;
      sums[r] = wide_softmax_weights<V>(reinterpret_cast<const double*>(scores),
                                        tile.first_length + r, scores);
    }
  } else {
    constexpr int kBlocks = kRows == 1 ? 4 : 2;
    constexpr int kScoreBlocks = kRows * 2 <= V::kQueryRows * V::kTileVecs ? kBlocks : 1;
    int64_t j = 0;
    for (; j + (kScoreBlocks - 1) * kTokenLanes < longest; j += kScoreBlocks * kTokenLanes) {
      score_blocks<V, E, kRows, kScoreBlocks>(cache, tile, j);
    }
    for (; j < longest; j += kTokenLanes) score_blocks<V, E, kRows, 1>(cache, tile, j);
    for (int r = 0; r < kRows; ++r) {
      sums[r] = softmax_weights<V>(tile.scores + r * tile.score_stride, tile.first_length + r);
    }
  }

  if constexpr (kIsQuantized<E>) {
    for (float& sum : sums) sum /= tile.v_scale;
  }
  // One query alone has registers for a whole row of V; several share them.
  weigh_all_values<V, E, kRows, kRows == 1 ? 4 * V::kTileVecs : V::kTileVecs>(cache, tile, sums, 0);
}

template <class V, class E, int kRows = V::kQueryRows>
[[gnu::always_inline]] inline void attend_rows(const HeadCache<E>& cache, const QueryTile& tile) {
  if constexpr (kRows > 1) {
    if (tile.rows < kRows) return attend_rows<V, E, kRows - 1>(cache, tile);
  }
  attend_tile<V, E, kRows>(cache, tile);
}

/// Scratch memory of one thread: wide scores, then wide queries.
static inline int64_t wide_score_bytes(int64_t query_rows, int64_t context_len) {
  return query_rows * align_up(context_len, kTokenLanes) * int64_t{sizeof(double)};
}
static inline int64_t attention_thread_bytes(int64_t query_rows, int64_t context_len,
                                             int64_t head_dim) {
  return wide_score_bytes(query_rows, context_len) +
         align_up(query_rows * head_dim * int64_t{sizeof(double)}, 64);
}

template <class V, class E>
void attention_of(const AttentionParams& p, const CpuContext& context) {
  const KvLayer& c = p.cache;
  const int64_t hidden = c.num_heads * c.head_dim;
  const int64_t head_elements = c.block_size * c.head_dim;
  int64_t num_items = 0;
  int64_t longest = 0;
  int64_t work = 0;
  for (int64_t s = 0; s < p.num_seqs; ++s) {
    const int64_t queries = p.query_start[s + 1] - p.query_start[s];
    num_items += div_up(queries, V::kQueryRows) * c.num_heads;
    longest = max_of(longest, p.context_lens[s]);
    work += queries * p.context_lens[s] * hidden;
  }
  const int64_t score_stride = align_up(longest, kTokenLanes) * (kWideScores<E> ? 2 : 1);
  const int64_t thread_bytes = attention_thread_bytes(V::kQueryRows, longest, c.head_dim);
  check_scratch(thread_bytes * context.num_threads, context);
  const bool parallel = context.num_threads > 1 && work >= 32768;
#pragma omp parallel num_threads(context.num_threads) if (parallel)
  {
    std::byte* scratch = context.scratch + thread_number() * thread_bytes;
    float* scores = reinterpret_cast<float*>(scratch);
    double* wide_q = reinterpret_cast<double*>(scratch + wide_score_bytes(V::kQueryRows, longest));
    // Items are (sequence, head, tile of queries); a thread's items only grow, so the search for
    // the sequence goes on where it was.
    int64_t s = 0;
    int64_t seq_begin = 0;
#pragma omp for schedule(monotonic : dynamic, 1)
    for (int64_t item = 0; item < num_items; ++item) {
      int64_t tiles;
      for (;; ++s) {
        tiles = div_up(p.query_start[s + 1] - p.query_start[s], V::kQueryRows);
        if (item < seq_begin + tiles * c.num_heads) break;
        seq_begin += tiles * c.num_heads;
      }
      const int64_t head = (item - seq_begin) / tiles;
      const int64_t tile_index = (item - seq_begin) % tiles;
      const int64_t first =
          p.query_start[s] + part_begin(p.query_start[s + 1] - p.query_start[s], tiles, tile_index);
      const int64_t last = p.query_start[s] + part_begin(p.query_start[s + 1] - p.query_start[s],
                                                         tiles, tile_index + 1);
      const HeadCache<E> cache{static_cast<const E*>(c.k) + head * head_elements,
                               static_cast<const E*>(c.v) + head * head_elements,
                               c.num_heads * head_elements,
                               c.block_size,
                               c.head_dim,
                               p.block_tables + s * p.max_blocks_per_seq};
      const QueryTile tile{p.qkv + first * 3 * hidden + head * c.head_dim,
                           3 * hidden,
                           p.out + first * hidden + head * c.head_dim,
                           hidden,
                           last - first,
                           p.context_lens[s] - (p.query_start[s + 1] - 1 - first),
                           kIsQuantized<E> ? p.scale * c.k_scale[head] : p.scale,
                           kIsQuantized<E> ? c.v_scale[head] : 1.0f,
                           scores,
                           score_stride,
                           wide_q};
      attend_rows<V, E>(cache, tile);
    }
  }
}

/// Requires: block_size is a multiple of 16.
template <class V>
void attention(const AttentionParams& p, const CpuContext& context) {
  switch (p.cache.dtype) {
    case DType::kF16:
      return attention_of<V, Half>(p, context);
    case DType::kBF16:
      return attention_of<V, BFloat16>(p, context);
    case DType::kI8:
      return attention_of<V, Int8>(p, context);
    case DType::kF8E4M3:
      return attention_of<V, Float8>(p, context);
    default:
      return attention_of<V, float>(p, context);
  }
}

}  // namespace caravan::cpu
