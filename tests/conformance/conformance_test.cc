// One table for every operator: each instruction set that this processor has against the reference,
// then exact comparisons of bits: rows alone or in a batch, any number of threads, AVX2 or AVX-512.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/dtype.h"
#include "kernels/cpu/reference.h"
#include "tests/conformance/op_cases.h"

namespace caravan {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<CpuIsa> fast_isas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    if (cpu_isa_available(isa)) isas.push_back(isa);
  }
  return isas;
}

bool uses_amx(CpuIsa isa, DType dtype) { return isa == CpuIsa::kAmx && dtype == DType::kBF16; }

TEST(CpuIsa, NamesRoundTrip) {
  for (const CpuIsa isa : {CpuIsa::kReference, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    EXPECT_EQ(parse_cpu_isa(cpu_isa_name(isa)), isa);
  }
  EXPECT_EQ(parse_cpu_isa("sse2"), std::nullopt);
  EXPECT_TRUE(cpu_isa_available(best_cpu_isa()));
}

TEST(LinearConformance, MatchesTheReference) {
  for (const LinearCase& c : linear_cases()) {
    const LinearData exact(c);
    LinearData rounded(c);
    rounded.round_x_to_bfloat16();
    for (const CpuIsa isa : fast_isas()) {
      const LinearData& data = uses_amx(isa, c.dtype) ? rounded : exact;
      std::vector<float> want;
      std::vector<float> magnitude;
      data.reference(want, magnitude);
      const std::vector<float> got =
          data.run(Runner(cpu_kernels(isa), 2), cpu_linear_layout(isa, c.dtype));
      ASSERT_EQ(got.size(), want.size()) << cpu_isa_name(isa) << " " << c.name();
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_LE(std::fabs(got[i] - want[i]),
                  linear_tolerance(c.in_features, magnitude[i], want[i]))
            << cpu_isa_name(isa) << " " << c.name() << " at " << i << ": got " << got[i]
            << ", wanted " << want[i];
      }
    }
  }
}

TEST(LinearConformance, RowsDoNotDependOnTheBatchOrTheThreads) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const LinearData data({70, 700, 75, dtype, Activation::kGelu, true, true});
    for (const CpuIsa isa : fast_isas()) {
      const LinearLayout layout = cpu_linear_layout(isa, dtype);
      const std::vector<float> all = data.run(Runner(cpu_kernels(isa), 1), layout);
      for (const int threads : {2, 3}) {
        EXPECT_TRUE(same_bits(data.run(Runner(cpu_kernels(isa), threads), layout), all))
            << cpu_isa_name(isa) << " " << dtype_name(dtype) << ", threads " << threads;
      }
      for (const int64_t count : {1, 2, 3, 7, 14, 15, 16, 17, 33}) {
        const std::vector<float> some = data.run(Runner(cpu_kernels(isa), 2), layout, 31, count);
        EXPECT_TRUE(same_bits(some, {all.begin() + 31 * 75, all.begin() + (31 + count) * 75}))
            << cpu_isa_name(isa) << " " << dtype_name(dtype) << ", rows " << count;
      }
    }
  }
}

TEST(LinearConformance, LongPrefillEqualsItsPieces) {
  const int64_t out = 33;
  const LinearData data({1100, 300, out, DType::kF16, Activation::kNone, true, false});
  for (const CpuIsa isa : fast_isas()) {
    const LinearLayout layout = cpu_linear_layout(isa, DType::kF16);
    const Runner runner(cpu_kernels(isa), 2);
    const std::vector<float> all = data.run(runner, layout);
    for (const int64_t first : {0, 366, 367, 511, 512, 1099}) {
      EXPECT_TRUE(same_bits(data.run(runner, layout, first, 1),
                            {all.begin() + first * out, all.begin() + (first + 1) * out}))
          << cpu_isa_name(isa) << " row " << first;
    }
  }
}

