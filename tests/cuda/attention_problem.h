#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attention.h"
#include "tests/cuda/device_array.h"

// Attention over paged caches: problems, steps on the device and the answers in float64.

namespace caravan::cuda {

inline constexpr int64_t kBlock = 16;

/// The element that stands for `value` in a quantized cache.
inline float quantized_element(DType cache, float value, float scale) {
  const float x = value * (1.0f / scale);
  if (cache == DType::kF8E4M3) return f8e4m3_to_f32(f32_to_f8e4m3(x));
  return std::isnan(x) ? -127.0f : std::nearbyint(std::clamp(x, -127.0f, 127.0f));
}
inline std::byte element_bits(DType cache, float element) {
  return cache == DType::kF8E4M3 ? static_cast<std::byte>(f32_to_f8e4m3(element))
                                 : static_cast<std::byte>(static_cast<int8_t>(element));
}
inline bool is_quantized(DType cache) { return cache == DType::kI8 || cache == DType::kF8E4M3; }

/// Sequences with all their q, k, v, and a cache with shuffled blocks that holds them. Every slot
/// that no token owns is NaN, or -128, which is no element either.
struct Problem {
  DType dtype = DType::kF16;
  DType cache_dtype = DType::kF16;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  float scale = 0.0f;
  std::vector<int64_t> lengths;
  std::vector<std::vector<float>> qkv;  // [sequence][length * 3 * hidden], rounded to dtype
  std::vector<std::vector<int32_t>> tables;
  int64_t num_blocks = 0;
  int64_t block_size = kBlock;
  std::vector<std::vector<float>> elements;  // as qkv, of a quantized cache
  std::vector<float> k_scales;               // [num_heads], of a quantized cache
  std::vector<float> v_scales;

