#include "core/tensor.h"

#include <sys/mman.h>

#include <utility>

#include "core/error.h"

namespace caravan {

int64_t checked_mul(int64_t a, int64_t b, std::string_view what) {
  int64_t product;
  CARAVAN_CHECK(a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product),
                "{}: {} x {} does not fit in 63 bits", what, a, b);
  return product;
}

int64_t checked_add(int64_t a, int64_t b, std::string_view what) {
  int64_t sum;
  CARAVAN_CHECK(a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, &sum),
                "{}: {} + {} does not fit in 63 bits", what, a, b);
  return sum;
}

Shape::Shape(std::initializer_list<int64_t> sizes) { *this = from(sizes.begin(), sizes.size()); }

Shape Shape::from(const int64_t* sizes, size_t rank) {
  CARAVAN_CHECK(rank <= kMaxRank, "shape has {} dimensions, at most {} are supported", rank,
                static_cast<int>(kMaxRank));
  Shape shape;
  shape.rank_ = static_cast<int>(rank);
  int64_t product = 1;
  for (size_t i = 0; i < rank; ++i) {
    CARAVAN_CHECK(sizes[i] >= 0, "shape has a negative size {}", sizes[i]);
    product = checked_mul(product, sizes[i], "shape");
    shape.sizes_[i] = sizes[i];
  }
  return shape;
}

int64_t Shape::num_elements() const {
  int64_t product = 1;
  for (int i = 0; i < rank_; ++i) product *= (*this)[i];
  return product;
}

std::string Shape::to_string() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) text += (i != 0 ? "," : "") + std::to_string((*this)[i]);
  return text + "]";
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)),
      free_(std::exchange(other.free_, nullptr)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr && free_) free_(data_, num_bytes_);
    data_ = std::exchange(other.data_, nullptr);
    num_bytes_ = std::exchange(other.num_bytes_, 0);
    free_ = std::exchange(other.free_, nullptr);
  }
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr && free_) free_(data_, num_bytes_);
}

Buffer Buffer::host(size_t num_bytes) {
  if (num_bytes == 0) return {};
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t alignment = num_bytes >= 2 * kHugePage ? kHugePage : 4096;
  const size_t mapped = static_cast<size_t>(round_up(
      checked_add(static_cast<int64_t>(num_bytes), static_cast<int64_t>(alignment), "buffer size"),
      4096));
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CARAVAN_CHECK_CODE(base != MAP_FAILED, kOutOfMemory, "cannot allocate {} bytes of host memory",
                     num_bytes);
  const auto address = reinterpret_cast<uintptr_t>(base);
  auto* aligned = reinterpret_cast<void*>((address + alignment - 1) / alignment * alignment);
  if (alignment == kHugePage) madvise(aligned, num_bytes, MADV_HUGEPAGE);
  return Buffer(aligned, num_bytes, [base, mapped](void*, size_t) { munmap(base, mapped); });
}

}  // namespace caravan
