#pragma once

#include <cuda.h>

#include <initializer_list>

#include "core/dtype.h"

namespace caravan::cuda {

/// A map of a tensor of up to three dimensions, innermost first, for the copy engine; what lies
/// outside reads as zero. dtype: kF16 or kBF16. strides: bytes, of all dimensions but the first.
/// box: elements of one copy. Errors: kUnsupported for a driver older than CUDA 12,
/// kInvalidArgument for what the engine cannot copy.
CUtensorMap make_tensor_map(DType dtype, const void* data, std::initializer_list<cuuint64_t> sizes,
                            std::initializer_list<cuuint64_t> strides,
                            std::initializer_list<cuuint32_t> box, CUtensorMapSwizzle swizzle);

}  // namespace caravan::cuda
