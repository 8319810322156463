#include "format/stored_tensor.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace caravan {

namespace {

// Rows and columns of the squares in which a matrix is gathered: 64 runs of 64 elements stay in
// the first-level cache, whichever of the two directions is the one without gaps.
constexpr int64_t kTile = 64;

template <typename T>
void gather_tile(const std::byte* src, const Strides& strides, int64_t row_begin, int64_t row_end,
                 int64_t column_begin, int64_t column_end, int64_t width, std::byte* dst) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    for (int64_t j = column_begin; j < column_end; ++j) {
      std::memcpy(dst + (i * width + j) * static_cast<int64_t>(sizeof(T)),
                  src + (i * strides[0] + j * strides[1]) * static_cast<int64_t>(sizeof(T)),
                  sizeof(T));
    }
  }
}

// Whole rows of a matrix; src is the first of them.
template <typename T>
void gather_rows(const std::byte* src, const Strides& strides, int64_t rows, int64_t width,
                 std::byte* dst) {
#pragma omp parallel for schedule(static) if (rows * width > (int64_t{1} << 16))
  for (int64_t j = 0; j < width; j += kTile) {
    for (int64_t i = 0; i < rows; i += kTile) {
      gather_tile<T>(src, strides, i, std::min(i + kTile, rows), j, std::min(j + kTile, width),
                     width, dst);
    }
  }
}

// Elements [first, first + count) of any shape, one by one.
template <typename T>
void gather_elements(const std::byte* src, const Shape& shape, const Strides& strides,
                     int64_t first, int64_t count, std::byte* dst) {
  for (int64_t n = 0; n < count; ++n) {
    int64_t rest = first + n;
    int64_t at = 0;
    for (int d = shape.rank() - 1; d >= 0; --d) {
      at += rest % shape[d] * strides[static_cast<size_t>(d)];
      rest /= shape[d];
    }
    std::memcpy(dst + n * static_cast<int64_t>(sizeof(T)),
                src + at * static_cast<int64_t>(sizeof(T)), sizeof(T));
  }
}

template <typename T>
void gather(const StoredTensor& tensor, int64_t first, int64_t count, std::byte* dst) {
  const std::byte* src = tensor.first_byte();
  const Strides& strides = *tensor.strides;
  const auto elements = [&](int64_t begin, int64_t end) {
    gather_elements<T>(src, tensor.shape, strides, begin, end - begin,
                       dst + (begin - first) * static_cast<int64_t>(sizeof(T)));
  };
  const int64_t end = first + count;
  const int64_t width = tensor.shape[tensor.shape.rank() - 1];
  const int64_t row_begin = ceil_div(first, width);
  const int64_t row_end = end / width;
  if (tensor.shape.rank() != 2 || row_begin >= row_end) return elements(first, end);
  elements(first, row_begin * width);
  gather_rows<T>(src + row_begin * strides[0] * static_cast<int64_t>(sizeof(T)), strides,
                 row_end - row_begin, width,
                 dst + (row_begin * width - first) * static_cast<int64_t>(sizeof(T)));
  elements(row_end * width, end);
}

}  // namespace

std::optional<Strides> meaningful_strides(const Shape& shape, const Strides& strides) {
  if (shape.num_elements() == 0) return std::nullopt;
  Strides result{};
  bool is_contiguous = true;
  int64_t expected = 1;  // products of the last sizes
  for (int d = shape.rank() - 1; d >= 0; --d) {
    const auto at = static_cast<size_t>(d);
    result[at] = shape[d] == 1 ? expected : strides[at];
    is_contiguous = is_contiguous && result[at] == expected;
    expected *= shape[d];
  }
  if (is_contiguous) return std::nullopt;
  return result;
}

uint64_t StoredTensor::num_bytes() const {
  return static_cast<uint64_t>(shape.num_elements()) * dtype_size(dtype);
}

uint64_t StoredTensor::span_bytes() const {
  if (!strides) return num_bytes();
  int64_t last = 0;
  for (int d = 0; d < shape.rank(); ++d) {
    last += (shape[d] - 1) * (*strides)[static_cast<size_t>(d)];
  }
  return static_cast<uint64_t>(last + 1) * dtype_size(dtype);
}

const std::byte* StoredTensor::data() const {
  CARAVAN_CHECK_CODE(is_contiguous(), kUnsupported, "{}: {}: a tensor that is not contiguous",
                     file->path(), printable(name));
  return first_byte();
}

const std::byte* StoredTensor::read(int64_t first, int64_t count,
                                    std::vector<std::byte>& scratch) const {
  const size_t size = dtype_size(dtype);
  if (is_contiguous()) return first_byte() + first * static_cast<int64_t>(size);
  scratch.resize(static_cast<size_t>(count) * size);
  switch (size) {
    case 1:
      gather<uint8_t>(*this, first, count, scratch.data());
      break;
    case 2:
      gather<uint16_t>(*this, first, count, scratch.data());
      break;
    case 4:
      gather<uint32_t>(*this, first, count, scratch.data());
      break;
    default:
      gather<uint64_t>(*this, first, count, scratch.data());
      break;
  }
  return scratch.data();
}

void StoredTensor::release(int64_t first, int64_t count) const {
  const uint64_t size = dtype_size(dtype);
  if (is_contiguous()) {
    file->release(offset + static_cast<uint64_t>(first) * size,
                  static_cast<uint64_t>(count) * size);
  } else if (first + count == shape.num_elements()) {
    file->release(offset, span_bytes());
  }
}

StoredTensor StoredTensor::transposed() const {
  StoredTensor result = *this;
  result.shape = Shape{shape[1], shape[0]};
  const Strides own = strides.value_or(Strides{shape[1], 1});
  result.strides = meaningful_strides(result.shape, {own[1], own[0]});
  return result;
}

}  // namespace caravan
