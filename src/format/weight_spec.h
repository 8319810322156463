#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/linear_layout.h"
#include "core/tensor.h"
#include "format/model_config.h"
#include "format/tensor_source.h"

namespace caravan {

enum class WeightRole : uint8_t {
  kVector,             // biases and LayerNorm parameters; engines store them as float32
  kLinear,             // c_attn, c_proj, c_fc, mlp.c_proj: Conv1D, [in, out]
  kTokenEmbedding,     // wte: [vocab, hidden]; also the head when it is tied
  kPositionEmbedding,  // wpe: [positions, hidden]
  kHead,               // lm_head: [vocab, hidden], only when it differs from wte
};

/// How a tensor is divided among tensor-parallel ranks.
enum class WeightSplit : uint8_t {
  kNone,        // every rank has it whole
  kColumns,     // out_features divided: c_fc; its bias likewise
  kQkvColumns,  // out_features divided within each of the q, k and v thirds: c_attn; its bias too
  kRows,        // in_features divided: c_proj, mlp.c_proj
  kVocabulary,  // rows of wte and lm_head, padded to equal parts
};

/// One tensor that the architecture needs, under its canonical name: Hugging Face's, without
/// "transformer.": "wte.weight", "h.3.attn.c_attn.weight", "ln_f.bias", "lm_head.weight".
struct WeightSpec {
  std::string name;
  WeightRole role = WeightRole::kVector;
  WeightSplit split = WeightSplit::kNone;
  Shape shape;              // as a Hugging Face checkpoint stores it
  int64_t in_features = 0;  // matrices only
  int64_t out_features = 0;
  LinearLayout stored_layout = LinearLayout::kInOut;  // matrices: kInOut (Conv1D) or kOutIn
};

/// In the order of the forward pass: wte, wpe, h.0..., ln_f, and lm_head when has_own_head.
std::vector<WeightSpec> gpt2_weight_specs(const ModelConfig& config, bool has_own_head);

/// N of "h.N.attn.c_attn.bias" or "h.N.attn.c_proj.bias", which centering a quantized KV cache
/// changes; nullopt for other tensors.
std::optional<int64_t> attention_bias_layer(const WeightSpec& spec);

/// Scales of a quantized KV cache, "h.N.attn.k_scale" and "h.N.attn.v_scale" layer by layer:
/// [num_heads] float32, divided by heads. Checkpoint and engine directories may have them.
std::vector<WeightSpec> kv_scale_specs(const ModelConfig& config);

struct ResolvedWeight {
  WeightSpec spec;
  const StoredTensor* tensor = nullptr;
};

struct ResolvedWeights {
  std::vector<ResolvedWeight> weights;   // same order as the specs
  bool has_own_head = false;             // a stored lm_head that differs from wte, or untied
  bool has_stored_head = false;          // beside wte
  std::vector<std::string> skipped;      // stored names that hold no weights: masks, positions
  std::vector<std::string> other_heads;  // stored names of heads that are not the language model's
};

/// Finds every weight under either name form and checks its shape and dtype (f32, f16, bf16, f64).
/// As transformers 5 does:
/// - Stored masks and positions (attn.bias, attn.masked_bias, position_ids) are skipped, and, with
///   one warning, other heads beside the language model's (v_head, score, classifier, qa_outputs,
///   multiple_choice_head) and cross-attention, which a decoder does not run.
/// - Tied without wte.weight: lm_head.weight serves as both.
/// - A stored lm_head is compared with wte: equal bytes count as tied; different ones are kept,
///   whatever tie_word_embeddings says, with a warning when it says tied.
/// Untied without a stored lm_head is an error.
/// has_kv_scales: the tensors of kv_scale_specs() are expected too; load_kv_calibration() reads
/// them. Errors: kCorrupt naming the tensor, its shape and the expected one, and every missing
/// tensor; kUnsupported naming every tensor that has no place in the architecture.
ResolvedWeights resolve_gpt2_weights(const TensorSource& source, const ModelConfig& config,
                                     const std::string& where, bool has_kv_scales = false);

}  // namespace caravan
