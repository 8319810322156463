#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "format/model_dir.h"
#include "format/weight_spec.h"

namespace caravan {

/// kNote: worth knowing; kWarning: probably not meant; kError: results will be wrong or the model
/// cannot run.
enum class LintSeverity : uint8_t { kNote, kWarning, kError };

struct LintFinding {
  LintSeverity severity = LintSeverity::kNote;
  std::string id;       // stable, e.g. "tied-head-differs"
  std::string message;  // one line: what, and what to do
};

const char* lint_severity_name(LintSeverity severity);

/// What the rules look at besides the configuration.
struct LintInputs {
  std::optional<int64_t> tokenizer_vocab_size;    // largest id + 1; none: no readable tokenizer
  std::string tokenizer_problem;                  // why there is none
  const ResolvedWeights* weights = nullptr;       // Hugging Face and checkpoint directories
  std::optional<std::string> chat_template_file;  // see model_chat_template()
};

/// Rules over config.json (as written), the weights and the tokenizer. Order: errors first.
/// Errors: kCorrupt when config.json cannot be read.
std::vector<LintFinding> lint_model(const ModelDir& dir, const LintInputs& inputs);

}  // namespace caravan