  int64_t hidden() const { return num_heads * head_dim; }
  float value(int64_t seq, int64_t token, int part, int64_t head, int64_t d) const {
    return qkv[seq][(token * 3 + part) * hidden() + head * head_dim + d];
  }
  /// What the cache says that K (part 1) or V (2) is.
  double cached(int64_t seq, int64_t token, int part, int64_t head, int64_t d) const {
    if (!is_quantized(cache_dtype)) return value(seq, token, part, head, d);
    const double unit = (part == 1 ? k_scales : v_scales)[head];
    return elements[seq][(token * 3 + part) * hidden() + head * head_dim + d] * unit;
  }
  double max_v() const {
    if (!is_quantized(cache_dtype)) return 2.0;
    return *std::max_element(v_scales.begin(), v_scales.end()) *
           (cache_dtype == DType::kI8 ? 127.0 : 448.0);
  }
};

/// Quantizes K and V with the problem's scales.
inline void quantize(Problem& p) {
  p.elements.clear();
  for (size_t s = 0; s < p.qkv.size(); ++s) {
    p.elements.push_back(p.qkv[s]);
    for (size_t i = 0; i < p.qkv[s].size(); ++i) {
      const auto part = static_cast<int64_t>(i) / p.hidden() % 3;
      const auto head = static_cast<int64_t>(i) % p.hidden() / p.head_dim;
      if (part == 0) continue;
      p.elements[s][i] = quantized_element(p.cache_dtype, p.qkv[s][i],
                                           (part == 1 ? p.k_scales : p.v_scales)[head]);
    }
  }
}

/// cache: dtype or a quantized one, whose scales differ by head and cut off the largest values of
/// the first.
inline Problem make_problem(DType dtype, int64_t num_heads, int64_t head_dim,
                            const std::vector<int64_t>& lengths, DType cache,
                            float q_scale = 2.0f) {
  Problem p;
  p.dtype = dtype;
  p.cache_dtype = cache;
  p.num_heads = num_heads;
  p.head_dim = head_dim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  p.lengths = lengths;
  for (size_t s = 0; s < lengths.size(); ++s) {
    std::vector<float> values =
        random_floats(lengths[s] * 3 * p.hidden(), static_cast<uint32_t>(17 * s + head_dim), 2.0f);
    for (int64_t t = 0; t < lengths[s]; ++t) {
      for (int64_t i = 0; i < p.hidden(); ++i) values[t * 3 * p.hidden() + i] *= q_scale / 2.0f;
    }
    p.qkv.push_back(rounded(values, dtype));
    p.num_blocks += (lengths[s] + kBlock - 1) / kBlock;
  }
  p.num_blocks += 3;
  std::vector<int32_t> order(p.num_blocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(7));
  size_t next = 0;
  for (int64_t length : lengths) {
    p.tables.emplace_back();
    for (int64_t b = 0; b < (length + kBlock - 1) / kBlock; ++b) {
      p.tables.back().push_back(order[next++]);
    }
  }
  if (is_quantized(cache)) {
    const float max = cache == DType::kI8 ? 127.0f : 448.0f;
    for (int64_t h = 0; h < num_heads; ++h) {
      p.k_scales.push_back((1.7f + 0.3f * static_cast<float>(h)) / max);
      p.v_scales.push_back((1.8f + 0.2f * static_cast<float>(h)) / max);
    }
    quantize(p);
  }
  return p;
}

/// Dimension d of K lies at the byte that ldmatrix hands to the thread that wants it.
inline int64_t cache_column(const Problem& p, int part, int64_t d) {
  if (!is_quantized(p.cache_dtype) || part == 2 || p.head_dim % 16 != 0) return d;
  const int64_t i = d % 16;
  return d - i + i % 8 / 2 * 4 + i / 8 * 2 + i % 2;
}

/// Cache part 1 (K) or 2 (V) with the first `visible[s]` tokens of each sequence.
inline std::vector<std::byte> make_cache(const Problem& p, int part,
                                         const std::vector<int64_t>& visible) {
  const size_t size = dtype_size(p.cache_dtype);
  std::vector<std::byte> cache(p.num_blocks * kBlock * p.hidden() * size,
                               p.cache_dtype == DType::kI8 ? std::byte{0x80} : std::byte{0xFF});
  for (size_t s = 0; s < p.lengths.size(); ++s) {
    for (int64_t t = 0; t < std::min(visible[s], p.lengths[s]); ++t) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        const int64_t block = p.tables[s][t / kBlock];
        const int64_t row = ((block * p.num_heads + h) * kBlock + t % kBlock) * p.head_dim;
        for (int64_t d = 0; d < p.head_dim; ++d) {
          const int64_t index = row + cache_column(p, part, d);
          if (is_quantized(p.cache_dtype)) {
            cache[index] = element_bits(
                p.cache_dtype, p.elements[s][(t * 3 + part) * p.hidden() + h * p.head_dim + d]);
          } else {
            const float value = p.value(s, t, part, h, d);
            convert_elements(&value, DType::kF32, cache.data() + index * size, p.dtype, 1);
          }
        }
      }
    }
  }
  return cache;
}

struct DeviceCache {
  explicit DeviceCache(const Problem& p)
      : k(make_cache(p, 1, p.lengths)),
        v(make_cache(p, 2, p.lengths)),
        k_scales(p.k_scales),
        v_scales(p.v_scales) {}
  KvCacheArgs args(const Problem& p) const {
    return {.k = k.data(),
            .v = v.data(),
            .dtype = p.cache_dtype,
            .num_blocks = p.num_blocks,
            .block_size = kBlock,
            .num_heads = p.num_heads,
            .head_dim = p.head_dim,
            .k_scale = k_scales.as<float>(),
            .v_scale = v_scales.as<float>()};
  }
  DeviceArray k;
  DeviceArray v;
  DeviceArray k_scales;
  DeviceArray v_scales;
};

/// A chunk of a sequence: queries [first, first + count).
struct Chunk {
  int64_t seq = 0;
  int64_t first = 0;
  int64_t count = 0;
};

