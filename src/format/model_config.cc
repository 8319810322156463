#include "format/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <system_error>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "core/log.h"
#include "core/mapped_file.h"
#include "core/tensor.h"
#include "format/json_fields.h"

namespace caravan {

namespace {

constexpr size_t kMaxConfigBytes = size_t{64} << 20;  // an engine's tensor table lives in it too
constexpr int64_t kMaxTokenId = std::numeric_limits<int32_t>::max();
// GPT2Config's default for bos_token_id and eos_token_id: "<|endoftext|>" of GPT-2's vocabulary.
constexpr int64_t kDefaultTokenId = 50256;

// Fields that are read below.
constexpr std::array kReadFields = {"activation_function",
                                    "add_cross_attention",
                                    "architectures",
                                    "bos_token_id",
                                    "dtype",
                                    "eos_token_id",
                                    "hidden_size",
                                    "is_encoder_decoder",
                                    "layer_norm_epsilon",
                                    "max_position_embeddings",
                                    "model_type",
                                    "n_ctx",
                                    "n_embd",
                                    "n_head",
                                    "n_inner",
                                    "n_layer",
                                    "n_positions",
                                    "num_attention_heads",
                                    "num_hidden_layers",
                                    "pad_token_id",
                                    "reorder_and_upcast_attn",
                                    "scale_attn_by_inverse_layer_idx",
                                    "scale_attn_weights",
                                    "tie_word_embeddings",
                                    "torch_dtype",
                                    "vocab_size"};

// Fields that cannot change the logits of a GPT-2 language model in inference: training (dropout,
// initialization, gradient checkpointing), the classification head (summary_*, labels), generation
// defaults that old configs carry (the sampler takes its own), notes about origin, and ours.
constexpr std::array kHarmlessFields = {"_attn_implementation",
                                        "_attn_implementation_autoset",
                                        "_commit_hash",
                                        "_name_or_path",
                                        "_num_labels",
                                        "adapters",
                                        "attn_implementation",
                                        "attn_pdrop",
                                        "bad_words_ids",
                                        "begin_suppress_tokens",
                                        "caravan",
                                        "chunk_size_feed_forward",
                                        "cls_token_id",
                                        "cross_attention_hidden_size",
                                        "decoder_start_token_id",
                                        "diversity_penalty",
                                        "do_sample",
                                        "early_stopping",
                                        "embd_pdrop",
                                        "encoder_no_repeat_ngram_size",
                                        "exponential_decay_length_penalty",
                                        "finetuning_task",
                                        "forced_bos_token_id",
                                        "forced_eos_token_id",
                                        "gradient_checkpointing",
                                        "id2label",
                                        "initializer_range",
                                        "is_decoder",
                                        "keys_to_ignore_at_inference",
                                        "label2id",
                                        "length_penalty",
                                        "low_memory",
                                        "mask_token_id",
                                        "max_length",
                                        "max_new_tokens",
                                        "min_length",
                                        "no_repeat_ngram_size",
                                        "num_beam_groups",
                                        "num_beams",
                                        "num_labels",
                                        "num_return_sequences",
                                        "output_attentions",
                                        "output_hidden_states",
                                        "output_past",
                                        "output_scores",
                                        "predict_special_tokens",
                                        "prefix",
                                        "problem_type",
                                        "remove_invalid_values",
                                        "renormalize_logits",
                                        "repetition_penalty",
                                        "resid_pdrop",
                                        "return_dict",
                                        "return_dict_in_generate",
                                        "sep_token_id",
                                        "summary_activation",
                                        "summary_first_dropout",
                                        "summary_hidden_size",
                                        "summary_proj_to_labels",
                                        "summary_type",
                                        "summary_use_proj",
                                        "suppress_tokens",
                                        "task_specific_params",
                                        "temperature",
                                        "tf_legacy_loss",
                                        "tie_encoder_decoder",
                                        "tokenizer_class",
                                        "top_k",
                                        "top_p",
                                        "torchscript",
                                        "transformers_version",
                                        "typical_p",
                                        "unk_token_id",
                                        "use_bfloat16",
                                        "use_cache",
                                        "xla_device"};

template <size_t N>
bool contains(const std::array<const char*, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// null, false and empty containers switch a feature off, also one that we do not know.
bool is_off(const boost::json::value& value) {
  return value.is_null() || (value.is_bool() && !value.get_bool()) ||
         (value.is_object() && value.get_object().empty()) ||
         (value.is_array() && value.get_array().empty());
}

void refuse_unknown_fields(const boost::json::object& object, const std::string& where) {
  for (const auto& [key, value] : object) {
    const std::string_view name(key.data(), key.size());
    CARAVAN_CHECK_CODE(
        contains(kReadFields, name) || contains(kHarmlessFields, name) || is_off(value),
        kUnsupported,
        "{}: unknown field \"{}\" with value {}: it may change the result; remove "
        "it if it does not",
        where, printable(name), json_text(value));
  }
}

// A size under its GPT-2 name or under the name that transformers maps to it (attribute_map).
int64_t size_field(const JsonFields& fields, std::string_view name, std::string_view alias,
                   int64_t high, int64_t fallback) {
  const std::optional<int64_t> value = fields.optional_integer(name, 1, high);
  if (alias.empty()) return value.value_or(fallback);
  const std::optional<int64_t> other = fields.optional_integer(alias, 1, high);
  if (value && other && *value != *other) {
    fields.fail(alias, fmt::format("{}, the value of {}", *value, name));
  }
  return value ? *value : other.value_or(fallback);
}

void check_architecture(const boost::json::object& object, const JsonFields& fields,
                        const std::string& where, ModelConfig& config) {
  const std::optional<std::string> model_type = fields.optional_string("model_type");
  CARAVAN_CHECK_CODE(!model_type || *model_type == "gpt2", kUnsupported,
                     "{}: model_type: got \"{}\", expected \"gpt2\"", where,
                     printable(*model_type));
  const boost::json::value* architectures = fields.find("architectures");
  if (architectures == nullptr || is_off(*architectures)) {
    if (!model_type) fields.fail("model_type", "\"gpt2\"");
    return;
  }
  if (!architectures->is_array()) fields.fail("architectures", "an array of strings");
  const boost::json::array& names = object.at("architectures").get_array();
  if (!names[0].is_string()) fields.fail("architectures", "an array of strings");
  config.architecture = std::string(names[0].get_string());
  CARAVAN_CHECK_CODE(names.size() == 1 && (config.architecture == "GPT2LMHeadModel" ||
                                           config.architecture == "GPT2Model"),
                     kUnsupported,
                     "{}: architectures: got {} names, the first \"{}\", expected GPT2LMHeadModel "
                     "or GPT2Model alone",
                     where, names.size(), printable(config.architecture));
}

DType checkpoint_dtype(const JsonFields& fields) {
  // transformers 4.56 renamed torch_dtype to dtype.
  std::optional<DType> result;
  for (const char* field : {"torch_dtype", "dtype"}) {
    std::optional<std::string> text = fields.optional_string(field);
    if (!text) continue;
    if (text->starts_with("torch.")) text->erase(0, 6);
    const std::optional<DType> dtype = parse_dtype(*text);
    if (!dtype || !is_floating(*dtype)) {
      fields.fail(field, "float64, float32, float16 or bfloat16");
    }
    if (result && *result != *dtype) {
      fields.fail(field, fmt::format("\"{}\", the value of torch_dtype", dtype_name(*result)));
    }
    result = dtype;
  }
  return result.value_or(DType::kF32);
}

// nullopt when absent; empty when null, -1 or []. Ids outside the vocabulary can never be
// produced: they are dropped, because many small checkpoints carry GPT-2's 50256 by inheritance.
std::optional<std::vector<int32_t>> token_ids(const boost::json::object& object,
                                              const JsonFields& fields, const char* field,
                                              bool accept_list, int64_t vocab_size,
                                              const std::string& where) {
  const boost::json::value* value = object.if_contains(field);
  if (value == nullptr) return std::nullopt;
  std::vector<int32_t> ids;
  const auto add = [&](const boost::json::value& v) {
    const int64_t* id = v.if_int64();
    if (id == nullptr || *id < -1 || *id > kMaxTokenId) {
      fields.fail(field,
                  accept_list ? "a token id, a list of token ids or null" : "a token id or null");
    }
    if (*id >= vocab_size) {
      log_warning("{}: {}: {} is outside the vocabulary of {}; ignored", where, field, *id,
                  vocab_size);
    } else if (*id >= 0) {
      ids.push_back(static_cast<int32_t>(*id));
    }
  };
  if (accept_list && value->is_array()) {
    for (const boost::json::value& v : value->get_array()) add(v);
  } else if (!value->is_null()) {
    add(*value);
  }
  return ids;
}

void read_token_ids(const boost::json::object& object, const std::string& where,
                    ModelConfig& config) {
  const JsonFields fields(object, where);
  const auto ids = [&](const char* field, bool accept_list) {
    return token_ids(object, fields, field, accept_list, config.vocab_size, where);
  };
  if (auto eos = ids("eos_token_id", true)) config.eos_token_ids = *std::move(eos);
  if (auto bos = ids("bos_token_id", false)) {
    config.bos_token_id = bos->empty() ? -1 : bos->front();
  }
  if (auto pad = ids("pad_token_id", false)) {
    config.pad_token_id = pad->empty() ? -1 : pad->front();
  }
}

boost::json::object parse_object(std::string_view json, const std::string& where) {
  boost::json::value root = parse_json(json, where);
  CARAVAN_CHECK_CODE(root.is_object(), kCorrupt, "{}: got {}, expected a JSON object", where,
                     json_text(root));
  return std::move(root.get_object());
}

}  // namespace

float ModelConfig::attention_scale(int64_t layer) const {
  double scale = 1.0;
  if (scale_attn_weights) scale /= std::sqrt(static_cast<double>(head_dim()));
  if (scale_attn_by_inverse_layer_idx) scale /= static_cast<double>(layer + 1);
  return static_cast<float>(scale);
}

int64_t ModelConfig::num_parameters() const {
  const int64_t attention = 4 * hidden_size * hidden_size + 4 * hidden_size;
  const int64_t mlp = 2 * hidden_size * ffn_size + ffn_size + hidden_size;
  const int64_t norms = 4 * hidden_size;
  const int64_t head = tie_word_embeddings ? 0 : vocab_size * hidden_size;
  return num_layers * (attention + mlp + norms) + (vocab_size + max_seq_len + 2) * hidden_size +
         head;
}

ModelConfig parse_model_config(std::string_view json, const std::string& where) {
  const boost::json::object object = parse_object(json, where);
  const JsonFields fields(object, where);
  ModelConfig config;
  check_architecture(object, fields, where, config);
  for (const char* field : {"add_cross_attention", "is_encoder_decoder"}) {
    CARAVAN_CHECK_CODE(!fields.boolean(field, false), kUnsupported,
                       "{}: {}: got true, expected false: only decoders are supported", where,
                       field);
  }
  refuse_unknown_fields(object, where);

  config.vocab_size = size_field(fields, "vocab_size", "", kMaxVocabSize, 50257);
  config.hidden_size = size_field(fields, "n_embd", "hidden_size", kMaxHiddenSize, 768);
  config.num_layers = size_field(fields, "n_layer", "num_hidden_layers", kMaxLayers, 12);
  config.num_heads = size_field(fields, "n_head", "num_attention_heads", kMaxHiddenSize, 12);
  if (config.hidden_size % config.num_heads != 0) {
    CARAVAN_FAIL(kCorrupt, "{}: n_embd: got {}, expected a multiple of n_head, {}", where,
                 config.hidden_size, config.num_heads);
  }
  config.ffn_size = size_field(fields, "n_inner", "", kMaxFfnSize, 4 * config.hidden_size);
  const std::optional<int64_t> n_ctx = fields.optional_integer("n_ctx", 1, kMaxPositions);
  config.max_seq_len = size_field(fields, "n_positions", "max_position_embeddings", kMaxPositions,
                                  n_ctx.value_or(1024));
  if (n_ctx && *n_ctx != config.max_seq_len) {
    log_warning("{}: n_ctx {} differs from n_positions {}; n_positions counts", where, *n_ctx,
                config.max_seq_len);
  }

  config.activation_function = fields.optional_string("activation_function").value_or("gelu_new");
  const std::optional<Activation> activation = parse_activation(config.activation_function);
  CARAVAN_CHECK_CODE(activation && *activation != Activation::kNone, kUnsupported,
                     "{}: activation_function: got \"{}\", expected gelu, gelu_new, "
                     "gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, silu, swish or tanh",
                     where, printable(config.activation_function));
  config.activation = *activation;
  const double epsilon = fields.optional_number("layer_norm_epsilon").value_or(1e-5);
  config.layer_norm_epsilon = static_cast<float>(epsilon);
  if (!(config.layer_norm_epsilon > 0.0f && epsilon <= 1.0)) {
    fields.fail("layer_norm_epsilon", "a number above 0 and at most 1");
  }
  config.scale_attn_weights = fields.boolean("scale_attn_weights", true);
  config.scale_attn_by_inverse_layer_idx = fields.boolean("scale_attn_by_inverse_layer_idx", false);
  config.reorder_and_upcast_attn = fields.boolean("reorder_and_upcast_attn", false);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", true);
  config.torch_dtype = checkpoint_dtype(fields);
  if (kDefaultTokenId < config.vocab_size) {
    config.eos_token_ids = {static_cast<int32_t>(kDefaultTokenId)};
    config.bos_token_id = static_cast<int32_t>(kDefaultTokenId);
  }
  read_token_ids(object, where, config);
  return config;
}

ModelConfig load_model_config(const std::string& directory) {
  const std::string path = directory + "/config.json";
  ModelConfig config = parse_model_config(read_text_file(path, kMaxConfigBytes), path);
  const std::string generation_path = directory + "/generation_config.json";
  std::error_code unreadable;
  if (std::filesystem::exists(generation_path, unreadable)) {
    read_token_ids(parse_object(read_text_file(generation_path, kMaxConfigBytes), generation_path),
                   generation_path, config);
  }
  return config;
}

std::string to_hf_config_json(const ModelConfig& config, DType dtype) {
  const auto token_id = [](int32_t id) {
    return id < 0 ? boost::json::value(nullptr) : boost::json::value(id);
  };
  boost::json::value eos = nullptr;
  if (config.eos_token_ids.size() == 1) {
    eos = config.eos_token_ids[0];
  } else if (!config.eos_token_ids.empty()) {
    eos = boost::json::array(config.eos_token_ids.begin(), config.eos_token_ids.end());
  }
  // The shortest decimal that names this float: 1e-05 and not 9.99999974737875e-06.
  const double epsilon = std::strtod(fmt::format("{}", config.layer_norm_epsilon).c_str(), nullptr);
  const boost::json::object object = {
      {"activation_function", config.activation_function},
      {"architectures", boost::json::array{boost::json::string(config.architecture)}},
      {"bos_token_id", token_id(config.bos_token_id)},
      {"eos_token_id", eos},
      {"layer_norm_epsilon", epsilon},
      {"model_type", "gpt2"},
      {"n_embd", config.hidden_size},
      {"n_head", config.num_heads},
      {"n_inner", config.ffn_size},
      {"n_layer", config.num_layers},
      {"n_positions", config.max_seq_len},
      {"pad_token_id", token_id(config.pad_token_id)},
      {"reorder_and_upcast_attn", config.reorder_and_upcast_attn},
      {"scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx},
      {"scale_attn_weights", config.scale_attn_weights},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"torch_dtype", dtype_name(dtype)},
      {"vocab_size", config.vocab_size},
  };
  std::string text = "{\n";
  for (const auto& [key, value] : object) {
    text += fmt::format("{}  \"{}\": {}", text.size() > 2 ? ",\n" : "", std::string_view(key),
                        to_json_text(value));
  }
  return text + "\n}\n";
}

}  // namespace caravan