TEST(LinearConformance, Avx2AndAvx512GiveTheSameBits) {
  if (!cpu_isa_available(CpuIsa::kAvx512)) GTEST_SKIP() << "this processor has no AVX-512";
  for (const LinearCase& c : linear_cases()) {
    const LinearData data(c);
    const LinearLayout layout = cpu_linear_layout(CpuIsa::kAvx2, c.dtype);
    EXPECT_TRUE(same_bits(data.run(Runner(cpu_kernels(CpuIsa::kAvx2), 2), layout),
                          data.run(Runner(cpu_kernels(CpuIsa::kAvx512), 2), layout)))
        << c.name();
  }
}

// Activations element by element, through a layer with the one weight 1.
std::vector<float> activated(CpuIsa isa, Activation activation, const std::vector<float>& x) {
  const std::vector<float> weight(32, 1.0f);  // a whole panel; the reference reads the first
  std::vector<float> y(x.size());
  LinearParams p;
  p.num_tokens = static_cast<int64_t>(x.size());
  p.x = x.data();
  p.weight = {weight.data(), DType::kF32, cpu_linear_layout(isa, DType::kF32), 1, 1, nullptr};
  p.activation = activation;
  p.y = y.data();
  Runner(cpu_kernels(isa), 2).linear(p);
  return y;
}

TEST(ActivationConformance, AccurateOverTheWholeRange) {
  std::vector<float> x = {0.0f, -0.0f, 1e-30f, -1e-30f, 50.0f, -50.0f, 1e4f, -1e4f, 1e30f, -1e30f};
  for (int i = -40000; i <= 40000; ++i) x.push_back(static_cast<float>(i) * (1.0f / 2048));
  for (const CpuIsa isa : fast_isas()) {
    for (const Activation activation :
         {Activation::kGelu, Activation::kGeluTanh, Activation::kQuickGelu, Activation::kRelu,
          Activation::kSilu, Activation::kTanh}) {
      const std::vector<float> got = activated(isa, activation, x);
      const std::vector<float> want = activated(CpuIsa::kReference, activation, x);
      double worst = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        // Units of 2^-24 of the result. Functions of e^-v lose what v itself loses by rounding,
        // up to v units. Below 1e-36 results may be flushed to zero; the reference's 1 + tanh has
        // no digits below 1e-15.
        const double floor = activation == Activation::kGeluTanh ? 1e-15 : 1e-36;
        double allowed = 8;
        const double a = std::fabs(x[i]);
        if (activation == Activation::kQuickGelu || activation == Activation::kSilu) {
          allowed += 2 * a;
        }
        if (activation == Activation::kGeluTanh) allowed += 4 * (a + 0.045 * a * a * a);
        const double error = std::fabs(static_cast<double>(got[i]) - want[i]);
        const double unit = 0x1p-24 * std::fabs(want[i]);
        ASSERT_LE(error, allowed * unit + floor)
            << cpu_isa_name(isa) << " " << activation_name(activation) << "(" << x[i] << "): got "
            << got[i] << ", wanted " << want[i];
        if (std::fabs(want[i]) > 1e7 * floor) worst = std::max(worst, error / unit);
      }
      RecordProperty(fmt::format("{}_{}_units", cpu_isa_name(isa), activation_name(activation)),
                     fmt::format("{:.1f}", worst));
    }
  }
}

TEST(ActivationConformance, NanStaysNan) {
  for (const CpuIsa isa : fast_isas()) {
    for (const Activation activation :
         {Activation::kGelu, Activation::kGeluTanh, Activation::kQuickGelu, Activation::kRelu,
          Activation::kSilu, Activation::kTanh}) {
      EXPECT_TRUE(std::isnan(activated(isa, activation, {kNaN})[0]))
          << cpu_isa_name(isa) << " " << activation_name(activation);
    }
  }
}

struct NormCase {
  int64_t num_tokens;
  int64_t hidden_size;
  float offset;
};
constexpr NormCase kNormCases[] = {{1, 1, 0},    {1, 7, 0},     {2, 16, 5},
                                   {3, 33, 0},   {17, 64, 0},   {5, 80, -3},
                                   {1, 1023, 2}, {33, 1023, 0}, {9, 4096, 100}};

