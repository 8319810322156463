#pragma once

#include <string>
#include <vector>

#include "format/stored_tensor.h"

namespace caravan {

/// Gives the tensors of a state dict the names and the orientation that Hugging Face stores, where
/// training code changed all of them alike:
/// - prefixes of wrappers that every name has: "module.", "model.", "_orig_mod.",
///   "_forward_module.", "pretrained_model.", in any order and number, and "transformer." where
///   the language model itself is a part of that name ("transformer.lm_head.weight");
/// - nanoGPT's layers, torch.nn.Linear in place of Conv1D: known by c_attn.weight of every layer
///   being [3n, n] and c_fc.weight [m, n]. All four matrices of each layer are turned, without
///   touching a byte.
/// What is undone is said in one line each. Time: linear in the names.
void undo_training_form(std::vector<StoredTensor>& tensors, const std::string& where);

}  // namespace caravan
