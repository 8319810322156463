#include "format/training_form.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace {

constexpr std::array<std::string_view, 5> kWrapperPrefixes = {
    "module.", "model.", "_orig_mod.", "_forward_module.", "pretrained_model."};
constexpr std::string_view kModelPrefix = "transformer.";
constexpr std::array<std::string_view, 4> kLinearWeights = {
    ".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight"};
constexpr std::string_view kQkvWeight = kLinearWeights[0];
constexpr std::string_view kUpWeight = kLinearWeights[2];

// The names as they are without the first `skipped` bytes.
class Names {
 public:
  explicit Names(const std::vector<StoredTensor>& tensors) : tensors_(tensors) {}

  size_t skipped() const { return skipped_; }
  bool all_begin_with(std::string_view prefix) const {
    return std::all_of(tensors_.begin(), tensors_.end(), [&](const StoredTensor& tensor) {
      return name(tensor).size() > prefix.size() && name(tensor).starts_with(prefix);
    });
  }
  bool any_begins_with(std::string_view prefix) const {
    return std::any_of(tensors_.begin(), tensors_.end(), [&](const StoredTensor& tensor) {
      return name(tensor).starts_with(prefix);
    });
  }
  // One prefix that all names have; false when there is none.
  bool skip_one() {
    if (tensors_.empty()) return false;
    for (const std::string_view prefix : kWrapperPrefixes) {
      if (!all_begin_with(prefix)) continue;
      skipped_ += prefix.size();
      return true;
    }
    // A Hugging Face checkpoint has this prefix once, and not before lm_head.
    if (!all_begin_with(kModelPrefix) || (!any_begins_with("transformer.transformer.") &&
                                          !any_begins_with("transformer.lm_head."))) {
      return false;
    }
    skipped_ += kModelPrefix.size();
    return true;
  }

 private:
  std::string_view name(const StoredTensor& tensor) const {
    return std::string_view(tensor.name).substr(skipped_);
  }

  const std::vector<StoredTensor>& tensors_;
  size_t skipped_ = 0;
};

void strip_prefixes(std::vector<StoredTensor>& tensors, const std::string& where) {
  Names names(tensors);
  while (names.skip_one()) {
  }
  if (names.skipped() == 0) return;
  log_info("{}: all names begin with {}, which is left out", where,
           printable(tensors.front().name.substr(0, names.skipped())));
  for (StoredTensor& tensor : tensors) tensor.name.erase(0, names.skipped());
}

bool is_linear_weight(const StoredTensor& tensor) {
  return tensor.shape.rank() == 2 &&
         std::any_of(kLinearWeights.begin(), kLinearWeights.end(),
                     [&](std::string_view end) { return tensor.name.ends_with(end); });
}

// n where every c_attn.weight is [3n, n] and every c_fc.weight [m, n]; 0 otherwise. Conv1D has them
// the other way round. The square c_proj.weight tells nothing.
int64_t hidden_size_of_linear_layers(const std::vector<StoredTensor>& tensors) {
  int64_t hidden = 0;
  bool has_qkv = false;
  for (const StoredTensor& tensor : tensors) {
    const bool is_qkv = tensor.name.ends_with(kQkvWeight);
    if (!is_qkv && !tensor.name.ends_with(kUpWeight)) continue;
    const Shape& shape = tensor.shape;
    if (shape.rank() != 2 || (hidden != 0 && shape[1] != hidden)) return 0;
    hidden = shape[1];
    has_qkv = has_qkv || is_qkv;
    if (is_qkv && (shape[0] % 3 != 0 || shape[0] / 3 != hidden)) return 0;
  }
  return has_qkv ? hidden : 0;
}

void turn_linear_layers(std::vector<StoredTensor>& tensors, const std::string& where) {
  if (hidden_size_of_linear_layers(tensors) == 0) return;
  log_info("{}: layers are stored as torch.nn.Linear, as nanoGPT does; read transposed", where);
  for (StoredTensor& tensor : tensors) {
    if (is_linear_weight(tensor)) tensor = tensor.transposed();
  }
}

}  // namespace

void undo_training_form(std::vector<StoredTensor>& tensors, const std::string& where) {
  strip_prefixes(tensors, where);
  turn_linear_layers(tensors, where);
}

}  // namespace caravan
