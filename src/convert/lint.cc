#include "convert/lint.h"

#include <algorithm>

#include "core/error.h"
#include "core/json.h"

namespace caravan {

namespace {

constexpr size_t kMaxConfigBytes = size_t{64} << 20;
constexpr int64_t kTileColumns = 64;

class Linter {
 public:
  Linter(const ModelDir& dir, const LintInputs& inputs)
      : dir_(dir), inputs_(inputs), raw_(read_config(dir.path)) {}

  std::vector<LintFinding> run() {
    check_weights();
    check_activation();
    check_positions();
    check_token_ids();
    check_vocabulary();
    if (inputs_.chat_template_file) {
      add(LintSeverity::kWarning, "chat-template-not-read",
          "{} has a chat template of the model's own, which is not read: give serve one in "
          "Caravan's form with --chat-template FILE",
          *inputs_.chat_template_file);
    }
    std::stable_sort(findings_.begin(), findings_.end(), [](const auto& a, const auto& b) {
      return static_cast<int>(a.severity) > static_cast<int>(b.severity);
    });
    return std::move(findings_);
  }

 private:
  static boost::json::object read_config(const std::string& directory) {
    const std::string path = directory + "/config.json";
    boost::json::value value = parse_json_file(path, kMaxConfigBytes);
    CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: expected an object", path);
    return std::move(value.get_object());
  }

  template <typename... Args>
  void add(LintSeverity severity, const char* id, fmt::format_string<Args...> format,
           Args&&... args) {
    findings_.push_back({severity, id, fmt::format(format, std::forward<Args>(args)...)});
  }

  // An integer field as the file has it; none for absent, null or another type.
  std::optional<int64_t> raw_integer(const char* field) const {
    const boost::json::value* value = raw_.if_contains(field);
    if (value == nullptr || !value->is_int64()) return std::nullopt;
    return value->get_int64();
  }

  void check_weights() {
    if (inputs_.weights == nullptr) return;
    const ResolvedWeights& weights = *inputs_.weights;
    if (weights.has_own_head && dir_.config.tie_word_embeddings) {
      add(LintSeverity::kWarning, "tied-head-differs",
          "tie_word_embeddings is true but the stored lm_head.weight differs from wte.weight; the "
          "stored one is used, as transformers 5 does; set tie_word_embeddings to false, or delete "
          "lm_head.weight if the model was trained tied");
    } else if (weights.has_stored_head && !weights.has_own_head) {
      add(LintSeverity::kNote, "tied-head-stored",
          "lm_head.weight is stored and equals wte.weight; convert leaves it out");
    }
    if (!weights.skipped.empty()) {
      add(LintSeverity::kNote, "stored-masks",
          "{} stored tensors are masks or positions, not weights (first: {}); convert leaves them "
          "out",
          weights.skipped.size(), printable(weights.skipped.front()));
    }
    if (!weights.other_heads.empty()) {
      add(LintSeverity::kNote, "other-heads",
          "{} stored tensors belong to other heads than the language model's (first: {}); they are "
          "not run and convert leaves them out",
          weights.other_heads.size(), printable(weights.other_heads.front()));
    }
    for (const ResolvedWeight& weight : weights.weights) {
      const DType dtype = weight.tensor->dtype;
      if (weight.spec.role == WeightRole::kVector ||
          (dtype != DType::kF32 && dtype != DType::kF64)) {
        continue;
      }
      add(LintSeverity::kNote, "wide-checkpoint",
          "{} is {}; `caravan convert --dtype float16` or bfloat16 makes the weights smaller by {}",
          printable(weight.tensor->name), dtype_name(dtype), dtype == DType::kF32 ? "half" : "3/4");
      break;
    }
  }

  void check_activation() {
    if (dir_.config.activation_function == "gelu") {
      add(LintSeverity::kNote, "exact-gelu",
          "activation_function \"gelu\" is the exact (erf) GELU, as trained; engines that compute "
          "the tanh form for it differ by up to 4.7e-4 an activation");
    }
    if (!raw_.contains("activation_function")) {
      add(LintSeverity::kWarning, "activation-missing",
          "activation_function is absent; GPT2Config's default gelu_new is used");
    }
  }

  void check_positions() {
    const auto n_ctx = raw_integer("n_ctx");
    const auto n_positions = raw_integer("n_positions");
    if (n_ctx && n_positions && *n_ctx != *n_positions) {
      add(LintSeverity::kError, "positions-conflict",
          "n_ctx is {} and n_positions is {}; wpe has {} rows: make both equal to it", *n_ctx,
          *n_positions, dir_.config.max_seq_len);
    }
  }

  void check_token_ids() {
    const int64_t vocab_size = dir_.config.vocab_size;
    for (const char* field : {"pad_token_id", "bos_token_id", "eos_token_id"}) {
      const auto id = raw_integer(field);
      if (id && (*id < -1 || *id >= vocab_size)) {
        add(LintSeverity::kError, "token-id-range", "{} {} is outside the vocabulary of {}", field,
            *id, vocab_size);
      }
    }
    if (dir_.config.eos_token_ids.empty()) {
      add(LintSeverity::kWarning, "eos-missing",
          "no usable eos_token_id in config.json or generation_config.json; generation ends only "
          "at "
          "the length limit");
    }
  }

  void check_vocabulary() {
    const int64_t vocab_size = dir_.config.vocab_size;
    if (vocab_size % kTileColumns != 0) {
      add(LintSeverity::kNote, "vocab-padding",
          "vocab_size {} is not a multiple of {}; an engine pads the embedding inside, and padded "
          "logits never reach a sampler",
          vocab_size, kTileColumns);
    }
    if (!inputs_.tokenizer_vocab_size) {
      add(LintSeverity::kWarning, "tokenizer-missing", "{}; only token ids can be used",
          inputs_.tokenizer_problem);
      return;
    }
    const int64_t tokens = *inputs_.tokenizer_vocab_size;
    if (tokens > vocab_size) {
      add(LintSeverity::kError, "tokenizer-too-large",
          "the tokenizer has ids up to {} and the model {} rows: some text cannot be run",
          tokens - 1, vocab_size);
    } else if (tokens < vocab_size) {
      add(LintSeverity::kWarning, "tokenizer-too-small",
          "the tokenizer has {} ids and the model {} rows: the last {} ids have no text", tokens,
          vocab_size, vocab_size - tokens);
    }
  }

  const ModelDir& dir_;
  const LintInputs& inputs_;
  boost::json::object raw_;
  std::vector<LintFinding> findings_;
};

}  // namespace

const char* lint_severity_name(LintSeverity severity) {
  switch (severity) {
    case LintSeverity::kNote:
      return "note";
    case LintSeverity::kWarning:
      return "warning";
    case LintSeverity::kError:
      return "error";
  }
  return "?";
}

std::vector<LintFinding> lint_model(const ModelDir& dir, const LintInputs& inputs) {
  return Linter(dir, inputs).run();
}

}  // namespace caravan
