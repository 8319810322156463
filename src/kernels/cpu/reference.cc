#include "kernels/cpu/reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/dtype.h"

namespace caravan {

namespace {

double weight_at(const LinearWeight& w, int64_t k, int64_t n) {
  const int64_t i = linear_index(w.layout, w.in_features, w.out_features, k, n);
  return load_as_f32(w.data, w.dtype, static_cast<size_t>(i));
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case Activation::kGeluTanh:
      // sqrt(2/pi); transformers NewGELUActivation
      return 0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::kQuickGelu:
      return x / (1.0 + std::exp(-1.702 * x));
    case Activation::kRelu:
      return x > 0.0 ? x : 0.0;
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
  }
  return x;
}

size_t scratch_bytes(const CpuScratchSpec&) { return 0; }

void embedding(const EmbeddingParams& p, const CpuContext&) {
  const int64_t hidden = p.wte.in_features;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    for (int64_t k = 0; k < hidden; ++k) {
      const double token = weight_at(p.wte, k, p.token_ids[t]);
      const double position =
          load_as_f32(p.wpe, p.wpe_dtype, static_cast<size_t>(p.positions[t] * hidden + k));
      p.out[t * hidden + k] = static_cast<float>(token + position);
    }
  }
}

void layer_norm(const LayerNormParams& p, const CpuContext&) {
  const int64_t n = p.hidden_size;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const float* x = p.x + t * n;
    float* y = p.y + t * n;
    double mean = 0;
    for (int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= static_cast<double>(n);
    double variance = 0;
    for (int64_t i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
    variance /= static_cast<double>(n);
    const double scale = 1.0 / std::sqrt(variance + p.epsilon);
    for (int64_t i = 0; i < n; ++i) {
      y[i] = static_cast<float>((x[i] - mean) * scale * p.weight[i] + p.bias[i]);
    }
  }
}

void linear(const LinearParams& p, const CpuContext& context) {
  const LinearWeight& w = p.weight;
#pragma omp parallel for num_threads(context.num_threads) schedule(static)
  for (int64_t n = 0; n < w.out_features; ++n) {
    for (int64_t t = 0; t < p.num_tokens; ++t) {
      double sum = 0;
      for (int64_t k = 0; k < w.in_features; ++k) {
        sum += static_cast<double>(p.x[t * w.in_features + k]) * weight_at(w, k, n);
      }
      if (w.bias != nullptr) sum += w.bias[n];
      sum = activate(p.activation, sum);
      const int64_t i = t * w.out_features + n;
      if (p.residual != nullptr) sum += p.residual[i];
      p.y[i] = static_cast<float>(sum);
    }
  }
}

// Indices into one block of the cache; see KvLayer.
size_t k_index(const KvLayer& c, int64_t slot, int64_t head, int64_t d) {
  const int64_t block = slot / c.block_size;
  return static_cast<size_t>(((block * c.num_heads + head) * c.head_dim + d) * c.block_size +
                             slot % c.block_size);
}
size_t v_index(const KvLayer& c, int64_t slot, int64_t head, int64_t d) {
  const int64_t block = slot / c.block_size;
  return static_cast<size_t>(
      ((block * c.num_heads + head) * c.block_size + slot % c.block_size) * c.head_dim + d);
}

// scales: of the head, for quantized dtypes.
double scale_of(const float* scales, int64_t head) {
  return scales == nullptr ? 1.0 : scales[head];
}

void store(void* data, DType dtype, size_t i, float value, const float* scales, int64_t head) {
  if (scales != nullptr) value *= 1.0f / scales[head];
  convert_elements(&value, DType::kF32, static_cast<char*>(data) + i * dtype_size(dtype), dtype, 1);
}

void append_kv(const AppendKvParams& p, const CpuContext&) {
  const KvLayer& c = p.cache;
  const int64_t hidden = c.num_heads * c.head_dim;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const float* k = p.qkv + t * 3 * hidden + hidden;
    const float* v = k + hidden;
    for (int64_t h = 0; h < c.num_heads; ++h) {
      for (int64_t d = 0; d < c.head_dim; ++d) {
        store(c.k, c.dtype, k_index(c, p.slot_mapping[t], h, d), k[h * c.head_dim + d], c.k_scale,
              h);
        store(c.v, c.dtype, v_index(c, p.slot_mapping[t], h, d), v[h * c.head_dim + d], c.v_scale,
              h);
      }
    }
  }
}

// One query and one head: softmax(scale q K^T) V over the first `length` tokens of the sequence.
void attend(const AttentionParams& p, const int32_t* block_table, int64_t length, int64_t head,
            const float* q, float* out) {
  const KvLayer& c = p.cache;
  const auto slot = [&](int64_t token) {
    return block_table[token / c.block_size] * c.block_size + token % c.block_size;
  };
  std::vector<double> weights(static_cast<size_t>(length));
  double largest = -INFINITY;
  for (int64_t j = 0; j < length; ++j) {
    double dot = 0;
    for (int64_t d = 0; d < c.head_dim; ++d) {
      dot += static_cast<double>(q[d]) * load_as_f32(c.k, c.dtype, k_index(c, slot(j), head, d));
    }
    const double score = dot * p.scale * scale_of(c.k_scale, head);
    weights[static_cast<size_t>(j)] = score;
    largest = std::max(largest, score);
  }
  double total = 0;
  for (double& weight : weights) {
    weight = std::exp(weight - largest);
    total += weight;
  }
  for (int64_t d = 0; d < c.head_dim; ++d) {
    double sum = 0;
    for (int64_t j = 0; j < length; ++j) {
      sum +=
          weights[static_cast<size_t>(j)] * load_as_f32(c.v, c.dtype, v_index(c, slot(j), head, d));
    }
    out[d] = static_cast<float>(sum * scale_of(c.v_scale, head) / total);
  }
}

void attention(const AttentionParams& p, const CpuContext&) {
  const KvLayer& c = p.cache;
  const int64_t hidden = c.num_heads * c.head_dim;
  for (int64_t s = 0; s < p.num_seqs; ++s) {
    const int32_t* block_table = p.block_tables + s * p.max_blocks_per_seq;
    for (int64_t t = p.query_start[s]; t < p.query_start[s + 1]; ++t) {
      const int64_t length = p.context_lens[s] - (p.query_start[s + 1] - 1 - t);
      for (int64_t h = 0; h < c.num_heads; ++h) {
        attend(p, block_table, length, h, p.qkv + t * 3 * hidden + h * c.head_dim,
               p.out + t * hidden + h * c.head_dim);
      }
    }
  }
}

}  // namespace

const CpuKernels& reference_kernels() {
  static const CpuKernels kernels{scratch_bytes, embedding, layer_norm,
                                  linear,        append_kv, attention};
  return kernels;
}

}  // namespace caravan
