#include "format/weight_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <system_error>
#include <tuple>

#include "core/error.h"
#include "core/not_finite.h"
#include "core/progress.h"
#include "format/safetensors.h"

namespace caravan {

namespace {

// What is copied, hashed and looked through in one go, so that it stays in a core's cache.
constexpr size_t kBlockBytes = size_t{128} << 10;

const char* remedy_of(const ModelDir& dir) {
  return dir.kind == ModelDirKind::kEngine ? "build the engine again" : "convert the model again";
}

double value_at(const std::byte* data, DType dtype, size_t i) {
  if (dtype != DType::kF64) return load_as_f32(data, dtype, i);
  double value;
  std::memcpy(&value, data + i * sizeof(value), sizeof(value));
  return value;
}

std::vector<const StoredTensor*> in_file_order(const TensorSource& source) {
  std::vector<const StoredTensor*> tensors;
  for (const StoredTensor& tensor : source.tensors()) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return std::tie(a->offset, a->name) < std::tie(b->offset, b->name);
  });
  return tensors;
}

void check_header(const MappedFile& file, uint64_t expected, const std::string& remedy) {
  uint64_t length = 0;  // checked when the header was parsed
  std::memcpy(&length, file.data(), sizeof(length));
  const uint64_t checksum = xxh3(file.bytes(0, sizeof(length) + length));
  CARAVAN_CHECK_CODE(checksum == expected, kCorrupt,
                     "{}: checksum of the header, {} bytes at offset 0: got {}, expected {}: the "
                     "file is damaged: {}",
                     file.path(), sizeof(length) + length, checksum_text(checksum),
                     checksum_text(expected), remedy);
}

}  // namespace

TensorCheck::TensorCheck(const StoredTensor& tensor, const TensorChecksum* expected,
                         std::optional<DType> finite_as, std::string remedy)
    : tensor_(tensor), expected_(expected), finite_as_(finite_as), remedy_(std::move(remedy)) {}

size_t TensorCheck::num_items() const {
  const uint64_t num_bytes = tensor_.num_bytes();
  if (expected_ != nullptr && expected_->is_whole) return num_bytes == 0 ? 0 : 1;
  return static_cast<size_t>((num_bytes + kChecksumChunk - 1) / kChecksumChunk);
}

void TensorCheck::note(uint64_t offset, std::string what) {
  const std::lock_guard lock(mutex_);
  if (!fault_ || offset < fault_->offset) fault_ = Fault{offset, std::move(what)};
}

void TensorCheck::compare(size_t item, uint64_t offset, uint64_t num_bytes, uint64_t checksum) {
  const uint64_t expected = expected_->chunks[item];
  if (checksum == expected) return;
  note(offset, fmt::format("checksum of the {} bytes at offset {}: got {}, expected {}: the file "
                           "is damaged: {}",
                           num_bytes, tensor_.offset + offset, checksum_text(checksum),
                           checksum_text(expected), remedy_));
}

// Bytes of one item; copies them first when dst is not src.
void TensorCheck::look(uint64_t offset, const std::byte* src, std::byte* dst, size_t num_bytes,
                       bool has_checksum) {
  const size_t element = dtype_size(tensor_.dtype);
  std::optional<Xxh3> hash;
  if (has_checksum) hash.emplace();
  for (size_t at = 0; at < num_bytes; at += kBlockBytes) {
    const size_t count = std::min(kBlockBytes, num_bytes - at);
    if (dst != src) std::memcpy(dst + at, src + at, count);
    if (hash) hash->update({dst + at, count});
    if (!finite_as_) continue;
    const std::optional<size_t> found =
        first_not_finite(dst + at, tensor_.dtype, *finite_as_, count / element);
    if (!found) continue;
    const uint64_t index = (offset + at) / element + *found;
    const double value = value_at(dst + at, tensor_.dtype, *found);
    note(offset + at + *found * element,
         std::isfinite(value)
             ? fmt::format("value {} at index {} is outside the range of {}; choose --dtype {}",
                           value, index, dtype_name(*finite_as_),
                           *finite_as_ == DType::kF16 ? "bfloat16 or float32" : "float32")
             : fmt::format("value {} at index {}, expected a finite number", value, index));
  }
  if (hash) compare(offset / kChecksumChunk, offset, num_bytes, hash->digest());
}

void TensorCheck::look_at(size_t item) {
  const uint64_t offset = item * kChecksumChunk;
  const uint64_t left = tensor_.num_bytes() - offset;
  const bool is_whole = expected_ != nullptr && expected_->is_whole;
  const uint64_t num_bytes = is_whole ? left : std::min(left, kChecksumChunk);
  const auto element = static_cast<uint64_t>(dtype_size(tensor_.dtype));
  std::vector<std::byte> gathered;
  auto* bytes = const_cast<std::byte*>(  // only read: dst is src
      tensor_.read(static_cast<int64_t>(offset / element),
                   static_cast<int64_t>(num_bytes / element), gathered));
  if (tensor_.is_contiguous()) tensor_.file->will_need(tensor_.offset + offset, num_bytes);
  look(offset, bytes, bytes, num_bytes, expected_ != nullptr);
}

void TensorCheck::look_at_all() {
  const auto count = static_cast<int64_t>(num_items());
#pragma omp parallel for schedule(dynamic) if (count > 1)
  for (int64_t i = 0; i < count; ++i) look_at(static_cast<size_t>(i));
}

void TensorCheck::copy(size_t offset, const std::byte* src, std::byte* dst, size_t num_bytes) {
  const bool is_unknown =
      expected_ != nullptr && expected_->is_whole && tensor_.num_bytes() > kChecksumChunk;
  if (is_unknown) has_unknown_chunks_ = true;
  look(offset, src, dst, num_bytes, expected_ != nullptr && !is_unknown);
}