std::vector<float> normalized(const Runner& runner, const NormCase& c, int64_t first,
                              int64_t count) {
  const size_t n = static_cast<size_t>(c.hidden_size);
  std::vector<float> x = random_values(static_cast<size_t>(c.num_tokens) * n, 1);
  for (float& v : x) v += c.offset;
  const std::vector<float> weight = random_values(n, 2);
  const std::vector<float> bias = random_values(n, 3);
  const size_t begin = static_cast<size_t>(first) * n;
  const size_t values = static_cast<size_t>(count) * n;
  std::vector<float> y(values + 16, kNaN);
  std::copy_n(x.begin() + static_cast<int64_t>(begin), values, y.begin());
  // In place: x and y are the same memory.
  runner.layer_norm({count, c.hidden_size, y.data(), weight.data(), bias.data(), 1e-5f, y.data()});
  if (!std::isnan(y[values])) return {};
  y.resize(values);
  return y;
}

TEST(LayerNormConformance, MatchesTheReferenceAndItself) {
  for (const NormCase& c : kNormCases) {
    const std::vector<float> want = normalized(Runner(reference_kernels(), 1), c, 0, c.num_tokens);
    std::vector<float> first_got;
    for (const CpuIsa isa : fast_isas()) {
      const std::vector<float> got = normalized(Runner(cpu_kernels(isa), 2), c, 0, c.num_tokens);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < want.size(); ++i) {
        // The mean is rounded to a float: x - mean is off by up to a unit of it. A single value
        // (hidden_size 1) is divided by sqrt(epsilon), which makes that unit 316 times as large.
        const double slope = c.hidden_size == 1 ? 317 : 2;
        ASSERT_NEAR(got[i], want[i], 0x1p-24 * (16 + 4 * slope * std::fabs(c.offset)))
            << cpu_isa_name(isa) << " [" << c.num_tokens << "," << c.hidden_size << "] at " << i;
      }
      for (int64_t t = 0; t < c.num_tokens; t += 4) {
        EXPECT_TRUE(
            same_bits(normalized(Runner(cpu_kernels(isa), 1), c, t, 1),
                      {got.begin() + t * c.hidden_size, got.begin() + (t + 1) * c.hidden_size}));
      }
      if (first_got.empty()) first_got = got;
      EXPECT_TRUE(same_bits(got, first_got)) << cpu_isa_name(isa) << " and avx2 differ";
    }
  }
}

TEST(EmbeddingConformance, GathersFromEveryLayout) {
  struct Shape {
    int64_t tokens, hidden, vocab;
  };
  for (const Shape& shape : {Shape{1, 1, 1}, {7, 33, 70}, {33, 768, 50}, {5, 1023, 257}}) {
    const int64_t tokens = shape.tokens;
    const int64_t hidden = shape.hidden;
    const int64_t vocab = shape.vocab;
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      const size_t weights = static_cast<size_t>(vocab * hidden);
      const size_t positions = static_cast<size_t>(tokens * hidden);
      Buffer wte = Buffer::host(weights * dtype_size(dtype));
      Buffer wpe = Buffer::host(positions * dtype_size(dtype));
      convert_elements(random_values(weights, 1).data(), DType::kF32, wte.data(), dtype, weights);
      convert_elements(random_values(positions, 2).data(), DType::kF32, wpe.data(), dtype,
                       positions);
      std::vector<int32_t> ids;
      std::vector<int32_t> places;
      for (int64_t t = 0; t < tokens; ++t) {
        ids.push_back(static_cast<int32_t>((t * 31 + vocab - 1) % vocab));
        places.push_back(static_cast<int32_t>(tokens - 1 - t));
      }
      const auto run = [&](const CpuKernels& kernels, LinearLayout layout) {
        Buffer packed = Buffer::host(
            static_cast<size_t>(linear_num_elements(layout, hidden, vocab)) * dtype_size(dtype));
        pack_linear(wte.data(), LinearLayout::kOutIn, dtype, hidden, vocab, layout, packed.data());
        std::vector<float> out(positions + 16, kNaN);
        EmbeddingParams p;
        p.num_tokens = tokens;
        p.token_ids = ids.data();
        p.positions = places.data();
        p.wte = {packed.data(), dtype, layout, hidden, vocab, nullptr};
        p.wpe = wpe.data();
        p.wpe_dtype = dtype;
        p.num_positions = tokens;
        p.out = out.data();
        Runner(kernels, 2).embedding(p);
        EXPECT_TRUE(std::isnan(out[positions]));
        out.resize(positions);
        return out;
      };
      const std::vector<float> want = run(reference_kernels(), LinearLayout::kOutIn);
      for (const CpuIsa isa : fast_isas()) {
        for (const LinearLayout layout :
             {LinearLayout::kInOut, LinearLayout::kOutIn, cpu_linear_layout(isa, dtype)}) {
          // One addition of two floats: no rounding to differ in.
          EXPECT_TRUE(same_bits(run(cpu_kernels(isa), layout), want))
              << cpu_isa_name(isa) << " " << dtype_name(dtype) << " " << linear_layout_name(layout)
              << " [" << tokens << "," << hidden << "]";
        }
      }
    }
  }
}

