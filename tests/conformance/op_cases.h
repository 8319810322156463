#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/op_params.h"
#include "core/tensor.h"
#include "kernels/cpu/cpu_kernels.h"

namespace caravan {

/// Values of one test, repeatable: uniform in [-1, 1).
std::vector<float> random_values(size_t count, uint32_t seed);

/// How far a linear layer of float32 sums may be from the exact one. A chain of n roundings is off
/// by about sqrt(n) units of 2^-24 of sum |x| |w|: four times that is allowed, eight units for bias
/// and residual, and sixteen units of the result for the activation, whose slope is below 1.2.
double linear_tolerance(int64_t in_features, double magnitude, double want);

/// Scales under which values in [-1, 1) fill the range of a quantized dtype, a little different
/// from head to head.
std::vector<float> kv_scales(DType dtype, int64_t num_heads, float first);

/// Equal bits, NaN included.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b);

/// Runs kernels with scratch memory of exactly the size they asked for, filled with NaN, so that a
/// value they did not write themselves shows in the result.
class Runner {
 public:
  Runner(const CpuKernels& kernels, int num_threads) : kernels_(kernels), threads_(num_threads) {}
  void layer_norm(const LayerNormParams& p) const;
  void linear(const LinearParams& p) const;
  void embedding(const EmbeddingParams& p) const;
  void append_kv(const AppendKvParams& p) const;
  void attention(const AttentionParams& p) const;

 private:
  template <typename Call>
  void with_context(const CpuScratchSpec& spec, const Call& call) const;

  const CpuKernels& kernels_;
  int threads_;
};

/// One linear layer with its inputs. The weights are rounded to dtype once and packed for each
/// instruction set; x is followed by NaN, y is surrounded by NaN.
struct LinearCase {
  int64_t num_tokens;
  int64_t in_features;
  int64_t out_features;
  DType dtype = DType::kF32;
  Activation activation = Activation::kNone;
  bool with_bias = true;
  bool with_residual = false;  // y itself

  std::string name() const;
};

class LinearData {
 public:
  explicit LinearData(const LinearCase& c);
  /// Rows [first, first + count) of the case alone.
  std::vector<float> run(const Runner& runner, LinearLayout layout, int64_t first,
                         int64_t count) const;
  std::vector<float> run(const Runner& runner, LinearLayout layout) const {
    return run(runner, layout, 0, case_.num_tokens);
  }
  /// The reference's result and, element by element, sum |x| |w| + |bias|.
  void reference(std::vector<float>& want, std::vector<float>& magnitude) const;
  /// x becomes what the AMX kernel sees of it.
  void round_x_to_bfloat16();

 private:
  LinearCase case_;
  std::vector<float> x_;  // NaN after the last row
  std::vector<float> bias_;
  std::vector<float> residual_;
  Buffer weight_;  // [in, out] of dtype
};

/// The table of linear layers: sizes odd on purpose, both sides of every blocking boundary.
std::vector<LinearCase> linear_cases();

/// One sequence of a step: its last `num_queries` of `context_len` tokens are computed.
struct SeqCase {
  int64_t num_queries;
  int64_t context_len;
};

struct AttentionCase {
  std::vector<SeqCase> seqs;
  int64_t num_heads;
  int64_t head_dim;
  DType dtype = DType::kF32;
  int64_t block_size = 16;
  float key_offset = 0.0f;  // this times the first token's key is added to every key

  std::string name() const;
};

/// A paged cache of the case's sequences: shuffled blocks, NaN in every slot that holds no token,
/// and queries for every token.
class AttentionData {
 public:
  explicit AttentionData(const AttentionCase& c);
  /// [queries of all sequences, heads * head_dim]
  std::vector<float> run(const Runner& runner) const { return run(runner, case_.seqs); }
  /// The same sequences with other query and context lengths, e.g. one chunk of a prefill.
  std::vector<float> run(const Runner& runner, const std::vector<SeqCase>& seqs) const;

 private:
  AttentionCase case_;
  std::vector<std::vector<float>> q_;  // of each sequence: [context_len, heads * head_dim]
  Buffer k_;
  Buffer v_;
  std::vector<float> k_scales_;  // of each head, for quantized caches
  std::vector<float> v_scales_;
  KvLayer cache_;
  int64_t max_blocks_ = 0;
  std::vector<int32_t> tables_;
};

std::vector<AttentionCase> attention_cases();

}  // namespace caravan
