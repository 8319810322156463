#pragma once

#include <cstddef>
#include <optional>

#include "core/dtype.h"

namespace caravan {

/// The first of `count` values of `src` that is infinite or NaN once convert_elements() made it
/// `dst_dtype`; nullopt when there is none. src needs no alignment.
/// Requires: both dtypes floating; dst_dtype kF32, kF16 or kBF16.
std::optional<size_t> first_not_finite(const void* src, DType src_dtype, DType dst_dtype,
                                       size_t count);

}  // namespace caravan