// kDecodeWorkspace and kPrefillMma: what runs before Hopper.
enum class Kernel {
  kDecode,
  kDecodeSettled,
  kDecodeWorkspace,
  kPrefill,
  kPrefillSettled,
  kPrefillMma,
  kSimple
};

/// The batch of a step on the device.
class Batch {
 public:
  Batch(const Problem& p, const DeviceCache& cache, const std::vector<Chunk>& chunks)
      : problem_(p),
        cache_(cache),
        chunks_(chunks),
        num_tokens_(count_tokens(chunks)),
        qkv_(gather_qkv(p, chunks), p.dtype),
        query_start_(make_query_start(chunks)),
        context_lens_(make_context_lens(chunks)),
        tables_(make_tables(p, chunks)),
        tiles_(make_tiles(chunks)),
        out_(std::max<int64_t>(1, num_tokens_ * p.hidden()) * dtype_size(p.dtype)),
        workspace_(attention_workspace_bytes(chunks.size(), p.num_heads, p.head_dim, longest(p))) {}

  AttentionArgs args() const {
    AttentionArgs args;
    args.num_tokens = num_tokens_;
    args.num_seqs = static_cast<int64_t>(chunks_.size());
    args.qkv = qkv_.data();
    args.query_start = query_start_.as<int32_t>();
    args.context_lens = context_lens_.as<int32_t>();
    args.block_tables = tables_.as<int32_t>();
    args.max_blocks_per_seq = table_stride(problem_);
    args.max_context_len = longest(problem_);
    args.dtype = problem_.dtype;
    args.cache = cache_.args(problem_);
    args.scale = problem_.scale;
    args.out = out_.data();
    args.workspace = workspace_.data();
    return args;
  }
  void launch(Kernel kernel, LaunchContext context) const {
    switch (kernel) {
      case Kernel::kDecode:
        launch_attention_decode(args(), context);
        break;
      case Kernel::kDecodeSettled: {
        AttentionArgs settled = args();
        settled.is_context_settled = true;
        launch_attention_decode(settled, context);
        break;
      }
      case Kernel::kDecodeWorkspace:
        context.compute_capability = 80;
        launch_attention_decode(args(), context);
        break;
      case Kernel::kPrefillSettled: {
        AttentionArgs settled = args();
        settled.is_context_settled = true;
        launch_attention_prefill(settled, tiles_.as<int32_t>(), num_tiles_, context);
        break;
      }
      case Kernel::kPrefillMma:
        context.compute_capability = 80;
        launch_attention_prefill(args(), tiles_.as<int32_t>(), num_tiles_, context);
        break;
      case Kernel::kPrefill:
        launch_attention_prefill(args(), tiles_.as<int32_t>(), num_tiles_, context);
        break;
      case Kernel::kSimple:
        launch_attention_simple(args(), context);
        break;
    }
  }
  std::vector<std::byte> run(Kernel kernel, const LaunchContext& context) const {
    launch(kernel, context);
    return out_.host<std::byte>();
  }
  const DeviceArray& out() const { return out_; }
  const DeviceArray& context_lens() const { return context_lens_; }

