#include "eval/logits_dump.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <system_error>

#include "core/error.h"
#include "core/mapped_file.h"

namespace caravan {

namespace {

namespace fs = std::filesystem;

constexpr const char* kIds = "input_ids";
constexpr const char* kStarts = "window_start";
constexpr const char* kLogits = "logits";

const StoredTensor& find(const TensorSource& source, const std::string& path, const char* name,
                         int rank, const char* expected) {
  const StoredTensor* tensor = source.find(name);
  CARAVAN_CHECK_CODE(tensor != nullptr, kCorrupt, "{}: no tensor \"{}\": expected {}", path, name,
                     expected);
  CARAVAN_CHECK_CODE(tensor->shape.rank() == rank, kCorrupt, "{}: {}: shape {}, expected {}", path,
                     name, tensor->shape.to_string(), expected);
  return *tensor;
}

std::vector<int32_t> read_integers(const TensorSource& source, const std::string& path,
                                   const char* name, const char* expected) {
  const StoredTensor& tensor = find(source, path, name, 1, expected);
  CARAVAN_CHECK_CODE(tensor.dtype == DType::kI32, kUnsupported, "{}: {}: dtype {}, expected {}",
                     path, name, dtype_name(tensor.dtype), expected);
  const std::span<const std::byte> bytes = tensor.file->bytes(tensor.offset, tensor.num_bytes());
  std::vector<int32_t> values(bytes.size() / sizeof(int32_t));
  std::copy(bytes.begin(), bytes.end(), std::as_writable_bytes(std::span(values)).begin());
  return values;
}

int64_t free_bytes(const std::string& path) {
  fs::path folder = fs::path(path).parent_path();
  if (folder.empty()) folder = ".";
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error) throw_os_error(error.value(), path + ": cannot write there");
  return static_cast<int64_t>(std::min<uintmax_t>(space.available, INT64_MAX));
}

std::vector<SafetensorsWriter::Spec> specs(const LogitsDumpWriter::Contents& contents) {
  const auto num_tokens = static_cast<int64_t>(contents.input_ids.size());
  return {{kIds, DType::kI32, Shape{num_tokens}},
          {kStarts, DType::kI32, Shape{static_cast<int64_t>(contents.window_start.size())}},
          {kLogits, contents.dtype, Shape{num_tokens, contents.vocab_size}}};
}

/// The path itself, once it is known that the file can be written there.
const std::string& checked_path(const std::string& path,
                                const LogitsDumpWriter::Contents& contents) {
  CARAVAN_CHECK(contents.dtype == DType::kF32 || contents.dtype == DType::kF16,
                "{}: logits as {}: expected float32 or float16", path, dtype_name(contents.dtype));
  const int64_t needed = LogitsDumpWriter::num_bytes(
      static_cast<int64_t>(contents.input_ids.size()),
      static_cast<int64_t>(contents.window_start.size()), contents.vocab_size, contents.dtype);
  std::error_code error;
  if (fs::exists(path, error) && !fs::is_regular_file(path, error)) return path;  // a FIFO
  const int64_t available = free_bytes(path);
  CARAVAN_CHECK_CODE(needed <= available, kIo,
                     "{}: the dump takes {:.3f} GB, the disk has {:.3f} GB free: dump fewer tokens "
                     "or as float16",
                     path, static_cast<double>(needed) / 1e9, static_cast<double>(available) / 1e9);
  return path;
}

}  // namespace

LogitsDump LogitsDump::open(const std::string& path) {
  CARAVAN_CHECK(path.ends_with(".safetensors"), "{}: a dump of logits ends in .safetensors", path);
  return {path, TensorSource::open_file(path)};
}

