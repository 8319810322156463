#include "kernels/cuda/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/cuda/device_array.h"

namespace caravan::cuda {
namespace {

constexpr int64_t kBlock = 16;

/// Sequences with all their q, k, v, and a cache with shuffled blocks that holds them. Every slot
/// that no token owns is NaN.
struct Problem {
  DType dtype = DType::kF16;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  float scale = 0.0f;
  std::vector<int64_t> lengths;
  std::vector<std::vector<float>> qkv;  // [sequence][length * 3 * hidden], rounded to dtype
  std::vector<std::vector<int32_t>> tables;
  int64_t num_blocks = 0;
  int64_t block_size = kBlock;

  int64_t hidden() const { return num_heads * head_dim; }
  float value(int64_t seq, int64_t token, int part, int64_t head, int64_t d) const {
    return qkv[seq][(token * 3 + part) * hidden() + head * head_dim + d];
  }
};

Problem make_problem(DType dtype, int64_t num_heads, int64_t head_dim,
                     const std::vector<int64_t>& lengths, float q_scale = 2.0f) {
  Problem p;
  p.dtype = dtype;
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
  return p;
}

/// Cache part 1 (K) or 2 (V) with the first `visible[s]` tokens of each sequence.
std::vector<float> make_cache(const Problem& p, int part, const std::vector<int64_t>& visible) {
  std::vector<float> cache(p.num_blocks * kBlock * p.hidden(),
                           std::numeric_limits<float>::quiet_NaN());
  for (size_t s = 0; s < p.lengths.size(); ++s) {
    for (int64_t t = 0; t < std::min(visible[s], p.lengths[s]); ++t) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        const int64_t block = p.tables[s][t / kBlock];
        for (int64_t d = 0; d < p.head_dim; ++d) {
          cache[((block * p.num_heads + h) * kBlock + t % kBlock) * p.head_dim + d] =
              p.value(s, t, part, h, d);
        }
      }
    }
  }
  return cache;
}

