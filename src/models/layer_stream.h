#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"
#include "format/model_config.h"
#include "format/model_dir.h"
#include "models/batch.h"
#include "models/device_batch.h"
#include "models/gpt2_step.h"
#include "models/gpt2_weights.h"
#include "models/kv_cache.h"

namespace caravan {

struct LayerStreamOptions {
  std::optional<DType> dtype = std::nullopt;           // unset: choose_weight_dtype()
  std::optional<DType> kv_cache_dtype = std::nullopt;  // unset: the engine's, else the weights'
  KvScales kv_scales = {};  // of all layers, for a quantized cache; empty: the directory's
  int64_t max_num_batched_tokens = 512;  // of one step
  int64_t max_num_seqs = 32;             // of one step
  int64_t max_num_logits = 64;           // rows of one call of OnLogits
  int64_t max_seq_len = 0;               // 0: the engine's limit, else the model's
  bool verify_weights = true;            // each part as it is loaded, see WeightCheck
};

/// What a LayerStream holds at most at one time, in bytes. The hidden states are the caller's.
struct LayerStreamBytes {
  int64_t weights = 0;    // the largest part as the kernels read it: embedding, one layer, or head
  int64_t source = 0;     // the largest tensor as stored: pages of the file while it is packed
  int64_t kv_cache = 0;   // one layer's
  int64_t workspace = 0;  // activations, kernel scratch, logits, batch

  int64_t total() const { return weights + source + kv_cache + workspace; }
};

/// A model of which one part is in memory at a time: the embedding, one layer, or the head. Any
/// number of sequences is run through the resident part before the next is loaded, so a model many
/// times larger than memory can be run over a text. The arithmetic is Gpt2Model's: the same bits.
///
///   LayerStream stream(dir, std::move(backend), {.dtype = DType::kF32});
///   std::vector<float> states(num_tokens * stream.config().hidden_size);
///   stream.load_embedding();
///   stream.embed(ids, lengths, states);
///   for (int64_t i = 0; i < stream.config().num_layers; ++i) {
///     stream.load_layer(i);
///     stream.run_layer(lengths, states, hook);
///   }
///   stream.load_head();
///   stream.run_head(states, on_logits);
///
/// Sequences lie one after the other in `states`, [num_tokens, hidden_size] float32 in host memory:
/// the residual stream, whole after each part. `lengths` are their tokens; position 0 is the first
/// token of each. Steps take whole sequences while they fit; a longer one is cut into chunks.
class LayerStream {
 public:
  /// OpHook with `first_token`, the row of `states` that row 0 of the value belongs to. Rows come
  /// in order; one operator is called once for each step.
  using Hook = std::function<bool(std::string_view name, int64_t first_token, const Tensor& value)>;
  /// logits: [num_rows, vocab_size] of rows first_row... of the states, valid during the call.
  using OnLogits = std::function<void(int64_t first_row, const Tensor& logits)>;

  /// Errors: as Gpt2Weights::open; kUnsupported for a cache dtype that the backend lacks;
  /// kInvalidArgument when max_seq_len exceeds the model or the engine.
  LayerStream(const ModelDir& dir, std::unique_ptr<Backend> backend,
              const LayerStreamOptions& options);

  const ModelConfig& config() const { return weights_.config(); }
  const Backend& backend() const { return *backend_; }
  const Gpt2Weights& weights() const { return weights_; }
  DType weight_dtype() const { return weights_.dtype(); }
  DType activation_dtype() const { return activation_dtype_; }
  DType kv_cache_dtype() const { return kv_dtype_; }
  const KvScales& kv_scales() const { return kv_scales_; }
  bool has_own_head() const { return weights_.has_own_head(); }
  int64_t max_seq_len() const { return limits_.max_context_len; }

  /// Each drops the resident part and loads another. Errors: kOutOfMemory; kInvalidArgument for a
  /// layer that the model lacks.
  void load_embedding();
  void load_layer(int64_t index);
  void load_head();

  /// states = wte[ids] + wpe[position]. `hook`: "embedding".
  /// Errors (also of the other two): kInvalidArgument when sizes disagree, a sequence is empty or
  /// longer than max_seq_len(), an id is outside the vocabulary, or the part is not loaded.
  void embed(std::span<const int32_t> ids, std::span<const int64_t> lengths,
             std::span<float> states, const Hook& hook = nullptr);
  /// states = layer(states). `hook`: the layer's operators, "h.i.ln_1" to "h.i".
  void run_layer(std::span<const int64_t> lengths, std::span<float> states,
                 const Hook& hook = nullptr);
  /// Logits of every row of `states` (any rows: the head knows no sequences), which stay as they
  /// are. `hook`: "ln_f".
  void run_head(std::span<const float> states, const OnLogits& on_logits,
                const Hook& hook = nullptr);

  /// Bytes for a model of this config with weights of `dtype` packed for `backend`, which may be
  /// one that only plans. options.dtype is not read; options.kv_cache_dtype unset: `dtype`.
  static LayerStreamBytes num_bytes(const ModelConfig& config, const Backend& backend, DType dtype,
                                    const LayerStreamOptions& options);

 private:
  enum class Part { kNone, kEmbedding, kLayer, kHead };

  void unload();
  void check_loaded(Part part, const char* name) const;
  void run_steps(std::span<const int32_t> ids, std::span<const int64_t> lengths,
                 std::span<float> states, const Hook& hook);
  void run_step(int64_t first_token, float* states, const Hook& hook);
  BatchTensors prepare();
  Gpt2Activations activations(int64_t num_tokens) const;

  std::unique_ptr<Backend> backend_;
  Gpt2Weights weights_;
  DType activation_dtype_;
  DType kv_dtype_;
  KvScales kv_scales_;
  StepLimits limits_;
  int64_t num_blocks_;

  Part part_ = Part::kNone;
  int64_t layer_index_ = 0;
  std::vector<Buffer> buffers_;  // of the resident part
  Gpt2Embedding embedding_;
  Gpt2Layer layer_;
  Gpt2Head head_;

  std::optional<KvCache> cache_;  // of one layer
  Buffer activations_;
  Buffer zeros_;  // [max_num_tokens, hidden_size] of A
  Buffer logits_;
  int64_t logits_stride_;
  std::vector<float> host_logits_;
  Batch batch_;
  std::optional<DeviceBatch> device_batch_;
};

}  // namespace caravan
