#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "core/op_params.h"
#include "core/tensor.h"
#include "format/model_config.h"
#include "format/model_dir.h"
#include "format/tensor_source.h"
#include "format/weight_spec.h"
#include "models/batch.h"
#include "models/kv_cache.h"

namespace caravan {

/// Called after each step of the forward pass with what it made, [T, ...] float32 in host memory.
/// Names: "embedding"; for each layer i "h.i.ln_1", "h.i.attn.c_attn" (q, k, v), "h.i.attn" (before
/// c_proj), "h.i.attn.residual", "h.i.ln_2", "h.i.mlp.act" (after the activation), "h.i"; "ln_f".
using ForwardObserver = std::function<void(std::string_view name, const Tensor& value)>;

/// Largest sizes of one step.
struct StepLimits {
  int64_t max_num_tokens = 0;  // T: all tokens of one batch
  int64_t max_num_seqs = 0;
  int64_t max_num_logits = 0;  // rows of logits of one call of logits()
  int64_t max_context_len = 0;
};

/// Reads weights of `dtype` from an HF, checkpoint or engine directory: the dtype to compute in.
/// std::nullopt: the engine's own; else the stored one when it is 16 bits wide, else float16.
DType choose_weight_dtype(const ModelDir& dir, const TensorSource& source,
                          std::optional<DType> wanted);

/// The GPT-2 family: learned positions, pre-LayerNorm, fused QKV. The weights stay where they can
/// be read: an engine's in its mapped file (nothing is copied), others packed in memory of the
/// backend. Source: Radford et al. 2019; Hugging Face modeling_gpt2.py.
class Gpt2Model {
 public:
  /// Errors: kCorrupt or kUnsupported naming the tensor; kOutOfMemory.
  static Gpt2Model load(const ModelDir& dir, Backend& backend, std::optional<DType> dtype);
  /// Weights drawn at random on the backend, of the spread that GPT-2 is initialized with: for
  /// measuring speed at sizes of which no checkpoint is at hand.
  static Gpt2Model random(const ModelConfig& config, Backend& backend, DType dtype, uint64_t seed);

  Gpt2Model(Gpt2Model&&) = default;

  const ModelConfig& config() const { return config_; }
  DType weight_dtype() const { return weight_dtype_; }
  bool has_own_head() const { return has_own_head_; }
  /// Bytes of weights that one decode step reads: all matrices, biases and LayerNorm parameters,
  /// the head once, wpe not.
  int64_t bytes_per_decode_step() const;
  /// Bytes of all weights as the kernels read them.
  int64_t num_weight_bytes() const;

  /// Bytes that reserve() allocates: activations here, scratch in the backend.
  static int64_t activation_bytes(const ModelConfig& config, const StepLimits& limits,
                                  DType activation_dtype);
  static WorkspaceSpec workspace_spec(const ModelConfig& config, const StepLimits& limits);
  /// Allocates everything that steps up to `limits` need; nothing is allocated afterwards.
  void reserve(const StepLimits& limits);
  const StepLimits& limits() const { return limits_; }

  /// Runs the batch and leaves the final hidden states of its T tokens inside.
  /// Errors: kInvalidArgument when the batch exceeds the limits of reserve().
  void forward(const BatchTensors& batch, const KvCache& cache,
               const ForwardObserver& observer = nullptr);

  /// Logits of tokens `rows` (indices into the last batch's tokens, [R] int32; all tokens in order
  /// when its data is null). logits: [R, row_stride(vocab_size)] float32, written.
  void logits(const ConstTensor& rows, const Tensor& logits);

 private:
  struct LayerNormWeights {
    ConstTensor weight;  // [hidden_size] f32
    ConstTensor bias;
  };
  struct Layer {
    LayerNormWeights ln_1;
    LinearWeight c_attn;
    LinearWeight attn_c_proj;  // its bias and mlp_c_proj's are added with the residual
    const float* attn_c_proj_bias = nullptr;
    LayerNormWeights ln_2;
    LinearWeight c_fc;
    LinearWeight mlp_c_proj;
    const float* mlp_c_proj_bias = nullptr;
  };
  class Loader;
  struct Activations;

  Activations activations(int64_t num_tokens) const;

  Gpt2Model(ModelConfig config, Backend& backend)
      : config_(std::move(config)), backend_(&backend) {}

  ModelConfig config_;
  Backend* backend_;
  DType weight_dtype_ = DType::kF32;
  DType activation_dtype_ = DType::kF32;
  bool has_own_head_ = false;
  std::vector<TensorSource> sources_;  // keeps mapped engine files alive
  std::vector<Buffer> buffers_;
  LinearWeight wte_;
  ConstTensor wpe_;  // [max_seq_len, hidden_size]
  std::vector<Layer> layers_;
  LayerNormWeights ln_f_;
  LinearWeight head_;

  StepLimits limits_;
  Buffer activations_;
  int64_t num_tokens_ = 0;  // of the last batch
};

}  // namespace caravan