struct DeviceCache {
  explicit DeviceCache(const Problem& p)
      : k(make_cache(p, 1, p.lengths), p.dtype), v(make_cache(p, 2, p.lengths), p.dtype) {}
  DeviceArray k;
  DeviceArray v;
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
    args.cache = cache();
    args.scale = problem_.scale;
    args.out = out_.data();
    args.workspace = workspace_.data();
    return args;
  }
  KvCacheArgs cache() const {
    KvCacheArgs cache;
    cache.k = cache_.k.data();
    cache.v = cache_.v.data();
    cache.dtype = problem_.dtype;
    cache.num_blocks = problem_.num_blocks;
    cache.block_size = kBlock;
    cache.num_heads = problem_.num_heads;
    cache.head_dim = problem_.head_dim;
    return cache;
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
    // Copies from pageable memory may still be under way, and the stream is a non-blocking one.
    CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
    launch(kernel, context);
    CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
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
std::vector<double> reference_row(const Problem& p, int64_t seq, int64_t token, int64_t head,
                                  double* max_score) {
  std::vector<double> scores(token + 1);
  double max = -std::numeric_limits<double>::infinity();
  *max_score = 0.0;
  for (int64_t t = 0; t <= token; ++t) {
    double sum = 0.0;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      sum += static_cast<double>(p.value(seq, token, 0, head, d)) * p.value(seq, t, 1, head, d);
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
    for (int64_t d = 0; d < p.head_dim; ++d) out[d] += weight * p.value(seq, t, 2, head, d);
  }
  for (double& v : out) v /= total;
  return out;
}

/// |V| <= 2, so an output is <= 2. The output is rounded to dtype (relative u), the weights are too
/// (each relative u, together <= u max|V|; below 2^-14 float16 rounds by 2^-25 of the partition's
/// largest weight, at most 64 of them: 2^-19); a score s has a float32 error of at most
/// s * (head_dim + 2) 2^-24 which is a relative error of its weight, with random signs far less:
/// s * 2^-20 covers head_dim 256.
double tolerance(DType dtype, double max_score) {
  const double unit = dtype == DType::kF16 ? 0x1p-11 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-20;
  return 2.0 * (2.0 * unit + max_score * 0x1p-20 + 0x1p-19);
}

void expect_near(const Problem& p, const std::vector<Chunk>& chunks, const std::vector<float>& out,
                 int64_t row_step = 1) {
  int64_t row = 0;
  int num_bad = 0;
  double worst = 0.0;
  for (const Chunk& c : chunks) {
    for (int64_t t = c.first; t < c.first + c.count; ++t, ++row) {
      if (row % row_step != 0 && t + 1 != c.first + c.count && t != c.first) continue;
      for (int64_t h = 0; h < p.num_heads; ++h) {
        double max_score = 0.0;
        const std::vector<double> want = reference_row(p, c.seq, t, h, &max_score);
        for (int64_t d = 0; d < p.head_dim; ++d) {
          const double got = out[row * p.hidden() + h * p.head_dim + d];
          const double error = std::abs(got - want[d]);
          worst = std::max(worst, error / tolerance(p.dtype, max_score));
          if (!(error <= tolerance(p.dtype, max_score)) && ++num_bad <= 5) {
            ADD_FAILURE() << "sequence " << c.seq << " token " << t << " head " << h << " column "
                          << d << ": got " << got << ", wanted " << want[d] << ", tolerance "
                          << tolerance(p.dtype, max_score);
          }
        }
      }
    }
  }
  EXPECT_EQ(num_bad, 0) << "of " << out.size() << " outputs";
  ::testing::Test::RecordProperty("worst_share_of_tolerance", std::to_string(worst));
}

/// memcmp with a message.
void expect_same_bits(const Problem& p, const std::vector<std::byte>& a,
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

const std::vector<int64_t> kLengths = {1, 15, 16, 17, 63, 64, 65, 129, 300, 1000};

struct Case {
  DType dtype;
  int64_t head_dim;
};
std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::string(dtype_name(info.param.dtype)) + "_" + std::to_string(info.param.head_dim);
}

class FastAttention : public ::testing::TestWithParam<Case> {
 protected:
  LaunchContext context_ = device_context();
};
INSTANTIATE_TEST_SUITE_P(Shapes, FastAttention,
                         ::testing::Values(Case{DType::kF16, 16}, Case{DType::kF16, 40},
                                           Case{DType::kF16, 64}, Case{DType::kF16, 80},
                                           Case{DType::kF16, 128}, Case{DType::kF16, 256},
                                           Case{DType::kBF16, 64}, Case{DType::kBF16, 128},
                                           Case{DType::kBF16, 200}),
                         case_name);

std::vector<Chunk> whole(const Problem& p) {
  std::vector<Chunk> chunks;
  for (size_t s = 0; s < p.lengths.size(); ++s) {
    chunks.push_back({static_cast<int64_t>(s), 0, p.lengths[s]});
  }
  return chunks;
}
std::vector<Chunk> last_tokens(const Problem& p) {
  std::vector<Chunk> chunks;
  for (size_t s = 0; s < p.lengths.size(); ++s) {
    chunks.push_back({static_cast<int64_t>(s), p.lengths[s] - 1, 1});
  }
  return chunks;
}

TEST_P(FastAttention, PrefillMatchesFloat64) {
  const Problem p = make_problem(GetParam().dtype, 2, GetParam().head_dim, kLengths);
  const DeviceCache cache(p);
  const Batch batch(p, cache, whole(p));
  for (Kernel kernel : {Kernel::kPrefill, Kernel::kPrefillMma}) {
    batch.run(kernel, context_);
    expect_near(p, whole(p), batch.out().floats(p.dtype), 7);
  }
}

TEST_P(FastAttention, MixedChunksMatchFloat64) {
  const Problem p =
      make_problem(GetParam().dtype, 3, GetParam().head_dim, {1, 15, 17, 64, 129, 300, 1000, 500});
  const DeviceCache cache(p);
  const std::vector<Chunk> chunks = {{0, 0, 1},   {1, 14, 1},  {2, 3, 14},    {3, 0, 64},
                                     {4, 60, 69}, {5, 299, 1}, {6, 870, 130}, {7, 1, 499}};
  const Batch batch(p, cache, chunks);
  for (Kernel kernel : {Kernel::kPrefill, Kernel::kPrefillMma}) {
    batch.run(kernel, context_);
    expect_near(p, chunks, batch.out().floats(p.dtype), 5);
  }
}

TEST_P(FastAttention, DecodeMatchesFloat64) {
  const Problem p = make_problem(GetParam().dtype, 3, GetParam().head_dim, kLengths);
  const DeviceCache cache(p);
  const Batch batch(p, cache, last_tokens(p));
  batch.run(Kernel::kDecode, context_);
  expect_near(p, last_tokens(p), batch.out().floats(p.dtype));
}

TEST_P(FastAttention, LargeScores) {
  // Scores up to 40 head_dim^0.5 * 4 / 3: one token takes nearly all the weight.
  const Problem p = make_problem(GetParam().dtype, 2, GetParam().head_dim, {70, 333}, 40.0f);
  const DeviceCache cache(p);
  const Batch batch(p, cache, whole(p));
  batch.run(Kernel::kPrefill, context_);
  expect_near(p, whole(p), batch.out().floats(p.dtype), 3);
}

TEST_P(FastAttention, PrefillInOnePieceInChunksAndDecodeShareTheirBits) {
  const Problem p = make_problem(GetParam().dtype, 2, GetParam().head_dim, {1000});
  const DeviceCache cache(p);
  const std::vector<std::byte> once = Batch(p, cache, whole(p)).run(Kernel::kPrefill, context_);
  expect_same_bits(p, once, Batch(p, cache, whole(p)).run(Kernel::kPrefillMma, context_),
                   "prefill before Hopper");

  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{0, 1, 17, 81, 209, 500, 999, 1000}, std::vector<int64_t>{0, 512, 1000},
        std::vector<int64_t>{0, 100, 127, 128, 192, 1000}}) {
    std::vector<std::byte> pieces;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const std::vector<std::byte> piece =
          Batch(p, cache, {{0, cuts[i], cuts[i + 1] - cuts[i]}}).run(Kernel::kPrefill, context_);
      pieces.insert(pieces.end(), piece.begin(), piece.end());
    }
    expect_same_bits(p, once, pieces, "chunks of " + std::to_string(cuts[1]));
  }
  // Every token as a sequence of its own over the same cache.
  std::vector<Chunk> tokens;
  for (int64_t t = 0; t < p.lengths[0]; ++t) tokens.push_back({0, t, 1});
  const Batch singles(p, cache, tokens);
  expect_same_bits(p, once, singles.run(Kernel::kPrefill, context_), "prefill of single tokens");
  expect_same_bits(p, once, singles.run(Kernel::kPrefillMma, context_),
                   "prefill of single tokens before Hopper");
  expect_same_bits(p, once, singles.run(Kernel::kDecode, context_), "decode");
  expect_same_bits(p, once, singles.run(Kernel::kDecodeSettled, context_), "settled decode");
  expect_same_bits(p, once, singles.run(Kernel::kDecodeWorkspace, context_),
                   "decode through the workspace");
}

