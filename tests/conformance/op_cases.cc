#include "tests/conformance/op_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/dtype.h"
#include "kernels/cpu/reference.h"

namespace caravan {

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr size_t kGuard = 64;  // floats of NaN after an array

Buffer nan_bytes(size_t num_bytes) {
  Buffer buffer = Buffer::host(std::max<size_t>(num_bytes, 1));
  std::memset(buffer.data(), 0xff, num_bytes);
  return buffer;
}

}  // namespace

std::vector<float> random_values(size_t count, uint32_t seed) {
  uint32_t state = seed * 2654435761u + 12345u;
  std::vector<float> values(count);
  for (float& v : values) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(state >> 8) / (1u << 23) - 1.0f;
  }
  return values;
}

double linear_tolerance(int64_t in_features, double magnitude, double want) {
  const double sum = (4 * std::sqrt(static_cast<double>(in_features)) + 8) * (magnitude + 1);
  return 0x1p-24 * (1.2 * sum + 16 * std::fabs(want));
}

std::vector<float> kv_scales(DType dtype, int64_t num_heads, float first) {
  std::vector<float> scales;
  for (int64_t h = 0; h < num_heads; ++h) {
    scales.push_back((first + 0.07f * static_cast<float>(h)) /
                     (dtype == DType::kI8 ? 127.0f : 448.0f));
  }
  return scales;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <typename Call>
void Runner::with_context(const CpuScratchSpec& spec, const Call& call) const {
  const size_t num_bytes = kernels_.scratch_bytes(spec);
  const Buffer scratch = nan_bytes(num_bytes);
  call(CpuContext{threads_, scratch.as<std::byte>(), num_bytes});
}

void Runner::layer_norm(const LayerNormParams& p) const {
  with_context({.num_threads = threads_},
               [&](const CpuContext& context) { kernels_.layer_norm(p, context); });
}
void Runner::linear(const LinearParams& p) const {
  CpuScratchSpec spec;
  spec.num_threads = threads_;
  spec.max_num_tokens = p.num_tokens;
  spec.max_in_features = p.weight.in_features;
  spec.max_out_features = p.weight.out_features;
  with_context(spec, [&](const CpuContext& context) { kernels_.linear(p, context); });
}
void Runner::embedding(const EmbeddingParams& p) const {
  with_context({.num_threads = threads_},
               [&](const CpuContext& context) { kernels_.embedding(p, context); });
}
void Runner::append_kv(const AppendKvParams& p) const {
  with_context({.num_threads = threads_},
               [&](const CpuContext& context) { kernels_.append_kv(p, context); });
}
void Runner::attention(const AttentionParams& p) const {
  CpuScratchSpec spec;
  spec.num_threads = threads_;
  spec.max_num_tokens = p.num_tokens;
  spec.head_dim = p.cache.head_dim;
  for (int64_t s = 0; s < p.num_seqs; ++s) {
    spec.max_context_len = std::max<int64_t>(spec.max_context_len, p.context_lens[s]);
  }
  with_context(spec, [&](const CpuContext& context) { kernels_.attention(p, context); });
}

std::string LinearCase::name() const {
  return fmt::format("{} T={} [{}->{}] {}{}{}", dtype_name(dtype), num_tokens, in_features,
                     out_features, activation_name(activation), with_bias ? " bias" : "",
                     with_residual ? " residual" : "");
}

LinearData::LinearData(const LinearCase& c) : case_(c) {
  const size_t weights = static_cast<size_t>(c.in_features * c.out_features);
  x_ = random_values(static_cast<size_t>(c.num_tokens * c.in_features), 1);
  x_.resize(x_.size() + kGuard, kNaN);
  bias_ = random_values(static_cast<size_t>(c.out_features), 2);
  residual_ = random_values(static_cast<size_t>(c.num_tokens * c.out_features), 3);
  weight_ = Buffer::host(weights * dtype_size(c.dtype));
  convert_elements(random_values(weights, 4).data(), DType::kF32, weight_.data(), c.dtype, weights);
}

std::vector<float> LinearData::run(const Runner& runner, LinearLayout layout, int64_t first,
                                   int64_t count) const {
  const int64_t in = case_.in_features;
  const int64_t out = case_.out_features;
  const Buffer packed = Buffer::host(static_cast<size_t>(linear_num_elements(layout, in, out)) *
                                     dtype_size(case_.dtype));
  pack_linear(weight_.data(), LinearLayout::kInOut, case_.dtype, in, out, layout, packed.data());
  const size_t values = static_cast<size_t>(count * out);
  std::vector<float> y(values + 2 * kGuard, kNaN);
  float* begin = y.data() + kGuard;
  LinearParams p;
  p.num_tokens = count;
  p.x = x_.data() + first * in;
  p.weight = {
      packed.data(), case_.dtype, layout, in, out, case_.with_bias ? bias_.data() : nullptr};
  p.activation = case_.activation;
  p.y = begin;
  if (case_.with_residual) {
    std::copy_n(residual_.begin() + first * out, values, begin);
    p.residual = begin;
  }
  runner.linear(p);
  for (size_t i = 0; i < kGuard; ++i) {
    if (!std::isnan(y[i]) || !std::isnan(y[kGuard + values + i])) return {};
  }
  return {begin, begin + values};
}

void LinearData::reference(std::vector<float>& want, std::vector<float>& magnitude) const {
  const Runner runner(reference_kernels(), 2);
  want = run(runner, LinearLayout::kInOut);
  LinearData absolute(case_);
  absolute.case_.activation = Activation::kNone;
  absolute.case_.with_residual = false;
  for (size_t i = 0; i < x_.size(); ++i) absolute.x_[i] = std::fabs(x_[i]);
  for (float& v : absolute.bias_) v = std::fabs(v);
  const size_t weights = static_cast<size_t>(case_.in_features * case_.out_features);
  std::vector<float> w(weights);
  for (size_t i = 0; i < weights; ++i) {
    w[i] = std::fabs(load_as_f32(weight_.data(), case_.dtype, i));
  }
  convert_elements(w.data(), DType::kF32, absolute.weight_.data(), case_.dtype, weights);
  magnitude = absolute.run(runner, LinearLayout::kInOut);
}

void LinearData::round_x_to_bfloat16() {
  for (float& v : x_) v = bf16_to_f32(f32_to_bf16(v));
}

std::vector<LinearCase> linear_cases() {
  constexpr int64_t kSizes[][3] = {
      {1, 1, 1},      {1, 33, 7},    {1, 1024, 1023}, {2, 7, 33},     {3, 64, 65},
      {5, 1023, 255}, {6, 100, 40},  {7, 1023, 33},   {13, 40, 64},   {14, 256, 96},
      {15, 257, 64},  {16, 31, 31},  {17, 513, 100},  {29, 1, 5},     {33, 300, 129},
      {64, 96, 70},   {97, 600, 40}, {130, 1030, 31}, {530, 64, 300}, {1030, 40, 33}};
  constexpr Activation kActivations[] = {
      Activation::kNone, Activation::kGelu, Activation::kGeluTanh, Activation::kQuickGelu,
      Activation::kRelu, Activation::kSilu, Activation::kTanh};
  std::vector<LinearCase> cases;
  size_t i = 0;
  for (const auto& size : kSizes) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      cases.push_back(
          {size[0], size[1], size[2], dtype, kActivations[i % 7], i % 4 != 1, i % 3 == 0});
      ++i;
    }
  }
  return cases;
}

