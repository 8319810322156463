#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "core/op_params.h"
#include "core/tensor.h"
#include "format/model_config.h"
#include "models/batch.h"
#include "models/gpt2_weights.h"

namespace caravan {

/// Largest sizes of one step.
struct StepLimits {
  int64_t max_num_tokens = 0;  // T: all tokens of one batch
  int64_t max_num_seqs = 0;
  int64_t max_num_logits = 0;  // rows of logits of one call of logits()
  int64_t max_context_len = 0;
};

/// Called after each operator of a step with what it made, [T, ...] float32 in host memory. Names:
/// "embedding"; for each layer i "h.i.ln_1", "h.i.attn.c_attn" (q, k, v), "h.i.attn" (before
/// c_proj), "h.i.attn.residual", "h.i.ln_2", "h.i.mlp.act" (after the activation), "h.i"; "ln_f".
/// Returns true when it changed the values: what comes next then reads them, rounded to the
/// activations' dtype. (A LayerNorm adds to the stream and normalizes at once: "h.i.ln_2" is made
/// before "h.i.attn.residual" can be changed.)
using OpHook = std::function<bool(std::string_view name, const Tensor& value)>;

/// Where the values of a step of T tokens lie. A: Backend::activation_dtype() of the weights.
struct Gpt2Activations {
  Tensor x;                  // [T, hidden_size] f32: the residual stream
  Tensor normed;             // [T, hidden_size] of A; attention's output as well
  Tensor delta;              // [T, hidden_size] of A: what is added to x next
  Tensor qkv;                // [T, 3 * hidden_size] of A
  Tensor inner;              // [T, ffn_size] of A, the same memory
  void* gathered = nullptr;  // [max_num_logits, hidden_size] of A

  /// Bytes for steps up to `limits`.
  static int64_t num_bytes(const ModelConfig& config, const StepLimits& limits, DType activation);
  /// Views of `memory` of num_bytes() for a step of num_tokens <= limits.max_num_tokens.
  static Gpt2Activations at(void* memory, const ModelConfig& config, const StepLimits& limits,
                            DType activation, int64_t num_tokens);
};

/// Scratch that the backend needs for steps up to `limits`.
WorkspaceSpec gpt2_workspace_spec(const ModelConfig& config, const StepLimits& limits);

/// The arithmetic of GPT-2 over one batch, part by part: what Gpt2Model and LayerStream share.
/// Parts run in order; each reads what the one before left in `values`. Source: Radford et al.
/// 2019; Hugging Face modeling_gpt2.py.
class Gpt2Step {
 public:
  /// `hook` may be empty. All arguments must outlive the step.
  Gpt2Step(const ModelConfig& config, Backend& backend, const Gpt2Activations& values,
           const OpHook& hook)
      : config_(config), backend_(backend), values_(values), hook_(hook) {}

  /// x = wte[ids] + wpe[positions].
  void embed(const Gpt2Embedding& weights, const BatchTensors& batch);
  /// Layer i but for its last sum: what the MLP adds to x is added by the LayerNorm that follows.
  void layer(int64_t i, const Gpt2Layer& weights, const BatchTensors& batch, const KvLayer& cache);
  /// normed = ln_f(x).
  void final_norm(const Gpt2LayerNorm& ln_f);

  /// Continues from states that were whole when they were written to x, after the embedding alone
  /// or after finish_layer(). `zeros`: [T, hidden_size] of A; adding them keeps the next LayerNorm
  /// on the kernel that adds, whose sums may be ordered differently.
  void continue_after_layer(const Tensor& zeros) { delta_ = zeros; }
  /// Adds what the last layer left, so that x can be taken away whole; normed is overwritten.
  /// `norm`: any LayerNorm.
  void finish_layer(const Gpt2LayerNorm& norm);

 private:
  void norm(const Gpt2LayerNorm& weights, const ConstTensor& delta, const float* delta_bias);
  void linear(const Tensor& x, const LinearWeight& weight, Activation activation, const Tensor& y);
  void add_pending(const Gpt2LayerNorm& weights);
  void observe(const char* part, const Tensor& value);
  void show(const std::string& name, const Tensor& value);

  const ModelConfig& config_;
  Backend& backend_;
  const Gpt2Activations& values_;
  const OpHook& hook_;
  int64_t layer_ = -1;       // of the names
  bool is_pending_ = false;  // delta_ is of layer_, not zeros
  ConstTensor delta_;        // added to x by the next LayerNorm
  const float* delta_bias_ = nullptr;
  std::vector<std::byte> raw_;
  std::vector<float> shown_;
};

}  // namespace caravan
