#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/tensor.h"

namespace caravan {

/// One tensor of a file that torch.save wrote; contiguous, little endian.
struct TorchTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  uint64_t offset = 0;  // bytes from the start of the file
};

/// The tensors of a state dict saved by torch.save, in its order: the zip form (torch >= 1.6) or
/// the legacy form. `bytes` is the whole file, `where` its name in messages; every tensor lies
/// inside it. Errors: kCorrupt; kUnsupported for compressed or encrypted entries, TorchScript, big
/// endian, tensors that are not contiguous, and whatever run_pickle refuses.
std::vector<TorchTensor> parse_torch_file(std::span<const std::byte> bytes,
                                          const std::string& where);

}  // namespace caravan
