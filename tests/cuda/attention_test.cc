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

#include "tests/cuda/attention_problem.h"

namespace caravan::cuda {
namespace {

const std::vector<int64_t> kLengths = {1, 15, 16, 17, 63, 64, 65, 129, 300, 1000};

class FastAttention : public ::testing::TestWithParam<Case> {
 protected:
  static Problem problem(int64_t num_heads, const std::vector<int64_t>& lengths,
                         float q_scale = 2.0f) {
    return make_problem(GetParam().dtype, num_heads, GetParam().head_dim, lengths, GetParam().cache,
                        q_scale);
  }
  LaunchContext context_ = device_context();
};
INSTANTIATE_TEST_SUITE_P(Shapes, FastAttention,
                         ::testing::Values(Case{DType::kF16, 16}, Case{DType::kF16, 40},
                                           Case{DType::kF16, 64}, Case{DType::kF16, 80},
                                           Case{DType::kF16, 128}, Case{DType::kF16, 256},
                                           Case{DType::kBF16, 64}, Case{DType::kBF16, 128},
                                           Case{DType::kBF16, 200}),
                         case_name);
INSTANTIATE_TEST_SUITE_P(
    Quantized, FastAttention,
    ::testing::Values(
        Case{DType::kF16, 64, DType::kI8}, Case{DType::kF16, 80, DType::kI8},
        Case{DType::kF16, 128, DType::kI8}, Case{DType::kF16, 256, DType::kI8},
        Case{DType::kBF16, 16, DType::kI8}, Case{DType::kBF16, 64, DType::kI8},
        Case{DType::kBF16, 128, DType::kI8}, Case{DType::kBF16, 240, DType::kI8},
        Case{DType::kF16, 48, DType::kF8E4M3}, Case{DType::kF16, 64, DType::kF8E4M3},
        Case{DType::kF16, 128, DType::kF8E4M3}, Case{DType::kF16, 256, DType::kF8E4M3},
        Case{DType::kBF16, 64, DType::kF8E4M3}, Case{DType::kBF16, 112, DType::kF8E4M3},
        Case{DType::kBF16, 128, DType::kF8E4M3}, Case{DType::kBF16, 256, DType::kF8E4M3}),
    case_name);

TEST_P(FastAttention, PrefillMatchesFloat64) {
  const Problem p = problem(2, kLengths);
  const DeviceCache cache(p);
  const Batch batch(p, cache, whole(p));
  for (Kernel kernel : {Kernel::kPrefill, Kernel::kPrefillMma}) {
    batch.run(kernel, context_);
    expect_near(p, whole(p), batch.out().floats(p.dtype), 7);
  }
}

// The weight of a token that a row does not see is 0, and 0 * NaN is NaN.
TEST_P(FastAttention, VThatIsNotFiniteReachesNoEarlierRow) {
  const Problem clean = problem(2, {100, 300});
  const int64_t poisoned_token = 70;  // of sequence 1, in the middle of a partition
  const DeviceCache clean_cache(clean);
  const Batch clean_batch(clean, clean_cache, whole(clean));
  std::vector<int64_t> slots;
  for (size_t s = 0; s < clean.lengths.size(); ++s) {
    for (int64_t t = 0; t < clean.lengths[s]; ++t) {
      slots.push_back(clean.tables[s][t / kBlock] * kBlock + t % kBlock);
    }
  }
  const DeviceArray slot_mapping(slots);
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    Problem p = clean;
    for (const int64_t d : {int64_t{3}, p.head_dim - 1}) {
      p.qkv[1][(poisoned_token * 3 + 2) * p.hidden() + p.head_dim + d] = value;
    }
    const DeviceCache cache(clean);
    fill_device(cache.k.data(), 0xFF, cache.k.num_bytes());
    fill_device(cache.v.data(), 0xFF, cache.v.num_bytes());
    const Batch batch(p, cache, whole(p));
    const AttentionArgs args = batch.args();
    launch_append_kv({.num_tokens = args.num_tokens,
                      .qkv = args.qkv,
                      .dtype = args.dtype,
                      .slot_mapping = slot_mapping.as<int64_t>(),
                      .cache = args.cache},
                     context_);
    CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
    // int8 has no NaN and both clamp Inf; bfloat16 kernels read e4m3's NaN as a number.
    const bool stays_non_finite =
        !is_quantized(p.cache_dtype) ||
        (std::isnan(value) && p.cache_dtype == DType::kF8E4M3 && p.dtype == DType::kF16);
    for (Kernel kernel :
         {Kernel::kPrefill, Kernel::kPrefillSettled, Kernel::kPrefillMma, Kernel::kSimple}) {
      const std::vector<std::byte> want = clean_batch.run(kernel, context_);
      const std::vector<std::byte> got = batch.run(kernel, context_);
      const std::vector<float> floats = batch.out().floats(p.dtype);
      const size_t half_row = p.head_dim * dtype_size(p.dtype);
      for (int64_t row = 0; row < args.num_tokens; ++row) {
        const bool sees = row >= p.lengths[0] + poisoned_token;
        for (int64_t head = 0; head < 2; ++head) {
          const size_t begin = (row * 2 + head) * half_row;
          if (!sees || head == 0) {
            ASSERT_EQ(std::memcmp(want.data() + begin, got.data() + begin, half_row), 0)
                << "kernel " << static_cast<int>(kernel) << ", " << value << ", row " << row
                << ", head " << head;
          } else if (stays_non_finite) {
            ASSERT_FALSE(std::isfinite(floats[(row * 2 + head) * p.head_dim + 3]))
                << "kernel " << static_cast<int>(kernel) << ", " << value << ", row " << row;
          }
        }
      }
    }
  }
}

TEST_P(FastAttention, MixedChunksMatchFloat64) {
  const Problem p = problem(3, {1, 15, 17, 64, 129, 300, 1000, 500});
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
  const Problem p = problem(3, kLengths);
  const DeviceCache cache(p);
  const Batch batch(p, cache, last_tokens(p));
  batch.run(Kernel::kDecode, context_);
  expect_near(p, last_tokens(p), batch.out().floats(p.dtype));
}

TEST_P(FastAttention, LargeScores) {
  // Scores up to 40 head_dim^0.5 * 4 / 3: one token takes nearly all the weight.
  const Problem p = problem(2, {70, 333}, 40.0f);
  const DeviceCache cache(p);
  const Batch batch(p, cache, whole(p));
  batch.run(Kernel::kPrefill, context_);
  expect_near(p, whole(p), batch.out().floats(p.dtype), 3);
}

TEST_P(FastAttention, PrefillInOnePieceInChunksAndDecodeShareTheirBits) {
  const Problem p = problem(2, {1000});
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
  const Problem p = problem(2, lengths);
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
  for (const DType dtype : {DType::kF16, DType::kI8}) {
    const Problem p = make_problem(DType::kF16, 4, 128, {2500, 700, 64, 1}, dtype);
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
}

TEST(Attention, PrefillWithAnyNumberOfTilesABlockSharesItsBits) {
  // On a small machine every block takes many tiles.
  LaunchContext context = device_context();
  for (const auto& [head_dim, dtype] :
       {std::pair<int64_t, DType>{64, DType::kF16}, std::pair<int64_t, DType>{128, DType::kF16},
        std::pair<int64_t, DType>{64, DType::kI8}, std::pair<int64_t, DType>{128, DType::kI8},
        std::pair<int64_t, DType>{128, DType::kF8E4M3}}) {
    const Problem p = make_problem(DType::kF16, 3, head_dim, {1000, 1, 130, 64, 517, 128}, dtype);
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
  for (const DType dtype : {DType::kBF16, DType::kI8}) {
    const Problem p = make_problem(DType::kBF16, 2, 80, {100, 7, 90}, dtype);
    const DeviceCache cache(p);
    const Batch batch(p, cache, {{0, 99, 1}, {1, 3, 1}, {2, 89, 1}});
    const std::vector<int32_t> lens = {100, 0, 90};
    copy_to_device(batch.context_lens().data(), lens.data(), 12);
    for (Kernel kernel : {Kernel::kDecode, Kernel::kDecodeWorkspace, Kernel::kPrefill,
                          Kernel::kPrefillMma, Kernel::kSimple}) {
      fill_device(batch.out().data(), 0xFF, batch.out().num_bytes());
      batch.run(kernel, context);
      const std::vector<float> out = batch.out().floats(p.dtype);
      for (int64_t i = 0; i < p.hidden(); ++i) {
        EXPECT_EQ(out[p.hidden() + i], 0.0f) << static_cast<int>(kernel) << " column " << i;
        EXPECT_TRUE(std::isfinite(out[i]) && std::isfinite(out[2 * p.hidden() + i]));
      }
    }
  }
}

TEST(Attention, CapturedDecodeFollowsItsContextLens) {
  LaunchContext context = device_context();
  const Problem p = make_problem(DType::kF16, 4, 128, {1200, 1200, 1200}, DType::kF16);
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
    copy_to_device(batch.context_lens().data(), lens.data(), 12);
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
  for (const auto& [head_dim, dtype] :
       {std::pair<int64_t, DType>{40, DType::kBF16}, std::pair<int64_t, DType>{128, DType::kBF16},
        std::pair<int64_t, DType>{256, DType::kBF16}, std::pair<int64_t, DType>{48, DType::kI8},
        std::pair<int64_t, DType>{128, DType::kI8}, std::pair<int64_t, DType>{256, DType::kI8},
        std::pair<int64_t, DType>{64, DType::kF8E4M3},
        std::pair<int64_t, DType>{128, DType::kF8E4M3}}) {
    const Problem p = make_problem(DType::kBF16, 2, head_dim, {1, 64, 65, 777}, dtype);
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
    const DeviceArray slot_mapping(slots);
    for (int variant = 0; variant < 3; ++variant) {
      const DeviceArray k(make_cache(p, 1, before));
      const DeviceArray v(make_cache(p, 2, before));
      LaunchContext c = context;
      if (variant == 2) c.compute_capability = 80;
      AttentionArgs args = appended.args();
      args.is_context_settled = variant == 1;
      args.cache.k = k.data();
      args.cache.v = v.data();
      args.slot_mapping = slot_mapping.as<int64_t>();
      launch_attention_decode(args, c);
      CARAVAN_CUDA_CHECK(cudaDeviceSynchronize());
      expect_same_bits(p, want, appended.out().host<std::byte>(), "fused append");
      EXPECT_EQ(k.host<std::byte>(), make_cache(p, 1, p.lengths)) << "head_dim " << head_dim;
      EXPECT_EQ(v.host<std::byte>(), make_cache(p, 2, p.lengths)) << "head_dim " << head_dim;
    }
  }
}

// The elements of a quantized cache are numbers of the 16-bit types: with scales of 1 a 16-bit
// cache that holds them gives the same bits, in every kernel.
TEST(Attention, AQuantizedCacheGivesTheBitsOfA16BitOneOfItsElements) {
  const LaunchContext context = device_context();
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const DType quantized : {DType::kI8, DType::kF8E4M3}) {
      for (const int64_t head_dim : {64, 128, 256}) {
        Problem p = make_problem(dtype, 2, head_dim, {700, 65, 3}, quantized, 0.1f);
        Problem wide = make_problem(dtype, 2, head_dim, {700, 65, 3}, dtype, 0.1f);
        for (size_t s = 0; s < p.lengths.size(); ++s) {
          for (size_t i = 0; i < p.qkv[s].size(); ++i) {
            if (static_cast<int64_t>(i) / p.hidden() % 3 == 0) continue;
            wide.qkv[s][i] = p.qkv[s][i] = p.elements[s][i];
          }
        }
        p.k_scales.assign(2, 1.0f);
        p.v_scales.assign(2, 1.0f);
        quantize(p);
        const DeviceCache cache(p);
        const DeviceCache wide_cache(wide);
        const std::string what = std::string(dtype_name(quantized)) + " as " + dtype_name(dtype) +
                                 ", head_dim " + std::to_string(head_dim);
        const Batch prefill(p, cache, whole(p));
        const std::vector<std::byte> want =
            Batch(wide, wide_cache, whole(wide)).run(Kernel::kPrefill, context);
        expect_same_bits(p, want, prefill.run(Kernel::kPrefill, context), what + ", prefill");
        expect_same_bits(p, want, prefill.run(Kernel::kPrefillMma, context),
                         what + ", prefill before Hopper");
        expect_same_bits(
            p, Batch(wide, wide_cache, last_tokens(wide)).run(Kernel::kDecode, context),
            Batch(p, cache, last_tokens(p)).run(Kernel::kDecode, context), what + ", decode");
      }
    }
  }
}

TEST(Attention, RefusesWhatItCannotDo) {
  const LaunchContext context = device_context();
  EXPECT_TRUE(has_fast_attention(DType::kBF16, DType::kBF16, 8));
  EXPECT_TRUE(has_fast_attention(DType::kF16, DType::kF16, 256));
  EXPECT_FALSE(has_fast_attention(DType::kF32, DType::kF32, 128));
  EXPECT_FALSE(has_fast_attention(DType::kF16, DType::kF16, 100));
  EXPECT_FALSE(has_fast_attention(DType::kF16, DType::kF16, 264));
  EXPECT_FALSE(has_fast_attention(DType::kF16, DType::kBF16, 64));
  EXPECT_TRUE(has_fast_attention(DType::kF16, DType::kI8, 80));
  EXPECT_FALSE(has_fast_attention(DType::kF16, DType::kI8, 72));
  EXPECT_FALSE(has_fast_attention(DType::kF32, DType::kF8E4M3, 64));
  const Problem p = make_problem(DType::kF16, 1, 12, {5}, DType::kF16);
  const DeviceCache cache(p);
  const Batch batch(p, cache, last_tokens(p));
  EXPECT_ANY_THROW(launch_attention_decode(batch.args(), context));
  EXPECT_ANY_THROW(launch_attention_prefill(batch.args(), nullptr, 1, context));
  const Problem quantized = make_problem(DType::kF16, 1, 64, {5}, DType::kI8);
  const DeviceCache quantized_cache(quantized);
  const Batch without_scales(quantized, quantized_cache, last_tokens(quantized));
  AttentionArgs args = without_scales.args();
  args.cache.v_scale = nullptr;
  EXPECT_ANY_THROW(launch_attention_decode(args, context));
  EXPECT_ANY_THROW(launch_attention_simple(args, context));
  args = without_scales.args();
  args.cache.dtype = DType::kF32;
  EXPECT_ANY_THROW(launch_attention_simple(args, context));
}

class SimpleAttention : public ::testing::TestWithParam<Case> {
 protected:
  static Problem problem(int64_t num_heads, const std::vector<int64_t>& lengths) {
    return make_problem(GetParam().dtype, num_heads, GetParam().head_dim, lengths,
                        GetParam().cache);
  }
  LaunchContext context_ = device_context();
};
INSTANTIATE_TEST_SUITE_P(
    Shapes, SimpleAttention,
    ::testing::Values(Case{DType::kF32, 1}, Case{DType::kF32, 13}, Case{DType::kF32, 64},
                      Case{DType::kF32, 300}, Case{DType::kF16, 33}, Case{DType::kBF16, 128},
                      Case{DType::kF32, 13, DType::kI8}, Case{DType::kF32, 64, DType::kI8},
                      Case{DType::kF32, 300, DType::kF8E4M3}, Case{DType::kF16, 33, DType::kF8E4M3},
                      Case{DType::kBF16, 128, DType::kI8}, Case{DType::kBF16, 40, DType::kI8}),
    case_name);

TEST_P(SimpleAttention, MatchesFloat64) {
  const Problem p = problem(2, {1, 31, 32, 33, 200});
  const DeviceCache cache(p);
  const std::vector<Chunk> chunks = {{0, 0, 1}, {1, 30, 1}, {2, 0, 32}, {3, 7, 26}, {4, 100, 100}};
  const Batch batch(p, cache, chunks);
  batch.run(Kernel::kSimple, context_);
  expect_near(p, chunks, batch.out().floats(p.dtype));
}

TEST_P(SimpleAttention, ChunksAndBatchesShareTheirBits) {
  const Problem p = problem(2, {150});
  const DeviceCache cache(p);
  const std::vector<std::byte> once = Batch(p, cache, whole(p)).run(Kernel::kSimple, context_);
  std::vector<Chunk> tokens;
  for (int64_t t = 0; t < p.lengths[0]; ++t) tokens.push_back({0, t, 1});
  expect_same_bits(p, once, Batch(p, cache, tokens).run(Kernel::kSimple, context_),
                   "single tokens");
}

TEST(Attention, SimpleKeepsHugeScoresApart) {
  // Scores near 1e5 that differ by less than float32 rounding of the sums: float64 sees it.
  Problem p = make_problem(DType::kF32, 1, 16, {40}, DType::kF32);
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

}  // namespace
}  // namespace caravan::cuda
