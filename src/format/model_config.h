#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/op_params.h"

namespace caravan {

// Upper limits of a config's sizes: far above any GPT-2 (camel-5b: 50,258, 4096, 24, 16384, 2048)
// and low enough that every product of them, parameters of the whole model included, fits in 63
// bits.
inline constexpr int64_t kMaxVocabSize = int64_t{1} << 24;
inline constexpr int64_t kMaxHiddenSize = int64_t{1} << 17;  // n_head is at most n_embd
inline constexpr int64_t kMaxLayers = int64_t{1} << 12;
inline constexpr int64_t kMaxFfnSize = int64_t{1} << 20;
inline constexpr int64_t kMaxPositions = int64_t{1} << 22;

/// What the model computes: GPT2Config, checked. Field names are the config's own where they exist.
struct ModelConfig {
  std::string architecture = "GPT2LMHeadModel";
  int64_t vocab_size = 0;                         // vocab_size
  int64_t hidden_size = 0;                        // n_embd
  int64_t num_layers = 0;                         // n_layer
  int64_t num_heads = 0;                          // n_head
  int64_t ffn_size = 0;                           // n_inner, default 4 * n_embd
  int64_t max_seq_len = 0;                        // n_positions, or n_ctx when it stands alone
  Activation activation = Activation::kGeluTanh;  // activation_function, default "gelu_new"
  float layer_norm_epsilon = 1e-5f;
  bool scale_attn_weights = true;
  bool scale_attn_by_inverse_layer_idx = false;
  bool reorder_and_upcast_attn =
      false;  // changes rounding in half precision only; scores are f32 here
  bool tie_word_embeddings = true;
  DType torch_dtype = DType::kF32;     // what the checkpoint says it was saved as
  std::vector<int32_t> eos_token_ids;  // config.json, overridden by generation_config.json
  int32_t bos_token_id = -1;
  int32_t pad_token_id = -1;
  std::string activation_function = "gelu_new";  // as written in the file

  int64_t head_dim() const { return hidden_size / num_heads; }
  /// Factor on q k^T in layer `layer`: 1/sqrt(head_dim) and 1/(layer+1) as configured.
  float attention_scale(int64_t layer) const;
  /// Parameters, a tied head counted once.
  int64_t num_parameters() const;
};

/// Reads and checks config.json, and the token ids of generation_config.json beside it, if there;
/// what is wrong with that one is a warning.
/// Errors: kNotFound; kCorrupt for a field of the wrong type or range; kUnsupported for another
/// architecture, for add_cross_attention, and for an unknown field that could change the result.
/// Each message names the file, the field, what was found and what was expected.
ModelConfig load_model_config(const std::string& directory);
ModelConfig parse_model_config(std::string_view json, const std::string& where);

/// config.json text of `config`, as transformers reads it.
std::string to_hf_config_json(const ModelConfig& config, DType dtype);

}  // namespace caravan
