#include "format/weight_spec.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace {

constexpr std::string_view kPrefix = "transformer.";
constexpr std::string_view kHeadName = "lm_head.weight";
constexpr std::string_view kEmbeddingName = "wte.weight";
constexpr size_t kMaxNamesInMessage = 8;

WeightSpec vector_spec(std::string name, int64_t size, WeightSplit split = WeightSplit::kNone) {
  return {.name = std::move(name), .role = WeightRole::kVector, .split = split, .shape = {size}};
}

WeightSpec conv1d_spec(std::string name, int64_t in, int64_t out, WeightSplit split) {
  return {.name = std::move(name),
          .role = WeightRole::kLinear,
          .split = split,
          .shape = {in, out},
          .in_features = in,
          .out_features = out,
          .stored_layout = LinearLayout::kInOut};
}

WeightSpec vocabulary_spec(std::string name, WeightRole role, const ModelConfig& config) {
  return {.name = std::move(name),
          .role = role,
          .split = WeightSplit::kVocabulary,
          .shape = {config.vocab_size, config.hidden_size},
          .in_features = config.hidden_size,
          .out_features = config.vocab_size,
          .stored_layout = LinearLayout::kOutIn};
}

void add_layer(std::vector<WeightSpec>& specs, const ModelConfig& config, int64_t layer) {
  const int64_t hidden = config.hidden_size;
  const int64_t ffn = config.ffn_size;
  const auto name = [&](const char* rest) { return fmt::format("h.{}.{}", layer, rest); };
  specs.push_back(vector_spec(name("ln_1.weight"), hidden));
  specs.push_back(vector_spec(name("ln_1.bias"), hidden));
  specs.push_back(
      conv1d_spec(name("attn.c_attn.weight"), hidden, 3 * hidden, WeightSplit::kQkvColumns));
  specs.push_back(vector_spec(name("attn.c_attn.bias"), 3 * hidden, WeightSplit::kQkvColumns));
  specs.push_back(conv1d_spec(name("attn.c_proj.weight"), hidden, hidden, WeightSplit::kRows));
  specs.push_back(vector_spec(name("attn.c_proj.bias"), hidden));
  specs.push_back(vector_spec(name("ln_2.weight"), hidden));
  specs.push_back(vector_spec(name("ln_2.bias"), hidden));
  specs.push_back(conv1d_spec(name("mlp.c_fc.weight"), hidden, ffn, WeightSplit::kColumns));
  specs.push_back(vector_spec(name("mlp.c_fc.bias"), ffn, WeightSplit::kColumns));
  specs.push_back(conv1d_spec(name("mlp.c_proj.weight"), ffn, hidden, WeightSplit::kRows));
  specs.push_back(vector_spec(name("mlp.c_proj.bias"), hidden));
}

std::string_view canonical_name(std::string_view stored) {
  if (stored.starts_with(kPrefix) && stored.substr(kPrefix.size()) != kHeadName) {
    stored.remove_prefix(kPrefix.size());
  }
  return stored;
}

// What follows "h.<layer>" in a name of a layer; empty for other names.
std::string_view rest_of_layer_name(std::string_view name) {
  if (!name.starts_with("h.")) return {};
  const size_t digits_end = name.find_first_not_of("0123456789", 2);
  if (digits_end == 2 || digits_end == std::string_view::npos) return {};
  return name.substr(digits_end);
}

// Buffers that old versions of transformers stored and that it ignores when it loads: "attn.bias",
// the causal mask ([n,n], mostly behind two dimensions of 1), "attn.masked_bias", the number that
// replaces masked scores, and "position_ids".
bool is_stored_buffer(std::string_view name, const StoredTensor& tensor) {
  const Shape& shape = tensor.shape;
  if (name == "position_ids") return !is_floating(tensor.dtype);
  const std::string_view rest = rest_of_layer_name(name);
  if (rest == ".attn.bias") {
    const int rank = shape.rank();
    return rank >= 2 && shape[rank - 1] == shape[rank - 2] &&
           shape.num_elements() == shape[rank - 1] * shape[rank - 1];
  }
  return rest == ".attn.masked_bias" && shape.num_elements() == 1;
}