std::string AttentionCase::name() const {
  std::string text = fmt::format("{} [{}x{}] block {} key offset {}:", dtype_name(dtype), num_heads,
                                 head_dim, block_size, key_offset);
  for (const SeqCase& s : seqs) text += fmt::format(" {}/{}", s.num_queries, s.context_len);
  return text;
}

AttentionData::AttentionData(const AttentionCase& c) : case_(c) {
  const int64_t hidden = c.num_heads * c.head_dim;
  for (const SeqCase& s : c.seqs) {
    max_blocks_ = std::max(max_blocks_, ceil_div(s.context_len, c.block_size));
  }
  // Twice the blocks that are needed, used from the last to the first.
  const int64_t num_blocks = 2 * max_blocks_ * static_cast<int64_t>(c.seqs.size());
  const size_t elements = static_cast<size_t>(num_blocks * c.block_size * hidden);
  k_ = nan_bytes(elements * dtype_size(c.dtype));
  v_ = nan_bytes(elements * dtype_size(c.dtype));
  k_scales_ = kv_scales(c.dtype, c.num_heads, 1.0f);
  v_scales_ = kv_scales(c.dtype, c.num_heads, 1.03f);
  cache_ = {.k = k_.data(),
            .v = v_.data(),
            .dtype = c.dtype,
            .k_scale = is_quantized_kv(c.dtype) ? k_scales_.data() : nullptr,
            .v_scale = is_quantized_kv(c.dtype) ? v_scales_.data() : nullptr,
            .num_blocks = num_blocks,
            .block_size = c.block_size,
            .num_heads = c.num_heads,
            .head_dim = c.head_dim};
  int32_t next = static_cast<int32_t>(num_blocks);
  for (size_t s = 0; s < c.seqs.size(); ++s) {
    const int64_t tokens = c.seqs[s].context_len;
    for (int64_t b = 0; b < max_blocks_; ++b) tables_.push_back(--next);
    const int32_t* table = tables_.data() + static_cast<int64_t>(s) * max_blocks_;
    std::vector<float> qkv =
        random_values(static_cast<size_t>(tokens * 3 * hidden), static_cast<uint32_t>(10 + s));
    const std::vector<float> first_key(qkv.begin() + hidden, qkv.begin() + 2 * hidden);
    for (int64_t i = 0; i < tokens * hidden; ++i) {
      qkv[static_cast<size_t>(i / hidden * 3 * hidden + hidden + i % hidden)] +=
          c.key_offset * first_key[static_cast<size_t>(i % hidden)];
    }
    std::vector<int64_t> slots;
    std::vector<float> q;
    for (int64_t t = 0; t < tokens; ++t) {
      slots.push_back(table[t / c.block_size] * c.block_size + t % c.block_size);
      q.insert(q.end(), qkv.begin() + t * 3 * hidden, qkv.begin() + t * 3 * hidden + hidden);
    }
    reference_kernels().append_kv({tokens, qkv.data(), slots.data(), cache_}, CpuContext{});
    q_.push_back(std::move(q));
  }
}

