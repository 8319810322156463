#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/mapped_file.h"
#include "core/tensor.h"

namespace caravan {

/// Steps between neighbours of each dimension, in elements; those beyond the rank are 0.
using Strides = std::array<int64_t, Shape::kMaxRank>;

/// `strides` with those of empty tensors and of dimensions of size 1, which mean nothing, ignored:
/// nullopt when the elements lie row-major without gaps.
std::optional<Strides> meaningful_strides(const Shape& shape, const Strides& strides);

/// Where one stored tensor lies; little endian. Element (i, j, ...) is at `offset` plus
/// i * strides[0] + j * strides[1] + ... elements; every element lies inside the file.
struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  const MappedFile* file = nullptr;  // owned by the TensorSource
  uint64_t offset = 0;               // in the file
  std::optional<Strides> strides{};  // none: row-major without gaps, as most are

  bool is_contiguous() const { return !strides; }
  /// A matrix that lies as its transpose would: column by column without gaps.
  bool is_transposed() const {
    return strides && shape.rank() == 2 && (*strides)[0] == 1 && (*strides)[1] == shape[0];
  }
  /// Of the elements, which is less than they span when there are gaps.
  uint64_t num_bytes() const;
  /// Bytes of the file from the first element to the end of the last.
  uint64_t span_bytes() const;

  /// The mapped bytes; not necessarily aligned for the dtype.
  /// Errors: kUnsupported naming the tensor when it is not contiguous.
  const std::byte* data() const;
  /// The mapped bytes from the first element on, however the others lie.
  const std::byte* first_byte() const { return file->data() + offset; }
  /// Elements [first, first + count) in row-major order: in the mapped file, or gathered into
  /// `scratch`, which grows to count elements.
  const std::byte* read(int64_t first, int64_t count, std::vector<std::byte>& scratch) const;
  /// The pages of those elements may go. Where elements are not contiguous that is done with the
  /// last ones: each page holds some of many rows.
  void release(int64_t first, int64_t count) const;

  /// Requires: a matrix. The same bytes as its transpose.
  StoredTensor transposed() const;
};

}  // namespace caravan