// Parts of other models around the same language model: TRL's value head, transformers'
// classification, question answering and double heads, and the cross-attention of a decoder that
// was cut out of an encoder-decoder. None of them is on the way to the logits of a GPT2LMHeadModel.
bool is_other_head(std::string_view name) {
  constexpr std::array<std::string_view, 5> kHeads = {"v_head.", "score.", "classifier.",
                                                      "qa_outputs.", "multiple_choice_head."};
  const std::string_view rest = rest_of_layer_name(name);
  return rest.starts_with(".crossattention.") || rest.starts_with(".ln_cross_attn.") ||
         std::any_of(kHeads.begin(), kHeads.end(),
                     [&](std::string_view head) { return name.starts_with(head); });
}

// "a, b and 3 more".
std::string list_names(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMaxNamesInMessage); ++i) {
    text += (i != 0 ? ", " : "") + printable(names[i]);
  }
  if (names.size() > kMaxNamesInMessage) {
    text += fmt::format(" and {} more", names.size() - kMaxNamesInMessage);
  }
  return text;
}

void check_weight(const WeightSpec& spec, const StoredTensor& tensor, const std::string& where) {
  CARAVAN_CHECK_CODE(tensor.shape == spec.shape, kCorrupt, "{}: {}: shape {}, expected {}", where,
                     printable(tensor.name), tensor.shape.to_string(), spec.shape.to_string());
  CARAVAN_CHECK_CODE(is_floating(tensor.dtype), kUnsupported,
                     "{}: {}: dtype {}, expected float64, float32, float16 or bfloat16", where,
                     printable(tensor.name), dtype_name(tensor.dtype));
}

// Compares in pieces and lets go of them: the embedding of a 5B model is 400 MB.
bool have_equal_bytes(const StoredTensor& a, const StoredTensor& b) {
  constexpr int64_t kPiece = int64_t{4} << 20;  // elements
  if (a.dtype != b.dtype) return false;
  if (a.file == b.file && a.offset == b.offset && a.strides == b.strides) return true;
  const int64_t total = a.shape.num_elements();
  std::vector<std::byte> a_scratch, b_scratch;
  for (int64_t at = 0; at < total; at += kPiece) {
    const int64_t count = std::min(kPiece, total - at);
    if (std::memcmp(a.read(at, count, a_scratch), b.read(at, count, b_scratch),
                    static_cast<size_t>(count) * dtype_size(a.dtype)) != 0) {
      return false;
    }
    a.release(at, count);
    b.release(at, count);
  }
  return true;
}

using StoredByName = std::map<std::string_view, const StoredTensor*>;

// By canonical name, without buffers and other heads.
StoredByName weights_by_name(const TensorSource& source, const std::string& where,
                             ResolvedWeights& resolved) {
  StoredByName stored;
  for (const StoredTensor& tensor : source.tensors()) {
    const std::string_view name = canonical_name(tensor.name);
    if (is_stored_buffer(name, tensor)) {
      resolved.skipped.push_back(tensor.name);
    } else if (is_other_head(name)) {
      resolved.other_heads.push_back(tensor.name);
    } else {
      const auto [found, is_new] = stored.emplace(name, &tensor);
      CARAVAN_CHECK_CODE(is_new, kCorrupt, "{}: both {} and {} are stored", where,
                         printable(found->second->name), printable(tensor.name));
    }
  }
  if (!resolved.other_heads.empty()) {
    log_warning("{}: not parts of the language model, left out: {}", where,
                list_names(resolved.other_heads));
  }
  return stored;
}

// "; without a place: ...", and what to do when the names differ from the missing ones by a prefix.
std::string without_place(const std::vector<std::string>& missing,
                          const std::vector<std::string>& unexpected) {
  if (unexpected.empty()) return "";
  std::string text = fmt::format("; without a place: {}", list_names(unexpected));
  for (const std::string& name : unexpected) {
    if (missing.empty() || !name.ends_with("." + missing.front())) continue;
    text += fmt::format("; all names must have the same prefix: strip \"{}\"",
                        printable(name.substr(0, name.size() - missing.front().size())));
    break;
  }
  return text;
}

}  // namespace

