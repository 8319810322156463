#pragma once

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/linear_fma.h"

namespace caravan::cpu {

/// Elements of wte that one token's vector is gathered from: the first one, and where the others
/// lie. Element k is at begin[k / 2 * pair_stride + k % 2 * odd_offset].
struct TokenColumn {
  int64_t begin;
  int64_t pair_stride;
  int64_t odd_offset;
};

static inline TokenColumn token_column(const LinearWeight& w, int64_t token) {
  const int64_t panel = token / kPanel;
  const int64_t column = token % kPanel;
  switch (w.layout) {
    case LinearLayout::kInOut:
      return {token, 2 * w.out_features, w.out_features};
    case LinearLayout::kOutIn:
      return {token * w.in_features, 2, 1};
    case LinearLayout::kPanel32:
      return {panel * w.in_features * kPanel + column, 2 * kPanel, kPanel};
    case LinearLayout::kPanel32Pairs:
    case LinearLayout::kCore8x8:  // not read here
      break;
  }
  return {panel * align_up(w.in_features, 32) * kPanel + column * 2, 2 * kPanel, 1};
}

/// out[k] = wte column + wpe row for first <= k < last; first is a multiple of 16.
template <class V, class Token, class Position>
void embed_range(const Token* column, const TokenColumn& at, const Position* position,
                 int64_t first, int64_t last, float* out) {
  for (int64_t k = first; k < last; k += 16) {
    const int width = static_cast<int>(min_of(16, last - k));
    Token lanes[16] = {};
    for (int i = 0; i < width; ++i) {
      lanes[i] = column[(k + i) / 2 * at.pair_stride + (k + i) % 2 * at.odd_offset];
    }
    (V::load(lanes) + V::load(position + k, width)).store(out + k, width);
  }
}

template <class V, class Token, class Position>
void embedding_of(const EmbeddingParams& p, const CpuContext& context) {
  constexpr int64_t kPart = 512;
  const int64_t hidden = p.wte.in_features;
  const int64_t parts = div_up(hidden, kPart);
  const bool parallel = context.num_threads > 1 && p.num_tokens * hidden >= 4096;
#pragma omp parallel for schedule(static) num_threads(context.num_threads) if (parallel)
  for (int64_t item = 0; item < p.num_tokens * parts; ++item) {
    const int64_t t = item / parts;
    const int64_t first = item % parts * kPart;
    const TokenColumn at = token_column(p.wte, p.token_ids[t]);
    embed_range<V>(static_cast<const Token*>(p.wte.data) + at.begin, at,
                   static_cast<const Position*>(p.wpe) + p.positions[t] * hidden, first,
                   min_of(first + kPart, hidden), p.out + t * hidden);
  }
}

template <class V, class Token>
void embedding_with(const EmbeddingParams& p, const CpuContext& context) {
  switch (p.wpe_dtype) {
    case DType::kF16:
      return embedding_of<V, Token, Half>(p, context);
    case DType::kBF16:
      return embedding_of<V, Token, BFloat16>(p, context);
    default:
      return embedding_of<V, Token, float>(p, context);
  }
}

template <class V>
void embedding(const EmbeddingParams& p, const CpuContext& context) {
  switch (p.wte.dtype) {
    case DType::kF16:
      return embedding_with<V, Half>(p, context);
    case DType::kBF16:
      return embedding_with<V, BFloat16>(p, context);
    default:
      return embedding_with<V, float>(p, context);
  }
}

}  // namespace caravan::cpu