TEST_P(FastAttention, DecodeAloneAndInBatchesShareTheirBits) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 64; ++i) lengths.push_back(1 + (i * 37) % 700);
  lengths[5] = 2100;  // many rounds of partitions
  const Problem p = make_problem(GetParam().dtype, 2, GetParam().head_dim, lengths);
  const DeviceCache cache(p);
  const std::vector<Chunk> all = last_tokens(p);
  std::vector<std::byte> alone;
  for (const Chunk& c : all) {
    const std::vector<std::byte> row = Batch(p, cache, {c}).run(Kernel::kDecode, context_);
    alone.insert(alone.end(), row.begin(), row.end());
  }
  for (size_t size : {2, 7, 32, 64}) {
    std::vector<std::byte> batched;
    for (size_t first = 0; first < all.size(); first += size) {
      const std::vector<Chunk> part(all.begin() + first,
                                    all.begin() + std::min(first + size, all.size()));
      const std::vector<std::byte> rows = Batch(p, cache, part).run(Kernel::kDecode, context_);
      batched.insert(batched.end(), rows.begin(), rows.end());
    }
    expect_same_bits(p, alone, batched, "batches of " + std::to_string(size));
  }
}

TEST(Attention, DecodeWithAnySplitSharesItsBits) {
  // The machine's size decides how many blocks share a sequence.
  LaunchContext context = device_context();
  const Problem p = make_problem(DType::kF16, 4, 128, {2500, 700, 64, 1});
  const DeviceCache cache(p);
  const Batch batch(p, cache, last_tokens(p));
  const std::vector<std::byte> want = batch.run(Kernel::kDecode, context);
  for (int num_sms : {1, 4, 8, 132, 1000}) {
    context.num_sms = num_sms;
    expect_same_bits(p, want, batch.run(Kernel::kDecode, context),
                     std::to_string(num_sms) + " SMs");
  }
  expect_near(p, last_tokens(p), batch.out().floats(p.dtype));
}

