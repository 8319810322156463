#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>

#include "core/dtype.h"

namespace caravan {

/// Sizes of up to four dimensions, outermost first; row-major. Every product is checked.
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);
  /// Errors: kInvalidArgument when rank > 4, a size is negative, or the product overflows int64.
  static Shape from(const int64_t* sizes, size_t rank);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return sizes_[static_cast<size_t>(i)]; }
  int64_t num_elements() const;
  std::string to_string() const;  // "[4096,12288]"
  bool operator==(const Shape&) const = default;

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

/// A view: never owns, never outlives the memory it points to.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  size_t num_bytes() const { return static_cast<size_t>(shape.num_elements()) * dtype_size(dtype); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

/// A view of memory that must not be written, such as a mapped file.
struct ConstTensor {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  ConstTensor() = default;
  ConstTensor(const void* d, DType t, Shape s) : data(d), dtype(t), shape(s) {}
  ConstTensor(const Tensor& t) : data(t.data), dtype(t.dtype), shape(t.shape) {}  // NOLINT: a view

  size_t num_bytes() const { return static_cast<size_t>(shape.num_elements()) * dtype_size(dtype); }
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

/// Owns one block of memory; moves only. Freed by the function it was made with.
class Buffer {
 public:
  using Free = std::function<void(void* data, size_t num_bytes)>;

  Buffer() = default;
  Buffer(void* data, size_t num_bytes, Free free)
      : data_(data), num_bytes_(num_bytes), free_(std::move(free)) {}
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  /// Host memory, zeroed, 4 KiB aligned (2 MiB and transparent huge pages from 4 MiB on).
  /// Errors: kOutOfMemory.
  static Buffer host(size_t num_bytes);

  void* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t num_bytes_ = 0;
  Free free_;
};

/// a * b with overflow as kInvalidArgument naming `what`. a, b >= 0.
int64_t checked_mul(int64_t a, int64_t b, std::string_view what);
int64_t checked_add(int64_t a, int64_t b, std::string_view what);

/// n rounded up to a multiple of `multiple`; multiple > 0.
constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
constexpr int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

}  // namespace caravan
