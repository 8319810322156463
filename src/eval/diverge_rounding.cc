#include "eval/diverge_rounding.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/split_mix.h"

namespace caravan {

namespace {

constexpr double kF32 = 1.0 / (1 << 24);

double squared(double x) { return x * x; }

// Of a dtype that is coarser than the float32 in which both sides sum; 0 for float32.
double coarse(DType dtype) { return dtype == DType::kF32 ? 0 : unit_roundoff(dtype); }

/// Uniform in [-1, 1): a function of its arguments.
double uniform(uint64_t key, uint64_t index) {
  const uint64_t bits = split_mix(key + (index + 1) * 0x9e3779b97f4a7c15ull);
  return static_cast<double>(static_cast<int64_t>(bits >> 11)) * 0x1p-52 - 1.0;
}

uint64_t key_of(const OpId& op, uint64_t seed) {
  return split_mix(seed * 1000003 + static_cast<uint64_t>(op.layer + 1) * 16 +
                   static_cast<uint64_t>(op.kind));
}

}  // namespace

SideRounding rounding_of(const LayerStream& stream) {
  return {.weights = stream.weight_dtype(),
          .activations = stream.activation_dtype(),
          .kv_cache = stream.kv_cache_dtype(),
          .kv_scales = stream.kv_scales()};
}

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 0x1p-53;
    case DType::kF32:
      return 0x1p-24;
    case DType::kF16:
      return 0x1p-11;
    case DType::kBF16:
      return 0x1p-8;
    case DType::kF8E4M3:
      return 0x1p-4;
    default:
      return 0;
  }
}

RoundingModel::RoundingModel(const ModelConfig& config, SideRounding model, SideRounding reference,
                             int64_t max_sequence)
    : config_(config),
      sides_{std::move(model), std::move(reference)},
      max_sequence_(max_sequence) {}

// Of the relative move of one input of the operator that reads what `op` made.
double RoundingModel::amplitude(const OpId& op) const {
  double total = 0;
  // A sum of n terms in float32 passes through n roundings of partial sums, which grow like the
  // square root of their place: together sqrt(n / 2) roundings of the result.
  const auto add_sum = [&](int64_t n) { total += 2 * squared(kF32) * static_cast<double>(n) / 2; };
  switch (op.kind) {
    case OpKind::kLn1:
    case OpKind::kAttention:
    case OpKind::kLn2:
    case OpKind::kMlpAct:
    case OpKind::kLnF:
      for (const SideRounding& side : sides_) {
        // The weights, the inputs (also where the dtype of activations is float32: AMX rounds what
        // it multiplies with bfloat16 weights), and what is rounded inside.
        total += 2 * squared(coarse(side.weights)) + squared(coarse(side.activations));
        if (side.rounds_inside) total += squared(coarse(side.activations));
      }
      add_sum(op.kind == OpKind::kMlpAct ? config_.ffn_size : config_.hidden_size);
      break;
    case OpKind::kEmbedding:
    case OpKind::kAttnResidual:
    case OpKind::kLayer:
      for (const SideRounding& side : sides_) total += squared(coarse(side.stream));
      add_sum(config_.hidden_size);
      break;
    case OpKind::kCAttn:
      for (const SideRounding& side : sides_) total += squared(coarse(side.activations));
      add_sum(max_sequence_);
      break;
    case OpKind::kLogits:
      break;
  }
  return std::sqrt(total);
}

void RoundingModel::move(const OpId& op, uint64_t seed, int64_t first_token,
                         std::span<float> values) const {
  if (op.kind == OpKind::kCAttn) {
    move_qkv(op, seed, first_token, values);
    return;
  }
  const double a = amplitude(op);
  const int64_t width = op.kind == OpKind::kMlpAct ? config_.ffn_size : config_.hidden_size;
  const uint64_t key = key_of(op, seed);
  const auto first = static_cast<uint64_t>(first_token * width);
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] *= static_cast<float>(1.0 + a * uniform(key, first + i));
  }
}

// q, k and v: each element as the others; K and V as the caches round them; and each key as a
// whole, because the score of a query and a key is rounded as one number.
void RoundingModel::move_qkv(const OpId& op, uint64_t seed, int64_t first_token,
                             std::span<float> values) const {
  const int64_t hidden = config_.hidden_size;
  const int64_t head_dim = config_.head_dim();
  const double a = amplitude(op);
  double cache = 0;
  double score = 2 * squared(kF32) * static_cast<double>(head_dim);
  for (const SideRounding& side : sides_) {
    cache += squared(coarse(side.kv_cache));
    if (side.rounds_inside) score += squared(coarse(side.activations));
  }
  cache = std::sqrt(cache);
  score = std::sqrt(score);
  const uint64_t key = key_of(op, seed);
  const auto num_tokens = static_cast<int64_t>(values.size()) / (3 * hidden);
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < num_tokens; ++t) {
    float* row = values.data() + t * 3 * hidden;
    const auto first = static_cast<uint64_t>((first_token + t) * 3 * hidden);
    for (int64_t i = 0; i < 3 * hidden; ++i) {
      const auto index = first + static_cast<uint64_t>(i);
      const int64_t part = i / hidden;  // q, k, v
      const auto head = static_cast<size_t>(op.layer * config_.num_heads + i % hidden / head_dim);
      double e = a * uniform(key, index);
      if (part > 0) e += cache * uniform(key + 1, index);
      if (part == 1) {
        e += score * uniform(key + 2, first + static_cast<uint64_t>(i % hidden / head_dim));
      }
      double moved = static_cast<double>(row[i]) * (1.0 + e);
      for (const SideRounding& side : sides_) {
        if (part == 0 || side.kv_cache != DType::kI8) continue;
        const std::vector<float>& scales = part == 1 ? side.kv_scales.k : side.kv_scales.v;
        if (head < scales.size()) {
          moved += 0.5 * static_cast<double>(scales[head]) * uniform(key + 3, index);
        }
      }
      row[i] = static_cast<float>(moved);
    }
  }
}

double RoundingModel::output_error(const OpId& op, double added) const {
  double total = 0;
  for (const SideRounding& side : sides_) {
    const double activations = squared(std::max(coarse(side.activations), kF32));
    const double stream = squared(std::max(coarse(side.stream), kF32));
    switch (op.kind) {
      case OpKind::kEmbedding:
        // Two tables, each stored in the weights' dtype.
        total += 2 * squared(coarse(side.weights)) + stream;
        break;
      case OpKind::kAttnResidual:
      case OpKind::kLayer:
        total += activations + stream * squared(added);
        break;
      case OpKind::kLogits:
        total += squared(std::max(coarse(side.logits), kF32));
        if (side.rounds_inside) total += activations;
        break;
      case OpKind::kMlpAct:
        // exp and erf are within 4 roundings.
        total += activations + 16 * squared(kF32);
        if (side.rounds_inside) total += activations;
        break;
      default:
        total += activations + squared(kF32);
        break;
    }
  }
  return std::sqrt(total / 3);
}

}  // namespace caravan