std::vector<float> AttentionData::run(const Runner& runner,
                                      const std::vector<SeqCase>& seqs) const {
  const int64_t hidden = case_.num_heads * case_.head_dim;
  std::vector<float> qkv;
  std::vector<int32_t> query_start{0};
  std::vector<int32_t> context_lens;
  for (size_t s = 0; s < seqs.size(); ++s) {
    for (int64_t t = seqs[s].context_len - seqs[s].num_queries; t < seqs[s].context_len; ++t) {
      qkv.insert(qkv.end(), q_[s].begin() + t * hidden, q_[s].begin() + (t + 1) * hidden);
      qkv.resize(qkv.size() + static_cast<size_t>(2 * hidden), kNaN);
    }
    query_start.push_back(query_start.back() + static_cast<int32_t>(seqs[s].num_queries));
    context_lens.push_back(static_cast<int32_t>(seqs[s].context_len));
  }
  AttentionParams p;
  p.num_tokens = query_start.back();
  p.num_seqs = static_cast<int64_t>(seqs.size());
  p.qkv = qkv.data();
  p.query_start = query_start.data();
  p.context_lens = context_lens.data();
  p.block_tables = tables_.data();
  p.max_blocks_per_seq = max_blocks_;
  p.cache = cache_;
  p.scale = 1.0f / std::sqrt(static_cast<float>(case_.head_dim));
  const size_t values = static_cast<size_t>(p.num_tokens * hidden);
  std::vector<float> out(values + kGuard, kNaN);
  p.out = out.data();
  runner.attention(p);
  for (size_t i = values; i < out.size(); ++i) {
    if (!std::isnan(out[i])) return {};
  }
  out.resize(values);
  return out;
}

std::vector<AttentionCase> attention_cases() {
  const std::vector<SeqCase> mixed = {{1, 1}, {1, 17}, {5, 5}, {33, 33}, {13, 40}, {0, 3}, {1, 64}};
  std::vector<AttentionCase> cases;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kF8E4M3}) {
    for (const int64_t head_dim : {1, 7, 16, 33, 64, 80, 128, 200, 256}) {
      cases.push_back({mixed, 3, head_dim, dtype});
    }
    cases.push_back({{{1, 1023}}, 2, 64, dtype});
    cases.push_back({{{30, 200}, {2, 90}}, 1, 48, dtype, 32});
  }
  // Large scores that differ little, as trained models have them: float32 scores of 1e4 lose 1e-3,
  // and so would the weights.
  cases.push_back({{{33, 200}, {1, 90}}, 2, 64, DType::kF32, 16, 1e4f});
  return cases;
}

}  // namespace caravan