TEST(AppendKvConformance, WritesTheReferencesBytes) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kF8E4M3}) {
    struct Shape {
      int64_t tokens, heads, head_dim;
    };
    for (const Shape& shape : {Shape{1, 1, 1}, {1, 3, 64}, {19, 2, 33}, {40, 12, 80}}) {
      const int64_t tokens = shape.tokens;
      const int64_t heads = shape.heads;
      const int64_t head_dim = shape.head_dim;
      const int64_t hidden = heads * head_dim;
      const std::vector<float> qkv = random_values(static_cast<size_t>(tokens * 3 * hidden), 5);
      std::vector<int64_t> slots;
      for (int64_t t = 0; t < tokens; ++t) slots.push_back((t * 7 + 3) % 64);
      const size_t num_bytes = static_cast<size_t>(64 * hidden) * dtype_size(dtype);
      const std::vector<float> k_scales = kv_scales(dtype, heads, 0.9f);  // some values saturate
      const std::vector<float> v_scales = kv_scales(dtype, heads, 1.1f);
      const auto run = [&](const CpuKernels& kernels) {
        std::vector<char> bytes(2 * num_bytes, '\x5a');
        const KvLayer cache{.k = bytes.data(),
                            .v = bytes.data() + num_bytes,
                            .dtype = dtype,
                            .k_scale = is_quantized_kv(dtype) ? k_scales.data() : nullptr,
                            .v_scale = is_quantized_kv(dtype) ? v_scales.data() : nullptr,
                            .num_blocks = 4,
                            .block_size = 16,
                            .num_heads = heads,
                            .head_dim = head_dim};
        Runner(kernels, 2).append_kv({tokens, qkv.data(), slots.data(), cache});
        return bytes;
      };
      const std::vector<char> want = run(reference_kernels());
      for (const CpuIsa isa : fast_isas()) {
        EXPECT_EQ(run(cpu_kernels(isa)), want)
            << cpu_isa_name(isa) << " " << dtype_name(dtype) << " [" << tokens << "," << heads
            << "," << head_dim << "]";
      }
    }
  }
}