 private:
  static int64_t longest(const Problem& p) {
    return *std::max_element(p.lengths.begin(), p.lengths.end());
  }
  // Not a multiple of anything.
  static int64_t table_stride(const Problem& p) { return (longest(p) + kBlock - 1) / kBlock + 3; }
  static int64_t count_tokens(const std::vector<Chunk>& chunks) {
    int64_t n = 0;
    for (const Chunk& c : chunks) n += c.count;
    return n;
  }
  static std::vector<float> gather_qkv(const Problem& p, const std::vector<Chunk>& chunks) {
    std::vector<float> rows;
    for (const Chunk& c : chunks) {
      const auto begin = p.qkv[c.seq].begin() + c.first * 3 * p.hidden();
      rows.insert(rows.end(), begin, begin + c.count * 3 * p.hidden());
    }
    return rows;
  }
  static std::vector<int32_t> make_query_start(const std::vector<Chunk>& chunks) {
    std::vector<int32_t> start{0};
    for (const Chunk& c : chunks) start.push_back(start.back() + static_cast<int32_t>(c.count));
    return start;
  }
  static std::vector<int32_t> make_context_lens(const std::vector<Chunk>& chunks) {
    std::vector<int32_t> lens;
    for (const Chunk& c : chunks) lens.push_back(static_cast<int32_t>(c.first + c.count));
    return lens;
  }
  static std::vector<int32_t> make_tables(const Problem& p, const std::vector<Chunk>& chunks) {
    // What no token owns points nowhere.
    std::vector<int32_t> tables(chunks.size() * table_stride(p), 1 << 30);
    for (size_t s = 0; s < chunks.size(); ++s) {
      std::copy(p.tables[chunks[s].seq].begin(), p.tables[chunks[s].seq].end(),
                tables.begin() + s * table_stride(p));
    }
    return tables;
  }
  std::vector<int32_t> make_tiles(const std::vector<Chunk>& chunks) {
    std::vector<int32_t> tiles;
    for (size_t s = 0; s < chunks.size(); ++s) {
      for (int64_t first = 0; first < chunks[s].count; first += kQueryTile) {
        tiles.push_back(static_cast<int32_t>(s));
        tiles.push_back(static_cast<int32_t>(first));
      }
    }
    num_tiles_ = static_cast<int64_t>(tiles.size()) / 2;
    return tiles;
  }

  const Problem& problem_;
  const DeviceCache& cache_;
  std::vector<Chunk> chunks_;
  int64_t num_tokens_ = 0;
  DeviceArray qkv_;
  DeviceArray query_start_;
  DeviceArray context_lens_;
  DeviceArray tables_;
  int64_t num_tiles_ = 0;
  DeviceArray tiles_;
  DeviceArray out_;
  DeviceArray workspace_;
};

/// One output row of one head in float64; max_score: the largest |score| that it saw.
inline std::vector<double> reference_row(const Problem& p, int64_t seq, int64_t token, int64_t head,
                                         double* max_score) {
  std::vector<double> scores(token + 1);
  double max = -std::numeric_limits<double>::infinity();
  *max_score = 0.0;
  for (int64_t t = 0; t <= token; ++t) {
    double sum = 0.0;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      sum += static_cast<double>(p.value(seq, token, 0, head, d)) * p.cached(seq, t, 1, head, d);
    }
    scores[t] = sum * p.scale;
    max = std::max(max, scores[t]);
    *max_score = std::max(*max_score, std::abs(scores[t]));
  }
  double total = 0.0;
  std::vector<double> out(p.head_dim);
  for (int64_t t = 0; t <= token; ++t) {
    const double weight = std::exp(scores[t] - max);
    total += weight;
    for (int64_t d = 0; d < p.head_dim; ++d) out[d] += weight * p.cached(seq, t, 2, head, d);
  }
  for (double& v : out) v /= total;
  return out;
}

/// An output is at most max |V|. The output is rounded to dtype (relative u), the weights are too
/// (each relative u, together <= u max|V|; below 2^-14 float16 rounds by 2^-25 of the partition's
/// largest weight, at most 64 of them: 2^-19); a score s has a float32 error of at most
/// s * (head_dim + 2) 2^-24 which is a relative error of its weight, with random signs far less:
/// s * 2^-20 covers head_dim 256. A quantized cache is compared with what it holds: its scales add
/// two roundings to float32 to the scores and one to the output.
inline double tolerance(const Problem& p, double max_score) {
  const DType dtype = p.dtype;
  const double unit = dtype == DType::kF16 ? 0x1p-11 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-20;
  return p.max_v() * (2.0 * unit + max_score * 0x1p-20 + 0x1p-19);
}

