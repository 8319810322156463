#include "models/device_batch.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace caravan {

namespace {

constexpr size_t kAlignment = 256;

size_t aligned(size_t num_bytes) { return (num_bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Hands out pieces of one block of memory, in the order in which they are asked for.
class Arena {
 public:
  Arena(std::byte* host, const std::byte* device) : host_(host), device_(device) {}

  /// Room for `count` T; its host side is returned, `tensor` gets the device side.
  template <typename T>
  T* take(int64_t count, DType dtype, const Shape& shape, ConstTensor& tensor) {
    auto* at = reinterpret_cast<T*>(host_ + used_);
    tensor = {device_ + used_, dtype, shape};
    used_ += aligned(static_cast<size_t>(count) * sizeof(T));
    return at;
  }
  size_t used() const { return used_; }

 private:
  std::byte* host_;
  const std::byte* device_;
  size_t used_ = 0;
};

int64_t max_tiles(const DeviceBatchLimits& limits, int64_t query_tile) {
  return query_tile == 0 ? 0 : limits.max_num_tokens / query_tile + limits.max_num_seqs;
}

}  // namespace

size_t DeviceBatch::num_bytes(const DeviceBatchLimits& limits, int64_t query_tile) {
  const auto tokens = static_cast<size_t>(limits.max_num_tokens);
  const auto seqs = static_cast<size_t>(limits.max_num_seqs);
  const auto rows = static_cast<size_t>(limits.max_num_logits);
  return 2 * aligned(tokens * 4) + aligned(tokens * 8) + aligned((seqs + 1) * 4) +
         aligned(seqs * 4) + aligned(seqs * static_cast<size_t>(limits.max_blocks_per_seq) * 4) +
         aligned(rows * 4) + aligned(static_cast<size_t>(max_tiles(limits, query_tile)) * 8) +
         aligned(rows * kExtraBytesPerRow);
}

DeviceBatch::DeviceBatch(Backend& backend, const DeviceBatchLimits& limits)
    : backend_(backend), limits_(limits) {
  const size_t size = num_bytes(limits, backend.query_tile());
  device_ = backend.allocate(size);
  host_ = backend.allocate_host(size * kNumSlots);
}

BatchTensors DeviceBatch::prepare(const Batch& batch, int64_t num_rows, int64_t max_context_len,
                                  const void* extra, size_t extra_bytes, int slot) {
  const int64_t num_seqs = num_rows > 0 ? num_rows : batch.num_seqs();
  const int64_t num_tokens = num_rows > 0 ? num_rows : batch.num_tokens();
  const int64_t num_logits = num_rows > 0 ? num_rows : batch.num_logits();
  CARAVAN_CHECK_CODE(num_seqs >= batch.num_seqs() && num_seqs <= limits_.max_num_seqs &&
                         num_tokens <= limits_.max_num_tokens &&
                         num_logits <= limits_.max_num_logits &&
                         (num_rows == 0 || batch.is_decode()) &&
                         extra_bytes <= static_cast<size_t>(num_logits) * kExtraBytesPerRow,
                     kInternal, "a batch of {} tokens of {} sequences, padded to {}",
                     batch.num_tokens(), batch.num_seqs(), num_rows);
  Arena arena(host_slot(slot), device_.as<std::byte>());
  BatchTensors t;
  const auto copy = [](const auto& from, auto* to, int64_t size, auto padding) {
    std::copy(from.begin(), from.end(), to);
    std::fill(to + from.size(), to + size, padding);
  };
  const Shape tokens{num_tokens};
  copy(batch.slot_mapping_, arena.take<int64_t>(num_tokens, DType::kI64, tokens, t.slot_mapping),
       num_tokens, int64_t{-1});
  copy(batch.token_ids_, arena.take<int32_t>(num_tokens, DType::kI32, tokens, t.token_ids),
       num_tokens, 0);
  copy(batch.positions_, arena.take<int32_t>(num_tokens, DType::kI32, tokens, t.positions),
       num_tokens, 0);
  auto* starts =
      arena.take<int32_t>(num_seqs + 1, DType::kI32, Shape{num_seqs + 1}, t.attention.query_start);
  std::copy(batch.query_start_.begin(), batch.query_start_.end(), starts);
  for (int64_t s = batch.num_seqs() + 1; s <= num_seqs; ++s) starts[s] = starts[s - 1] + 1;
  copy(batch.context_lens_,
       arena.take<int32_t>(num_seqs, DType::kI32, Shape{num_seqs}, t.attention.context_lens),
       num_seqs, 0);
  const int64_t width = limits_.max_blocks_per_seq;
  auto* tables = arena.take<int32_t>(num_seqs * width, DType::kI32, Shape{num_seqs, width},
                                     t.attention.block_tables);
  for (size_t s = 0; s + 1 < batch.first_block_.size(); ++s) {
    const auto first =
        batch.flat_blocks_.begin() + static_cast<std::ptrdiff_t>(batch.first_block_[s]);
    const auto last =
        batch.flat_blocks_.begin() + static_cast<std::ptrdiff_t>(batch.first_block_[s + 1]);
    CARAVAN_CHECK_CODE(last - first <= width, kInternal, "a block table of {} entries, {} reserved",
                       last - first, width);
    std::copy(first, last, tables + static_cast<int64_t>(s) * width);
  }
  auto* rows = arena.take<int32_t>(num_logits, DType::kI32, Shape{num_logits}, t.logits_rows);
  copy(batch.logits_rows_, rows, num_logits, 0);
  const int64_t tile = backend_.query_tile();
  t.attention.is_decode = batch.is_decode();
  t.attention.max_context_len = max_context_len;
  if (!t.attention.is_decode && tile > 0) {
    const int64_t capacity = max_tiles(limits_, tile);
    auto* tiles =
        arena.take<int32_t>(2 * capacity, DType::kI32, Shape{0, 2}, t.attention.query_tiles);
    int64_t num_tiles = 0;
    for (int64_t s = 0; s < batch.num_seqs(); ++s) {
      const int64_t num_queries = batch.query_start_[static_cast<size_t>(s) + 1] -
                                  batch.query_start_[static_cast<size_t>(s)];
      for (int64_t q = 0; q < num_queries; q += tile) {
        tiles[2 * num_tiles] = static_cast<int32_t>(s);
        tiles[2 * num_tiles + 1] = static_cast<int32_t>(q);
        ++num_tiles;
      }
    }
    t.attention.query_tiles.shape = Shape{num_tiles, 2};
  }
  ConstTensor extra_tensor;
  auto* extra_host = arena.take<std::byte>(static_cast<int64_t>(extra_bytes), DType::kU8,
                                           Shape{static_cast<int64_t>(extra_bytes)}, extra_tensor);
  if (extra_bytes > 0) std::memcpy(extra_host, extra, extra_bytes);
  extra_ = extra_tensor.data;
  used_[static_cast<size_t>(slot)] = arena.used();
  return t;
}

void DeviceBatch::copy(int slot) {
  backend_.copy_from_host_async(host_slot(slot), device_.data(), used_[static_cast<size_t>(slot)]);
}

std::byte* DeviceBatch::host_slot(int slot) const {
  return host_.as<std::byte>() + static_cast<size_t>(slot) * device_.num_bytes();
}

}  // namespace caravan