TEST(Attention, PrefillWithAnyNumberOfTilesABlockSharesItsBits) {
  // On a small machine every block takes many tiles.
  LaunchContext context = device_context();
  for (const int64_t head_dim : {64, 128}) {
    const Problem p = make_problem(DType::kF16, 3, head_dim, {1000, 1, 130, 64, 517, 128});
    const DeviceCache cache(p);
    const Batch batch(p, cache, whole(p));
    context.num_sms = 1000;
    const std::vector<std::byte> want = batch.run(Kernel::kPrefill, context);
    expect_near(p, whole(p), batch.out().floats(p.dtype), 11);
    for (int num_sms : {1, 2, 3, 7, 20}) {
      context.num_sms = num_sms;
      for (Kernel kernel : {Kernel::kPrefill, Kernel::kPrefillSettled}) {
        expect_same_bits(p, want, batch.run(kernel, context), std::to_string(num_sms) + " SMs");
      }
    }
  }
}

TEST(Attention, PaddingSequencesAreZero) {
  const LaunchContext context = device_context();
  const Problem p = make_problem(DType::kBF16, 2, 80, {100, 7, 90});
  const DeviceCache cache(p);
  const Batch batch(p, cache, {{0, 99, 1}, {1, 3, 1}, {2, 89, 1}});
  const std::vector<int32_t> lens = {100, 0, 90};
  CARAVAN_CUDA_CHECK(
      cudaMemcpy(batch.context_lens().data(), lens.data(), 12, cudaMemcpyHostToDevice));
  for (Kernel kernel : {Kernel::kDecode, Kernel::kDecodeWorkspace, Kernel::kPrefill,
                        Kernel::kPrefillMma, Kernel::kSimple}) {
    CARAVAN_CUDA_CHECK(cudaMemset(batch.out().data(), 0xFF, batch.out().num_bytes()));
    batch.run(kernel, context);
    const std::vector<float> out = batch.out().floats(p.dtype);
    for (int64_t i = 0; i < p.hidden(); ++i) {
      EXPECT_EQ(out[p.hidden() + i], 0.0f) << static_cast<int>(kernel) << " column " << i;
      EXPECT_TRUE(std::isfinite(out[i]) && std::isfinite(out[2 * p.hidden() + i]));
    }
  }
}

TEST(Attention, CapturedDecodeFollowsItsContextLens) {
  LaunchContext context = device_context();
  const Problem p = make_problem(DType::kF16, 4, 128, {1200, 1200, 1200});
  const DeviceCache cache(p);
  const Batch batch(p, cache, last_tokens(p));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
  // One after the other, so that they overlap as far as PDL lets them.
  batch.launch(Kernel::kDecode, context);
  for (int i = 0; i < 3; ++i) batch.launch(Kernel::kDecodeSettled, context);
  CARAVAN_CUDA_CHECK(cudaStreamEndCapture(context.stream, &graph));
  CARAVAN_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (const std::vector<int32_t>& lens :
       {std::vector<int32_t>{1200, 1, 64}, std::vector<int32_t>{65, 1199, 512},
        std::vector<int32_t>{3, 700, 128}}) {
    CARAVAN_CUDA_CHECK(
        cudaMemcpy(batch.context_lens().data(), lens.data(), 12, cudaMemcpyHostToDevice));
    CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
    CARAVAN_CUDA_CHECK(cudaGraphLaunch(exec, context.stream));
    CARAVAN_CUDA_CHECK(cudaStreamSynchronize(context.stream));
    const std::vector<std::byte> replayed = batch.out().host<std::byte>();
    std::vector<Chunk> rows;
    std::vector<std::byte> want;
    for (int64_t s = 0; s < 3; ++s) {
      // The query is always that of the last token: build it by decoding with simple arguments.
      Problem one = p;
      for (int64_t i = 0; i < p.hidden(); ++i) {
        one.qkv[s][(lens[s] - 1) * 3 * p.hidden() + i] =
            p.qkv[s][(p.lengths[s] - 1) * 3 * p.hidden() + i];
      }
      const Batch alone(one, cache, {{s, lens[s] - 1, 1}});
      const std::vector<std::byte> row = alone.run(Kernel::kDecode, context);
      want.insert(want.end(), row.begin(), row.end());
    }
    expect_same_bits(p, want, replayed, "context of " + std::to_string(lens[0]));
  }
  CARAVAN_CUDA_CHECK(cudaGraphExecDestroy(exec));
  CARAVAN_CUDA_CHECK(cudaGraphDestroy(graph));
}