inline void expect_near(const Problem& p, const std::vector<Chunk>& chunks,
                        const std::vector<float>& out, int64_t row_step = 1) {
  struct Row {
    int64_t row, seq, token, head;
    int64_t worst_column = 0;
    double got = 0.0, want = 0.0, bound = 0.0, share = 0.0;
  };
  std::vector<Row> rows;
  int64_t row = 0;
  for (const Chunk& c : chunks) {
    for (int64_t t = c.first; t < c.first + c.count; ++t, ++row) {
      if (row % row_step != 0 && t + 1 != c.first + c.count && t != c.first) continue;
      for (int64_t h = 0; h < p.num_heads; ++h) rows.push_back({row, c.seq, t, h});
    }
  }
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < rows.size(); ++i) {
    Row& r = rows[i];
    double max_score = 0.0;
    const std::vector<double> want = reference_row(p, r.seq, r.token, r.head, &max_score);
    r.bound = tolerance(p, max_score);
    for (int64_t d = 0; d < p.head_dim; ++d) {
      const double got = out[r.row * p.hidden() + r.head * p.head_dim + d];
      // NaN is as bad as can be.
      const double share = std::isnan(got) ? std::numeric_limits<double>::infinity()
                                           : std::abs(got - want[d]) / r.bound;
      if (d > 0 && share <= r.share) continue;
      r.worst_column = d;
      r.got = got;
      r.want = want[d];
      r.share = share;
    }
  }
  int num_bad = 0;
  double worst = 0.0;
  for (const Row& r : rows) {
    worst = std::max(worst, r.share);
    if (r.share <= 1.0 || ++num_bad > 5) continue;
    ADD_FAILURE() << "sequence " << r.seq << " token " << r.token << " head " << r.head
                  << " column " << r.worst_column << ": got " << r.got << ", wanted " << r.want
                  << ", tolerance " << r.bound;
  }
  EXPECT_EQ(num_bad, 0) << "of " << rows.size() << " rows of a head";
  ::testing::Test::RecordProperty("worst_share_of_tolerance", std::to_string(worst));
}

/// memcmp with a message.
inline void expect_same_bits(const Problem& p, const std::vector<std::byte>& a,
                             const std::vector<std::byte>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  const int64_t size = static_cast<int64_t>(dtype_size(p.dtype));
  int64_t num_different = 0;
  int64_t first = -1;
  for (int64_t i = 0; i < static_cast<int64_t>(a.size()) / size; ++i) {
    if (std::memcmp(a.data() + i * size, b.data() + i * size, size) != 0) {
      if (first < 0) first = i;
      ++num_different;
    }
  }
  if (num_different == 0) return;
  ADD_FAILURE() << what << ": " << num_different << " of " << a.size() / size
                << " elements differ, the first at row " << first / p.hidden() << " column "
                << first % p.hidden() << ": " << load_as_f32(a.data(), p.dtype, first) << " and "
                << load_as_f32(b.data(), p.dtype, first);
}

inline std::vector<Chunk> whole(const Problem& p) {
  std::vector<Chunk> chunks;
  for (size_t s = 0; s < p.lengths.size(); ++s) {
    chunks.push_back({static_cast<int64_t>(s), 0, p.lengths[s]});
  }
  return chunks;
}
inline std::vector<Chunk> last_tokens(const Problem& p) {
  std::vector<Chunk> chunks;
  for (size_t s = 0; s < p.lengths.size(); ++s) {
    chunks.push_back({static_cast<int64_t>(s), p.lengths[s] - 1, 1});
  }
  return chunks;
}

struct Case {
  DType dtype;
  int64_t head_dim;
  DType cache = dtype;
};
inline std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::string(dtype_name(info.param.dtype)) + "_" + std::to_string(info.param.head_dim) +
         (info.param.cache == info.param.dtype ? ""
                                               : std::string("_") + dtype_name(info.param.cache));
}

}  // namespace caravan::cuda