// One token, one head: what each kernel makes of values that round, saturate or are not numbers.
TEST(AppendKvConformance, QuantizesEveryKindOfValue) {
  std::vector<float> values = {0.0f,     -0.0f,     1e-40f, -1e-40f, 0x1p-10f, 0x1.8p-10f, 0x1p-9f,
                               0x1p-6f,  447.9f,    448.0f, 449.0f,  464.0f,   -500.0f,    126.5f,
                               127.49f,  127.5f,    128.0f, -127.5f, -128.0f,  1e30f,      -1e30f,
                               INFINITY, -INFINITY, kNaN,   -kNaN,   240.0f,   -0.4999f};
  for (int i = -260; i <= 260; ++i) values.push_back(static_cast<float>(i) * 0.5f);  // int8's ties
  for (int i = 0; i < 127; ++i) {  // every float8, and the middle to the next one
    const float low = f8e4m3_to_f32(static_cast<uint8_t>(i));
    const float high = f8e4m3_to_f32(static_cast<uint8_t>(i + 1 < 127 ? i + 1 : i));
    const float middle = (low + high) / 2;
    for (const float v :
         {low, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      values.push_back(v);
      values.push_back(-v);
    }
  }
  const auto head_dim = static_cast<int64_t>(values.size());
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    for (const float scale : {1.0f, 0.125f, 0.3f}) {
      std::vector<float> qkv(values.size());
      for (int part = 0; part < 2; ++part) {
        for (const float v : values) qkv.push_back(v * scale);
      }
      const int64_t slot = 5;
      const auto run = [&](const CpuKernels& kernels) {
        std::vector<uint8_t> bytes(2 * 16 * values.size());
        const KvLayer cache{.k = bytes.data(),
                            .v = bytes.data() + 16 * values.size(),
                            .dtype = dtype,
                            .k_scale = &scale,
                            .v_scale = &scale,
                            .num_blocks = 1,
                            .block_size = 16,
                            .num_heads = 1,
                            .head_dim = head_dim};
        Runner(kernels, 1).append_kv({1, qkv.data(), &slot, cache});
        return bytes;
      };
      const std::vector<uint8_t> want = run(reference_kernels());
      for (const CpuIsa isa : fast_isas()) {
        const std::vector<uint8_t> got = run(cpu_kernels(isa));
        for (size_t i = 0; i < values.size(); ++i) {
          const size_t k = i * 16 + 5;
          const size_t v = (16 + 5) * values.size() + i;
          EXPECT_EQ(got[k], want[k]) << cpu_isa_name(isa) << " K of " << values[i];
          EXPECT_EQ(got[v], want[v]) << cpu_isa_name(isa) << " V of " << values[i];
        }
      }
      for (size_t i = 0; i < values.size(); ++i) {
        const float x = qkv[values.size() + i] * (1.0f / scale);
        const uint8_t byte = want[i * 16 + 5];
        if (dtype == DType::kF8E4M3) {
          EXPECT_EQ(byte, f32_to_f8e4m3(x)) << x;
        } else if (!std::isnan(x)) {
          const float wanted = std::clamp(std::nearbyint(x), -127.0f, 127.0f);
          EXPECT_EQ(static_cast<float>(static_cast<int8_t>(byte)), wanted) << x;
        }
      }
    }
  }
}

// Attention to one token is its V: every byte of a quantized cache comes out as its value.
TEST(AttentionConformance, EveryByteIsWidenedExactly) {
  const float scale = 0.25f;
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    std::vector<uint8_t> k(256 * 16), v(256 * 16);
    for (size_t i = 0; i < 256; ++i) v[i] = static_cast<uint8_t>(i);
    const std::vector<float> qkv(3 * 256, 1.0f);
    const std::vector<int32_t> query_start{0, 1}, context_lens{1}, table{0};
    for (const CpuIsa isa : fast_isas()) {
      std::vector<float> out(256);
      AttentionParams p;
      p.num_tokens = p.num_seqs = p.max_blocks_per_seq = 1;
      p.qkv = qkv.data();
      p.query_start = query_start.data();
      p.context_lens = context_lens.data();
      p.block_tables = table.data();
      p.cache = {.k = k.data(),
                 .v = v.data(),
                 .dtype = dtype,
                 .k_scale = &scale,
                 .v_scale = &scale,
                 .num_blocks = 1,
                 .block_size = 16,
                 .num_heads = 1,
                 .head_dim = 256};
      p.out = out.data();
      Runner(cpu_kernels(isa), 1).attention(p);
      for (size_t i = 0; i < 256; ++i) {
        const float want = load_as_f32(v.data(), dtype, i) * scale;
        if (std::isnan(want)) {
          EXPECT_TRUE(std::isnan(out[i])) << cpu_isa_name(isa) << " byte " << i;
        } else {
          EXPECT_EQ(out[i], want) << cpu_isa_name(isa) << " " << dtype_name(dtype) << " byte " << i;
        }
      }
    }
  }
}