TEST(Attention, FusedAppendWritesTheCacheAndGivesTheSameOutput) {
  const LaunchContext context = device_context();
  for (const int64_t head_dim : {40, 128, 256}) {
    const Problem p = make_problem(DType::kBF16, 2, head_dim, {1, 64, 65, 777});
    const DeviceCache cache(p);
    const std::vector<Chunk> chunks = last_tokens(p);
    const Batch appended(p, cache, chunks);
    const std::vector<std::byte> want = appended.run(Kernel::kDecode, context);
    std::vector<int64_t> before = p.lengths;
    std::vector<int64_t> slots;
    for (size_t s = 0; s < p.lengths.size(); ++s) {
      --before[s];
      slots.push_back(p.tables[s][before[s] / kBlock] * kBlock + before[s] % kBlock);
    }
    const DeviceArray k(make_cache(p, 1, before), p.dtype);
    const DeviceArray v(make_cache(p, 2, before), p.dtype);
    const DeviceArray slot_mapping(slots);
    for (int variant = 0; variant < 3; ++variant) {
      LaunchContext c = context;
      if (variant == 2) c.compute_capability = 80;
      AttentionArgs args = appended.args();
      args.is_context_settled = variant == 1;
      args.cache.k = k.data();
      args.cache.v = v.data();
      args.slot_mapping = slot_mapping.as<int64_t>();
      CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
      launch_attention_decode(args, c);
      CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
      expect_same_bits(p, want, appended.out().host<std::byte>(), "fused append");
      // Compared as values: NaN is whichever NaN the conversion makes.
      const std::vector<float> k_want = make_cache(p, 1, p.lengths);
      const std::vector<float> v_want = make_cache(p, 2, p.lengths);
      const std::vector<float> k_got = k.floats(p.dtype);
      const std::vector<float> v_got = v.floats(p.dtype);
      int64_t num_different = 0;
      for (size_t i = 0; i < k_want.size(); ++i) {
        const auto differs = [](float a, float b) {
          return std::isnan(a) ? !std::isnan(b) : a != b;
        };
        num_different += differs(k_want[i], k_got[i]) + differs(v_want[i], v_got[i]);
      }
      EXPECT_EQ(num_different, 0) << "head_dim " << head_dim;
    }
  }
}

TEST(Attention, RefusesWhatItCannotDo) {
  const LaunchContext context = device_context();
  EXPECT_TRUE(has_fast_attention(DType::kBF16, 8));
  EXPECT_TRUE(has_fast_attention(DType::kF16, 256));
  EXPECT_FALSE(has_fast_attention(DType::kF32, 128));
  EXPECT_FALSE(has_fast_attention(DType::kF16, 100));
  EXPECT_FALSE(has_fast_attention(DType::kF16, 264));
  const Problem p = make_problem(DType::kF16, 1, 12, {5});
  const DeviceCache cache(p);
  const Batch batch(p, cache, last_tokens(p));
  EXPECT_ANY_THROW(launch_attention_decode(batch.args(), context));
  EXPECT_ANY_THROW(launch_attention_prefill(batch.args(), nullptr, 1, context));
}

class SimpleAttention : public ::testing::TestWithParam<Case> {
 protected:
  LaunchContext context_ = device_context();
};
INSTANTIATE_TEST_SUITE_P(Shapes, SimpleAttention,
                         ::testing::Values(Case{DType::kF32, 1}, Case{DType::kF32, 13},
                                           Case{DType::kF32, 64}, Case{DType::kF32, 300},
                                           Case{DType::kF16, 33}, Case{DType::kBF16, 128}),
                         case_name);

