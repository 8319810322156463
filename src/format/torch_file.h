#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/tensor.h"
#include "format/stored_tensor.h"

namespace caravan {

/// One tensor of a file that torch.save wrote; little endian.
struct TorchTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  uint64_t offset = 0;             // of its first element, bytes from the start of the file
  std::optional<Strides> strides;  // as StoredTensor's
};

/// The tensors of a state dict saved by torch.save, in its order: the zip form (torch >= 1.6) or
/// the legacy form. A training checkpoint is a dict around it: the one under "model", "state_dict",
/// "model_state_dict" or "module" is read, the rest (optimizer, settings) is not looked at.
/// `bytes` is the whole file, `where` its name in messages; every element lies inside it.
/// Errors: kCorrupt; kUnsupported for compressed or encrypted entries, TorchScript, big endian, and
/// whatever run_pickle refuses. What is wrong with a tensor names it.
std::vector<TorchTensor> parse_torch_file(std::span<const std::byte> bytes,
                                          const std::string& where);

}  // namespace caravan
