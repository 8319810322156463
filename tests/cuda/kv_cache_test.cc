#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cuda/attention.h"
#include "tests/cuda/attention_problem.h"

namespace caravan::cuda {
namespace {

class AppendKv : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, AppendKv,
                         ::testing::Values(Case{DType::kF16, 128}, Case{DType::kBF16, 40},
                                           Case{DType::kF16, 13}, Case{DType::kF32, 12},
                                           Case{DType::kF32, 7}, Case{DType::kF16, 128, DType::kI8},
                                           Case{DType::kBF16, 40, DType::kI8},
                                           Case{DType::kF32, 48, DType::kI8},
                                           Case{DType::kBF16, 64, DType::kF8E4M3},
                                           Case{DType::kF32, 7, DType::kF8E4M3}),
                         case_name);

TEST_P(AppendKv, WritesSlotsAndNothingElse) {
  const LaunchContext context = device_context();
  const Problem p = make_problem(GetParam().dtype, 3, GetParam().head_dim, {33}, GetParam().cache);
  std::vector<int64_t> slots;
  for (int64_t t = 0; t < 33; ++t) {
    slots.push_back(p.tables[0][t / kBlock] * kBlock + t % kBlock);
  }
  // Row 33 is padding.
  std::vector<float> rows = p.qkv[0];
  rows.resize(rows.size() + 3 * p.hidden(), 5.0f);
  slots.push_back(-1);
  const DeviceArray qkv(rows, p.dtype);
  const DeviceCache cache(p);
  const DeviceArray k(make_cache(p, 1, {0}));
  const DeviceArray v(make_cache(p, 2, {0}));
  const DeviceArray slot_mapping(slots);
  AppendKvArgs args;
  args.num_tokens = 34;
  args.qkv = qkv.data();
  args.dtype = p.dtype;
  args.slot_mapping = slot_mapping.as<int64_t>();
  args.cache = cache.args(p);
  args.cache.k = k.data();
  args.cache.v = v.data();
  launch_append_kv(args, context);
  EXPECT_EQ(k.host<std::byte>(), make_cache(p, 1, p.lengths));
  EXPECT_EQ(v.host<std::byte>(), make_cache(p, 2, p.lengths));
}

/// Elements that the kernels write for K and V = values [tokens][heads * head_dim], as floats.
std::vector<float> appended(DType cache_dtype, DType dtype, const std::vector<uint16_t>& bits,
                            int64_t num_heads, int64_t head_dim, const std::vector<float>& scales,
                            bool is_v, bool by_decode) {
  const LaunchContext context = device_context();
  const int64_t hidden = num_heads * head_dim;
  const auto num_tokens = static_cast<int64_t>(bits.size()) / hidden;
  std::vector<uint16_t> qkv(num_tokens * 3 * hidden, 0);
  std::vector<int64_t> slots(num_tokens);
  std::vector<int32_t> tables(num_tokens);
  for (int64_t t = 0; t < num_tokens; ++t) {
    std::copy_n(bits.begin() + t * hidden, hidden, qkv.begin() + (t * 3 + (is_v ? 2 : 1)) * hidden);
    slots[t] = t * kBlock;  // each the first token of a sequence of its own
    tables[t] = static_cast<int32_t>(t);
  }
  const DeviceArray device_qkv(qkv);
  const DeviceArray device_slots(slots);
  const DeviceArray device_tables(tables);
  const DeviceArray context_lens(std::vector<int32_t>(num_tokens, 1));
  const DeviceArray device_scales(scales);
  const DeviceArray k(static_cast<size_t>(num_tokens * kBlock * hidden));
  const DeviceArray v(static_cast<size_t>(num_tokens * kBlock * hidden));
  const DeviceArray out(static_cast<size_t>(num_tokens * hidden * 2));
  const KvCacheArgs cache{.k = k.data(),
                          .v = v.data(),
                          .dtype = cache_dtype,
                          .num_blocks = num_tokens,
                          .block_size = kBlock,
                          .num_heads = num_heads,
                          .head_dim = head_dim,
                          .k_scale = device_scales.as<float>(),
                          .v_scale = device_scales.as<float>()};
  if (by_decode) {
    launch_attention_decode({.num_tokens = num_tokens,
                             .num_seqs = num_tokens,
                             .qkv = device_qkv.data(),
                             .dtype = dtype,
                             .context_lens = context_lens.as<int32_t>(),
                             .block_tables = device_tables.as<int32_t>(),
                             .max_blocks_per_seq = 1,
                             .max_context_len = 1,
                             .cache = cache,
                             .out = out.data(),
                             .slot_mapping = device_slots.as<int64_t>()},
                            context);
  } else {
    launch_append_kv({.num_tokens = num_tokens,
                      .qkv = device_qkv.data(),
                      .dtype = dtype,
                      .slot_mapping = device_slots.as<int64_t>(),
                      .cache = cache},
                     context);
  }
  Problem layout;
  layout.cache_dtype = cache_dtype;
  layout.head_dim = head_dim;
  const std::vector<std::byte> raw = (is_v ? v : k).host<std::byte>();
  std::vector<float> elements(num_tokens * hidden);
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t h = 0; h < num_heads; ++h) {
      for (int64_t d = 0; d < head_dim; ++d) {
        const int64_t column = cache_column(layout, is_v ? 2 : 1, d);
        elements[t * hidden + h * head_dim + d] = load_as_f32(
            raw.data(), cache_dtype, ((t * num_heads + h) * kBlock) * head_dim + column);
      }
    }
  }
  return elements;
}

// All 65,536 bit patterns: every tie, every subnormal number, infinities and NaN.
TEST(AppendQuantizedKv, RoundsEvery16BitNumberAsTheHost) {
  std::vector<uint16_t> bits(65536);
  std::iota(bits.begin(), bits.end(), uint16_t{0});
  const std::vector<float> scales = {1.0f, 0.5f, 0.0371f, 3.1e-5f};
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const DType cache : {DType::kI8, DType::kF8E4M3}) {
      for (const bool is_v : {false, true}) {
        for (const bool by_decode : {false, true}) {
          // Every head takes another scale, so all patterns pass every head in four turns.
          for (int64_t turn = 0; turn < 4; ++turn) {
            std::vector<uint16_t> turned = bits;
            std::rotate(turned.begin(), turned.begin() + turn * 64, turned.end());
            const std::vector<float> got =
                appended(cache, dtype, turned, 4, 64, scales, is_v, by_decode);
            int num_bad = 0;
            for (size_t i = 0; i < turned.size() && num_bad < 5; ++i) {
              const float value = load_as_f32(turned.data(), dtype, i);
              float want = quantized_element(cache, value, scales[i / 64 % 4]);
              // A chunk's V is 0 where it would be NaN; K says so.
              if (is_v && !by_decode && std::isnan(want)) want = 0;
              if (got[i] == want || (std::isnan(got[i]) && std::isnan(want))) continue;
              ++num_bad;
              ADD_FAILURE() << dtype_name(dtype) << " " << value << " as " << dtype_name(cache)
                            << " of scale " << scales[i / 64 % 4] << ": got " << got[i]
                            << ", wanted " << want;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace caravan::cuda
