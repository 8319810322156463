#pragma once

#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "core/op_params.h"
#include "core/tensor.h"
#include "format/model_config.h"
#include "format/model_dir.h"
#include "models/batch.h"
#include "models/gpt2_step.h"
#include "models/gpt2_weights.h"
#include "models/kv_cache.h"

namespace caravan {

/// Called after each operator of the forward pass with what it made, [T, ...] float32 in host
/// memory, under the names of OpHook.
using ForwardObserver = std::function<void(std::string_view name, const Tensor& value)>;

/// The GPT-2 family: learned positions, pre-LayerNorm, fused QKV. The weights stay where they can
/// be read: an engine's in its mapped file (nothing is copied), others packed in memory of the
/// backend. LayerStream runs the same arithmetic with one layer in memory at a time.
class Gpt2Model {
 public:
  /// Errors: kCorrupt or kUnsupported naming the tensor; kOutOfMemory.
  /// is_verified: the stored weights are checked (WeightCheck::kInBackground).
  static Gpt2Model load(const ModelDir& dir, Backend& backend, std::optional<DType> dtype,
                        bool is_verified = true);
  /// Weights drawn at random on the backend, of the spread that GPT-2 is initialized with: for
  /// measuring speed at sizes of which no checkpoint is at hand.
  static Gpt2Model random(const ModelConfig& config, Backend& backend, DType dtype, uint64_t seed);

  Gpt2Model(Gpt2Model&&) = default;

  const ModelConfig& config() const { return weights_.config(); }
  DType weight_dtype() const { return weights_.dtype(); }
  bool has_own_head() const { return weights_.has_own_head(); }
  /// To call before any result of forward() leaves: waits until the weights are known to be right,
  /// and that nobody wrote to them since. Errors: kCorrupt.
  void check_weights() const;
  /// The second alone, from any thread.
  void check_unchanged() const { weights_.check_unchanged(); }
  /// Bytes of weights that one decode step reads: all matrices, biases and LayerNorm parameters,
  /// the head once, wpe not.
  int64_t bytes_per_decode_step() const;
  /// Bytes of all weights as the kernels read them.
  int64_t num_weight_bytes() const;

  /// Bytes that reserve() allocates: activations here, scratch in the backend.
  static int64_t activation_bytes(const ModelConfig& config, const StepLimits& limits,
                                  DType activation_dtype) {
    return Gpt2Activations::num_bytes(config, limits, activation_dtype);
  }
  static WorkspaceSpec workspace_spec(const ModelConfig& config, const StepLimits& limits) {
    return gpt2_workspace_spec(config, limits);
  }
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
  Gpt2Model(Gpt2Weights weights, Backend& backend);
  Gpt2Activations activations(int64_t num_tokens) const;

  Backend* backend_;
  Gpt2Weights weights_;  // keeps a mapped engine file alive
  DType activation_dtype_;
  std::vector<Buffer> buffers_;
  Gpt2Embedding embedding_;
  std::vector<Gpt2Layer> layers_;
  Gpt2Head head_;

  StepLimits limits_;
  Buffer activations_;
  int64_t num_tokens_ = 0;  // of the last batch
};

}  // namespace caravan