TEST(AttentionConformance, MatchesTheReference) {
  for (const AttentionCase& c : attention_cases()) {
    const AttentionData data(c);
    const std::vector<float> want = data.run(Runner(reference_kernels(), 1));
    double longest = 0;
    for (const SeqCase& s : c.seqs) longest = std::max(longest, static_cast<double>(s.context_len));
    // A score is a chain of head_dim roundings and at most sqrt(head_dim) large; an error of it is
    // one of the weight, relatively, in numerator and denominator; the sum over tokens adds its
    // own.
    const double dim = static_cast<double>(c.head_dim);
    const double tolerance =
        0x1p-24 * (2 * std::sqrt(dim) * (4 * std::sqrt(dim) + 8) + 4 * std::sqrt(longest) + 16 +
                   // The scales of a quantized cache: one rounding of the score, two of the result.
                   (is_quantized_kv(c.dtype) ? 2 * std::sqrt(dim) + 2 : 0));
    std::vector<float> first_got;
    for (const CpuIsa isa : fast_isas()) {
      const std::vector<float> got = data.run(Runner(cpu_kernels(isa), 2));
      ASSERT_EQ(got.size(), want.size()) << cpu_isa_name(isa) << " " << c.name();
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_LE(std::fabs(got[i] - want[i]), tolerance)
            << cpu_isa_name(isa) << " " << c.name() << " at " << i << ": got " << got[i]
            << ", wanted " << want[i];
      }
      if (first_got.empty()) first_got = got;
      EXPECT_TRUE(same_bits(got, first_got))
          << cpu_isa_name(isa) << " and avx2 differ " << c.name();
      for (const int threads : {1, 3}) {
        EXPECT_TRUE(same_bits(data.run(Runner(cpu_kernels(isa), threads)), got))
            << cpu_isa_name(isa) << " " << c.name() << ", threads " << threads;
      }
    }
  }
}

TEST(AttentionConformance, RowsDoNotDependOnHowPrefillIsCut) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kF8E4M3}) {
    const int64_t tokens = 75;
    const AttentionCase c{{{tokens, tokens}, {3, 20}}, 2, 40, dtype};
    const AttentionData data(c);
    const int64_t hidden = c.num_heads * c.head_dim;
    for (const CpuIsa isa : fast_isas()) {
      const Runner runner(cpu_kernels(isa), 2);
      const std::vector<float> whole = data.run(runner);
      for (const std::vector<int64_t>& cuts :
           {std::vector<int64_t>{7, 16, 22, 30}, {74, 1}, {1, 37, 37}}) {
        int64_t done = 0;
        for (const int64_t cut : cuts) {
          // The second sequence decodes beside it, or rests.
          const std::vector<float> part =
              data.run(runner, {{cut, done + cut}, {done % 2, done % 2 == 0 ? 5 : 20}});
          EXPECT_TRUE(std::equal(part.begin(), part.begin() + cut * hidden,
                                 whole.begin() + done * hidden,
                                 [](float a, float b) { return std::memcmp(&a, &b, 4) == 0; }))
              << cpu_isa_name(isa) << " " << dtype_name(dtype) << " tokens " << done << "+" << cut;
          done += cut;
        }
      }
      for (int64_t t = 0; t < tokens; ++t) {
        const std::vector<float> row = data.run(runner, {{1, t + 1}, {0, 1}});
        EXPECT_TRUE(same_bits(row, {whole.begin() + t * hidden, whole.begin() + (t + 1) * hidden}))
            << cpu_isa_name(isa) << " token " << t << " alone";
      }
    }
  }
}

// A head with equal scores attends evenly: the first token's output is its own V.
TEST(AttentionConformance, OneTokenGivesItsOwnValue) {
  const AttentionData data({{{1, 1}}, 1, 16, DType::kF32});
  const std::vector<float> want = data.run(Runner(reference_kernels(), 1));
  for (const CpuIsa isa : fast_isas()) {
    EXPECT_TRUE(same_bits(data.run(Runner(cpu_kernels(isa), 1)), want)) << cpu_isa_name(isa);
  }
}

TEST(CpuKernels, TooLittleScratchIsAnError) {
  const std::vector<float> x(64 * 64, 1.0f);
  std::vector<float> y(64 * 64);
  LinearParams p;
  p.num_tokens = 64;
  p.x = x.data();
  p.weight = {x.data(), DType::kF32, LinearLayout::kPanel32, 64, 64, nullptr};
  p.y = y.data();
  for (const CpuIsa isa : fast_isas()) {
    EXPECT_ANY_THROW(cpu_kernels(isa).linear(p, CpuContext{1, nullptr, 0})) << cpu_isa_name(isa);
  }
}

}  // namespace
}  // namespace caravan