std::vector<WeightSpec> gpt2_weight_specs(const ModelConfig& config, bool has_own_head) {
  std::vector<WeightSpec> specs;
  specs.push_back(
      vocabulary_spec(std::string(kEmbeddingName), WeightRole::kTokenEmbedding, config));
  specs.push_back({.name = "wpe.weight",
                   .role = WeightRole::kPositionEmbedding,
                   .shape = {config.max_seq_len, config.hidden_size}});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) add_layer(specs, config, layer);
  specs.push_back(vector_spec("ln_f.weight", config.hidden_size));
  specs.push_back(vector_spec("ln_f.bias", config.hidden_size));
  if (has_own_head) {
    specs.push_back(vocabulary_spec(std::string(kHeadName), WeightRole::kHead, config));
  }
  return specs;
}

std::optional<int64_t> attention_bias_layer(const WeightSpec& spec) {
  if (!spec.name.ends_with(".attn.c_attn.bias") && !spec.name.ends_with(".attn.c_proj.bias")) {
    return std::nullopt;
  }
  return std::stoll(spec.name.substr(2));  // "h.N"
}

std::vector<WeightSpec> kv_scale_specs(const ModelConfig& config) {
  std::vector<WeightSpec> specs;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const char* name : {"k_scale", "v_scale"}) {
      specs.push_back(vector_spec(fmt::format("h.{}.attn.{}", layer, name), config.num_heads,
                                  WeightSplit::kColumns));
    }
  }
  return specs;
}

ResolvedWeights resolve_gpt2_weights(const TensorSource& source, const ModelConfig& config,
                                     const std::string& where, bool has_kv_scales) {
  ResolvedWeights resolved;
  StoredByName stored = weights_by_name(source, where, resolved);
  if (const auto head = stored.find(kHeadName);
      head != stored.end() && config.tie_word_embeddings && !stored.contains(kEmbeddingName)) {
    // safetensors' save_model() keeps one name of a shared tensor, the first in the alphabet.
    stored.emplace(kEmbeddingName, head->second);
    stored.erase(head);
  }

  std::vector<std::string> missing;
  for (const WeightSpec& spec : gpt2_weight_specs(config, true)) {
    const auto found = stored.find(spec.name);
    if (found != stored.end()) {
      check_weight(spec, *found->second, where);
      resolved.weights.push_back({spec, found->second});
      stored.erase(found);
    } else if (spec.role != WeightRole::kHead) {
      missing.push_back(spec.name);
    }
  }
  if (has_kv_scales) {
    for (const WeightSpec& spec : kv_scale_specs(config)) {
      if (stored.erase(spec.name) == 0) missing.push_back(spec.name);
    }
  }
  std::vector<std::string> unexpected;
  for (const auto& [name, tensor] : stored) unexpected.push_back(tensor->name);
  std::sort(unexpected.begin(), unexpected.end());
  CARAVAN_CHECK_CODE(missing.empty(), kCorrupt, "{}: {} of {} tensors are missing: {}{}", where,
                     missing.size(), resolved.weights.size() + missing.size(), list_names(missing),
                     without_place(missing, unexpected));
  CARAVAN_CHECK_CODE(unexpected.empty(), kUnsupported,
                     "{}: {} tensors have no place in GPT-2 with {} layers: {}", where,
                     unexpected.size(), config.num_layers, list_names(unexpected));

  resolved.has_stored_head = resolved.weights.back().spec.role == WeightRole::kHead;
  CARAVAN_CHECK_CODE(resolved.has_stored_head || config.tie_word_embeddings, kCorrupt,
                     "{}: lm_head.weight is missing although tie_word_embeddings is false", where);
  if (!resolved.has_stored_head) return resolved;
  resolved.has_own_head =
      !have_equal_bytes(*resolved.weights.front().tensor, *resolved.weights.back().tensor);
  if (!resolved.has_own_head) {
    resolved.weights.pop_back();
  } else if (config.tie_word_embeddings) {
    log_warning(
        "{}: the stored lm_head.weight differs from wte.weight although "
        "tie_word_embeddings is true; the stored one is used",
        where);
  }
  return resolved;
}

}  // namespace caravan