TEST_P(SimpleAttention, MatchesFloat64) {
  const Problem p = make_problem(GetParam().dtype, 2, GetParam().head_dim, {1, 31, 32, 33, 200});
  const DeviceCache cache(p);
  const std::vector<Chunk> chunks = {{0, 0, 1}, {1, 30, 1}, {2, 0, 32}, {3, 7, 26}, {4, 100, 100}};
  const Batch batch(p, cache, chunks);
  batch.run(Kernel::kSimple, context_);
  expect_near(p, chunks, batch.out().floats(p.dtype));
}

TEST_P(SimpleAttention, ChunksAndBatchesShareTheirBits) {
  const Problem p = make_problem(GetParam().dtype, 2, GetParam().head_dim, {150});
  const DeviceCache cache(p);
  const std::vector<std::byte> once = Batch(p, cache, whole(p)).run(Kernel::kSimple, context_);
  std::vector<Chunk> tokens;
  for (int64_t t = 0; t < p.lengths[0]; ++t) tokens.push_back({0, t, 1});
  expect_same_bits(p, once, Batch(p, cache, tokens).run(Kernel::kSimple, context_),
                   "single tokens");
}

TEST(Attention, SimpleKeepsHugeScoresApart) {
  // Scores near 1e5 that differ by less than float32 rounding of the sums: float64 sees it.
  Problem p = make_problem(DType::kF32, 1, 16, {40});
  p.scale = 1.0f;
  for (int64_t t = 0; t < 40; ++t) {
    for (int64_t d = 0; d < 16; ++d) {
      p.qkv[0][t * 48 + d] = d == 0 ? 1024.0f : 1.0f;
      p.qkv[0][t * 48 + 16 + d] = d == 0 ? 98.0f : static_cast<float>((t * 7 + d) % 5) * 0.001f;
    }
  }
  const DeviceCache cache(p);
  const std::vector<Chunk> chunks = whole(p);
  const Batch batch(p, cache, chunks);
  batch.run(Kernel::kSimple, device_context());
  const std::vector<float> out = batch.out().floats(p.dtype);
  for (int64_t t = 0; t < 40; ++t) {
    double max_score = 0.0;
    const std::vector<double> want = reference_row(p, 0, t, 0, &max_score);
    for (int64_t d = 0; d < 16; ++d) EXPECT_NEAR(out[t * 16 + d], want[d], 4e-6) << t << " " << d;
  }
}

class AppendKv : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, AppendKv,
                         ::testing::Values(Case{DType::kF16, 128}, Case{DType::kBF16, 40},
                                           Case{DType::kF16, 13}, Case{DType::kF32, 12},
                                           Case{DType::kF32, 7}),
                         case_name);

TEST_P(AppendKv, WritesSlotsAndNothingElse) {
  const LaunchContext context = device_context();
  const Problem p = make_problem(GetParam().dtype, 3, GetParam().head_dim, {33});
  std::vector<int64_t> slots;
  for (int64_t t = 0; t < 33; ++t) {
    slots.push_back(p.tables[0][t / kBlock] * kBlock + t % kBlock);
  }
  // Row 33 is padding.
  std::vector<float> rows = p.qkv[0];
  rows.resize(rows.size() + 3 * p.hidden(), 5.0f);
  slots.push_back(-1);
  const std::vector<float> empty(p.num_blocks * kBlock * p.hidden(),
                                 std::numeric_limits<float>::quiet_NaN());
  const DeviceArray qkv(rows, p.dtype);
  const DeviceArray k(empty, p.dtype);
  const DeviceArray v(empty, p.dtype);
  const DeviceArray slot_mapping(slots);
  AppendKvArgs args;
  args.num_tokens = 34;
  args.qkv = qkv.data();
  args.slot_mapping = slot_mapping.as<int64_t>();
  args.cache = {k.data(), v.data(), p.dtype, p.num_blocks, kBlock, p.num_heads, p.head_dim};
  CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
  launch_append_kv(args, context);
  const DeviceArray k_want(make_cache(p, 1, p.lengths), p.dtype);
  const DeviceArray v_want(make_cache(p, 2, p.lengths), p.dtype);
  EXPECT_EQ(k.host<std::byte>(), k_want.host<std::byte>());
  EXPECT_EQ(v.host<std::byte>(), v_want.host<std::byte>());
}

}  // namespace
}  // namespace caravan::cuda