void TensorCheck::finish() {
  if (has_unknown_chunks_) look_at(0);
  if (!fault_) return;
  CARAVAN_FAIL(kCorrupt, "{}: {}: {}", tensor_.file->path(), printable(tensor_.name), fault_->what);
}

WeightFileCheck::WeightFileCheck(const ModelDir& dir, const TensorSource& source, int rank)
    : tensors_(in_file_order(source)), remedy_(remedy_of(dir)) {
  if (dir.config_checksum) {  // first: it covers the table, and that there is one

    CARAVAN_CHECK_CODE(dir.config_checksum->stored == dir.config_checksum->computed, kCorrupt,
                       "{}/config.json: caravan.config_xxh3: got {}, expected {}: the file was "
                       "changed; {}, or take config_xxh3 out if the change was meant",
                       dir.path, checksum_text(dir.config_checksum->computed),
                       checksum_text(dir.config_checksum->stored), remedy_);
  }
  if (dir.checksums.empty()) return;
  const std::string path = dir.rank_path(rank);
  expected_ = dir.checksums[static_cast<size_t>(rank)];
  if (expected_->header && !tensors_.empty()) {
    check_header(*tensors_.front()->file, *expected_->header, remedy_);
  }
  for (const StoredTensor& tensor : source.tensors()) {
    const auto found = expected_->tensors.find(tensor.name);
    CARAVAN_CHECK_CODE(found != expected_->tensors.end(), kCorrupt,
                       "{}: {} is not in the table of checksums in config.json: {}", path,
                       printable(tensor.name), remedy_);
    const TensorChecksum& checksum = found->second;
    const uint64_t num_chunks =
        checksum.is_whole ? 1 : (tensor.num_bytes() + kChecksumChunk - 1) / kChecksumChunk;
    CARAVAN_CHECK_CODE(checksum.chunks.size() == num_chunks, kCorrupt,
                       "{}: {}: {} checksums in config.json, expected {} for {} bytes: {}", path,
                       printable(tensor.name), checksum.chunks.size(), num_chunks,
                       tensor.num_bytes(), remedy_);
  }
  for (const auto& [name, checksum] : expected_->tensors) {
    CARAVAN_CHECK_CODE(source.find(name) != nullptr, kCorrupt,
                       "{}: {} is in the table of checksums but not in the file: {}", path,
                       printable(name), remedy_);
  }
}

const TensorChecksum* WeightFileCheck::find(const std::string& name) const {
  if (!expected_) return nullptr;
  const auto found = expected_->tensors.find(name);
  return found == expected_->tensors.end() ? nullptr : &found->second;
}

void WeightFileCheck::check_filler() const {
  if (!expected_ || tensors_.empty()) return;
  const MappedFile& file = *tensors_.front()->file;
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  uint64_t end = sizeof(length) + length;
  const auto check = [&](uint64_t begin) {
    const auto bytes = file.bytes(end, begin - end);
    const auto found =
        std::find_if(bytes.begin(), bytes.end(), [](std::byte b) { return b != std::byte{0}; });
    CARAVAN_CHECK_CODE(found == bytes.end(), kCorrupt,
                       "{}: between tensors, offset {}: got {:#04x}, expected 0: the file is "
                       "damaged: {}",
                       file.path(), end + static_cast<uint64_t>(found - bytes.begin()),
                       std::to_integer<int>(*found), remedy_);
  };
  for (const StoredTensor* tensor : tensors_) {
    check(tensor->offset);
    end = tensor->offset + tensor->num_bytes();
  }
  check(file.size());
}

BackgroundCheck::BackgroundCheck(const WeightFileCheck& file,
                                 std::vector<std::unique_ptr<TensorCheck>> checks, int num_threads)
    : file_(file), checks_(std::move(checks)) {
  for (const auto& check : checks_) {
    for (size_t i = 0; i < check->num_items(); ++i) items_.push_back({check.get(), i});
  }
  try {
    while (static_cast<int>(threads_.size()) < num_threads && threads_.size() < items_.size()) {
      threads_.emplace_back([this] { work(); });
    }
  } catch (const std::system_error&) {
    // No thread is to be had: wait() works.
  }
}

BackgroundCheck::~BackgroundCheck() {
  next_ = items_.size();
  for (std::thread& thread : threads_) thread.join();
}

void BackgroundCheck::work() {
  for (size_t i = next_++; i < items_.size(); i = next_++)
    items_[i].check->look_at(items_[i].index);
}

void BackgroundCheck::wait() {
  if (is_verified_) return;
  work();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  for (const auto& check : checks_) check->finish();
  file_.check_filler();
  is_verified_ = true;
  items_.clear();
  checks_.clear();
}

bool verify_checksums(const ModelDir& dir) {
  if (dir.checksums.empty() && !dir.config_checksum) return false;
  for (int rank = 0; rank < dir.tensor_parallel; ++rank) {
    const TensorSource source = TensorSource::open_file(dir.rank_path(rank));
    const WeightFileCheck file(dir, source, rank);
    uint64_t total = 0;
    for (const StoredTensor* tensor : file.tensors()) total += tensor->num_bytes();
    Progress progress("verify", total, "B");
    for (const StoredTensor* tensor : file.tensors()) {
      TensorCheck check(*tensor, file.find(tensor->name), std::nullopt, file.remedy());
      check.look_at_all();
      check.finish();
      tensor->file->release(tensor->offset, tensor->num_bytes());
      progress.add(tensor->num_bytes());
    }
    file.check_filler();
    progress.finish();
  }
  return !dir.checksums.empty();
}

}  // namespace caravan
