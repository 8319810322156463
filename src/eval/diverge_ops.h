#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace caravan {

/// The operators whose values `diverge` compares, in the order of the forward pass; OpHook's names.
enum class OpKind : uint8_t {
  kEmbedding,     // "embedding"
  kLn1,           // "h.i.ln_1"
  kCAttn,         // "h.i.attn.c_attn": q, k, v
  kAttention,     // "h.i.attn", before c_proj
  kAttnResidual,  // "h.i.attn.residual": the stream after c_proj was added
  kLn2,           // "h.i.ln_2"
  kMlpAct,        // "h.i.mlp.act": c_fc and the activation
  kLayer,         // "h.i": the stream after mlp.c_proj was added
  kLnF,           // "ln_f"
  kLogits,        // "logits"
};

struct OpId {
  OpKind kind = OpKind::kEmbedding;
  int64_t layer = -1;  // of those with an i
};

std::string op_name(const OpId& op);
std::optional<OpId> parse_op_name(std::string_view name);

/// Values of operators, [num_tokens, width] float32 each, by name.
using OpValues = std::map<std::string, std::vector<float>, std::less<>>;

}  // namespace caravan
