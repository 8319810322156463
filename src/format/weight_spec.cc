#include "format/weight_spec.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/keyed_hash.h"
#include "core/log.h"

namespace caravan {

namespace {

constexpr std::string_view kPrefix = "transformer.";
constexpr std::string_view kHeadName = "lm_head.weight";
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

// "h.<layer>.attn.bias" [1,1,n,n] and "h.<layer>.attn.masked_bias" (one element): buffers of old
// transformers, the causal mask and the number that replaces masked scores. transformers itself
// ignores them when it loads a checkpoint.
bool is_stored_mask(std::string_view name, const StoredTensor& tensor) {
  if (!name.starts_with("h.")) return false;
  const size_t digits_end = name.find_first_not_of("0123456789", 2);
  if (digits_end == 2 || digits_end == std::string_view::npos) return false;
  const Shape& shape = tensor.shape;
  const std::string_view rest = name.substr(digits_end);
  if (rest == ".attn.bias") {
    return shape.rank() == 4 && shape[0] == 1 && shape[1] == 1 && shape[2] == shape[3];
  }
  return rest == ".attn.masked_bias" && shape.num_elements() == 1;
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
  constexpr uint64_t kPiece = uint64_t{8} << 20;
  if (a.dtype != b.dtype) return false;
  if (a.file == b.file && a.offset == b.offset) return true;
  const uint64_t num_bytes = a.num_bytes();
  for (uint64_t at = 0; at < num_bytes; at += kPiece) {
    const uint64_t count = std::min(kPiece, num_bytes - at);
    if (std::memcmp(a.data() + at, b.data() + at, count) != 0) return false;
    a.file->release(a.offset + at, count);
    b.file->release(b.offset + at, count);
  }
  return true;
}

}  // namespace

std::vector<WeightSpec> gpt2_weight_specs(const ModelConfig& config, bool has_own_head) {
  std::vector<WeightSpec> specs;
  specs.push_back(vocabulary_spec("wte.weight", WeightRole::kTokenEmbedding, config));
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
  KeyedMap<std::string_view, const StoredTensor*> stored;
  std::vector<std::string> unexpected;
  for (const StoredTensor& tensor : source.tensors()) {
    const std::string_view name = canonical_name(tensor.name);
    if (is_stored_mask(name, tensor)) {
      resolved.skipped.push_back(tensor.name);
      continue;
    }
    const auto [found, is_new] = stored.emplace(name, &tensor);
    CARAVAN_CHECK_CODE(is_new, kCorrupt, "{}: both {} and {} are stored", where,
                       printable(found->second->name), printable(tensor.name));
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
  for (const auto& [name, tensor] : stored) unexpected.push_back(tensor->name);
  std::sort(unexpected.begin(), unexpected.end());
  const std::string other =
      unexpected.empty() ? "" : fmt::format("; without a place: {}", list_names(unexpected));
  CARAVAN_CHECK_CODE(missing.empty(), kCorrupt, "{}: {} of {} tensors are missing: {}{}", where,
                     missing.size(), resolved.weights.size() + missing.size(), list_names(missing),
                     other);
  CARAVAN_CHECK_CODE(unexpected.empty(), kCorrupt,
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