LogitsDump::LogitsDump(const std::string& path, TensorSource source)
    : path_(path), source_(std::move(source)) {
  input_ids_ = read_integers(source_, path, kIds, "int32 [num_tokens]");
  window_start_ = read_integers(source_, path, kStarts, "int32 [num_windows]");
  logits_ = &find(source_, path, kLogits, 2, "float32 or float16 [num_tokens, vocab_size]");
  CARAVAN_CHECK_CODE(logits_->dtype == DType::kF32 || logits_->dtype == DType::kF16, kUnsupported,
                     "{}: logits: dtype {}, expected float32 or float16", path,
                     dtype_name(logits_->dtype));
  CARAVAN_CHECK_CODE(logits_->shape[0] == num_tokens() && num_tokens() > 0, kCorrupt,
                     "{}: logits: {} rows for {} input_ids, expected as many, at least 1", path,
                     logits_->shape[0], num_tokens());
  vocab_size_ = logits_->shape[1];
  CARAVAN_CHECK_CODE(vocab_size_ > 0, kCorrupt, "{}: logits: shape {}, expected a vocabulary", path,
                     logits_->shape.to_string());
  CARAVAN_CHECK_CODE(!window_start_.empty() && window_start_[0] == 0, kCorrupt,
                     "{}: window_start: expected it to begin with 0", path);
  for (size_t w = 1; w < window_start_.size(); ++w) {
    CARAVAN_CHECK_CODE(window_start_[w] > window_start_[w - 1] && window_start_[w] < num_tokens(),
                       kCorrupt,
                       "{}: window_start[{}]: got {}, expected more than {} and less than {}", path,
                       w, window_start_[w], window_start_[w - 1], num_tokens());
  }
  for (size_t i = 0; i < input_ids_.size(); ++i) {
    CARAVAN_CHECK_CODE(input_ids_[i] >= 0 && input_ids_[i] < vocab_size_, kCorrupt,
                       "{}: input_ids[{}]: got {}, expected 0 to {}", path, i, input_ids_[i],
                       vocab_size_ - 1);
  }
}

void LogitsDump::read_row(int64_t row, std::span<float> logits) const {
  const auto count = static_cast<size_t>(vocab_size_);
  CARAVAN_CHECK_CODE(row >= 0 && row < num_tokens() && logits.size() == count, kInternal,
                     "{}: row {} of {} into {} floats", path_, row, num_tokens(), logits.size());
  const size_t size = dtype_size(logits_->dtype);
  convert_elements(logits_->data() + static_cast<size_t>(row) * count * size, logits_->dtype,
                   logits.data(), DType::kF32, count);
}

void LogitsDump::release_before(int64_t row) {
  if (row <= num_released_) return;
  const uint64_t row_bytes = static_cast<uint64_t>(vocab_size_) * dtype_size(logits_->dtype);
  logits_->file->release(logits_->offset + static_cast<uint64_t>(num_released_) * row_bytes,
                         static_cast<uint64_t>(row - num_released_) * row_bytes);
  num_released_ = row;
}

int64_t LogitsDumpWriter::num_bytes(int64_t num_tokens, int64_t num_windows, int64_t vocab_size,
                                    DType dtype) {
  const int64_t row = checked_mul(vocab_size, static_cast<int64_t>(dtype_size(dtype)), "logits");
  const int64_t integers = checked_mul(checked_add(num_tokens, num_windows, "logits"),
                                       static_cast<int64_t>(sizeof(int32_t)), "logits");
  return checked_add(checked_mul(row, num_tokens, "logits"), integers, "logits");
}

LogitsDumpWriter::LogitsDumpWriter(const std::string& path, const Contents& contents)
    : path_(path),
      dtype_(contents.dtype),
      file_(checked_path(path, contents), specs(contents), contents.metadata) {
  file_.write(contents.input_ids.data(), contents.input_ids.size() * sizeof(int32_t));
  file_.write(contents.window_start.data(), contents.window_start.size() * sizeof(int32_t));
}

void LogitsDumpWriter::write_row(std::span<const float> logits) {
  if (dtype_ == DType::kF32) {
    file_.write(logits.data(), logits.size_bytes());
  } else {
    constexpr float kLargest = 65504;
    for (size_t i = 0; i < logits.size(); ++i) {
      CARAVAN_CHECK_CODE(!(std::abs(logits[i]) > kLargest) || std::isinf(logits[i]), kUnsupported,
                         "{}: logit {} of row {} is {}, beyond float16: write float32", path_, i,
                         num_rows_, logits[i]);
    }
    row_.resize(logits.size());
    convert_elements(logits.data(), DType::kF32, row_.data(), DType::kF16, logits.size());
    file_.write(row_.data(), row_.size() * sizeof(uint16_t));
  }
  ++num_rows_;
}

void LogitsDumpWriter::finish() { file_.finish(); }

}  // namespace caravan
