#include "eval/diverge_ops.h"

#include <fmt/core.h>

#include <array>
#include <charconv>
#include <utility>

namespace caravan {

namespace {

// What follows "h.i" in the names of a layer's operators.
constexpr std::array<std::pair<OpKind, const char*>, 7> kParts = {{
    {OpKind::kLn1, ".ln_1"},
    {OpKind::kCAttn, ".attn.c_attn"},
    {OpKind::kAttention, ".attn"},
    {OpKind::kAttnResidual, ".attn.residual"},
    {OpKind::kLn2, ".ln_2"},
    {OpKind::kMlpAct, ".mlp.act"},
    {OpKind::kLayer, ""},
}};

}  // namespace

std::string op_name(const OpId& op) {
  switch (op.kind) {
    case OpKind::kEmbedding:
      return "embedding";
    case OpKind::kLnF:
      return "ln_f";
    case OpKind::kLogits:
      return "logits";
    default:
      break;
  }
  for (const auto& [kind, part] : kParts) {
    if (kind == op.kind) return fmt::format("h.{}{}", op.layer, part);
  }
  return "?";
}

std::optional<OpId> parse_op_name(std::string_view name) {
  if (name == "embedding") return OpId{OpKind::kEmbedding};
  if (name == "ln_f") return OpId{OpKind::kLnF};
  if (name == "logits") return OpId{OpKind::kLogits};
  if (!name.starts_with("h.")) return std::nullopt;
  OpId op;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + 2, end, op.layer);
  if (error != std::errc{} || op.layer < 0) return std::nullopt;
  const std::string_view part(rest, static_cast<size_t>(end - rest));
  for (const auto& [kind, text] : kParts) {
    if (part == text) {
      op.kind = kind;
      return op;
    }
  }
  return std::nullopt;
}

}  // namespace caravan
