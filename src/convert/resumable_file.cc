#include "convert/resumable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <span>
#include <sstream>
#include <string_view>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "core/mapped_file.h"

namespace caravan {

namespace {

constexpr size_t kReadBytes = size_t{4} << 20;
constexpr size_t kMaxJournalBytes = size_t{64} << 20;
constexpr int kJournalVersion = 2;

const char* safetensors_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    default:
      CARAVAN_FAIL(kUnsupported, "a checkpoint cannot hold {}", dtype_name(dtype));
  }
}

void write_all(int fd, const std::string& path, uint64_t offset, const void* data,
               size_t num_bytes) {
  const char* bytes = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t n = ::pwrite(fd, bytes, num_bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    CARAVAN_CHECK_OS(n >= 0, "{}: write failed at offset {}", path, offset);
    bytes += n;
    offset += static_cast<uint64_t>(n);
    num_bytes -= static_cast<size_t>(n);
  }
}

std::string journal_line(int rank, size_t tensor, uint64_t hash) {
  return fmt::format("{} {} {}\n", rank, tensor, checksum_text(hash));
}

// Fewer bytes at the end of the file.
size_t read_some(int fd, const std::string& path, uint64_t offset, void* data, size_t num_bytes) {
  size_t done = 0;
  while (done < num_bytes) {
    const ssize_t n = ::pread(fd, static_cast<char*>(data) + done, num_bytes - done,
                              static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    CARAVAN_CHECK_OS(n >= 0, "{}: read failed at offset {}", path, offset + done);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

std::string read_whole(int fd, const std::string& path) {
  struct stat info {};
  CARAVAN_CHECK_OS(::fstat(fd, &info) == 0, "{}: cannot look at it", path);
  const auto num_bytes = static_cast<size_t>(info.st_size);
  CARAVAN_CHECK_CODE(num_bytes <= kMaxJournalBytes, kCorrupt, "{}: {} bytes, at most {} expected",
                     path, num_bytes, kMaxJournalBytes);
  std::string text(num_bytes, '\0');
  text.resize(read_some(fd, path, 0, text.data(), text.size()));
  return text;
}

/// "--dtype float16, now bfloat16": the members of `settings` that `line`, an earlier run's, has
/// otherwise.
std::string changed_settings(const std::string& line, const boost::json::object& settings,
                             const std::string& path) {
  std::string text;
  try {
    const boost::json::value earlier = parse_json(line, path);
    const boost::json::object& before = earlier.as_object();
    for (const auto& member : settings) {
      const boost::json::value* value = before.if_contains(member.key());
      if (value != nullptr && *value == member.value()) continue;
      text += fmt::format("{}{} {}, now {}", text.empty() ? "" : "; ", std::string(member.key()),
                          value == nullptr ? "not given" : printable(to_json_text(*value)),
                          printable(to_json_text(member.value())));
    }
  } catch (const std::exception&) {  // a line that a crash tore
    return "it is not whole";
  }
  return text.empty() ? "it is another model's" : text;
}

}  // namespace

ResumableSafetensors::ResumableSafetensors(const FileAt& file,
                                           const std::vector<SafetensorsWriter::Spec>& tensors,
                                           const std::map<std::string, std::string>& metadata)
    : path_(file.path) {
  boost::json::object header;
  boost::json::object pairs;
  for (const auto& [key, value] : metadata) pairs[key] = value;
  header["__metadata__"] = std::move(pairs);
  int64_t offset = 0;
  for (const auto& tensor : tensors) {
    const int64_t num_bytes = checked_mul(
        tensor.shape.num_elements(), static_cast<int64_t>(dtype_size(tensor.dtype)), tensor.name);
    const int64_t end = checked_add(offset, num_bytes, tensor.name);
    boost::json::array sizes;
    for (int i = 0; i < tensor.shape.rank(); ++i) sizes.push_back(tensor.shape[i]);
    header[tensor.name] = {{"dtype", safetensors_name(tensor.dtype)},
                           {"shape", std::move(sizes)},
                           {"data_offsets", boost::json::array{offset, end}}};
    ends_.push_back(static_cast<uint64_t>(end));
    names_.push_back(tensor.name);
    offset = end;
  }
  std::string json = to_json_text(header);
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const uint64_t length = json.size();
  header_.assign(reinterpret_cast<const char*>(&length), sizeof(length));
  header_ += json;
  for (uint64_t& end : ends_) end += header_.size();
  hash_.emplace();
  fd_ = open_own_file(file);
}

ResumableSafetensors::~ResumableSafetensors() {
  if (fd_ >= 0) ::close(fd_);
}

std::optional<TensorChecksum> ResumableSafetensors::matches(uint64_t begin, uint64_t end,
                                                            uint64_t hash) const {
  std::vector<char> buffer(static_cast<size_t>(std::min<uint64_t>(kReadBytes, end - begin)));
  TensorHasher state;
  for (uint64_t at = begin; at < end;) {
    const auto want = static_cast<size_t>(std::min<uint64_t>(kReadBytes, end - at));
    if (read_some(fd_, path_, at, buffer.data(), want) != want) return std::nullopt;
    state.update(std::as_bytes(std::span(buffer.data(), want)));
    at += want;
  }
  if (state.digest() != hash) return std::nullopt;
  return state.finish();
}

size_t ResumableSafetensors::resume(const std::vector<uint64_t>& hashes) {
  std::string found(header_.size(), '\0');
  const bool has_header =
      read_some(fd_, path_, 0, found.data(), found.size()) == found.size() && found == header_;
  if (has_header) {
    while (current_ < std::min(hashes.size(), ends_.size())) {
      std::optional<TensorChecksum> kept =
          matches(begin_of(current_), ends_[current_], hashes[current_]);
      if (!kept) break;
      checksums_.push_back(*std::move(kept));
      ++current_;
    }
  } else {
    write_all(fd_, path_, 0, header_.data(), header_.size());
  }
  offset_ = begin_of(current_);
  CARAVAN_CHECK_OS(::ftruncate(fd_, static_cast<off_t>(offset_)) == 0, "{}: cannot cut to {} bytes",
                   path_, offset_);
  return current_;
}

void ResumableSafetensors::write(const void* data, size_t num_bytes) {
  CARAVAN_CHECK_CODE(current_ < ends_.size() && num_bytes <= ends_[current_] - offset_, kInternal,
                     "{}: tensor {}: more bytes than its shape has", path_, current_);
  write_all(fd_, path_, offset_, data, num_bytes);
  hash_->update({static_cast<const std::byte*>(data), num_bytes});
  offset_ += num_bytes;
}

uint64_t ResumableSafetensors::end_tensor() {
  CARAVAN_CHECK_CODE(current_ < ends_.size() && offset_ == ends_[current_], kInternal,
                     "{}: tensor {}: {} bytes written, not the size of its shape", path_, current_,
                     offset_ - begin_of(current_));
  ++current_;
  const uint64_t digest = hash_->digest();
  checksums_.push_back(hash_->finish());
  hash_.emplace();
  return digest;
}

FileChecksums ResumableSafetensors::checksums() const {
  FileChecksums result;
  result.header = xxh3(std::as_bytes(std::span(header_.data(), header_.size())));
  for (size_t i = 0; i < checksums_.size(); ++i) result.tensors[names_[i]] = checksums_[i];
  return result;
}

void ResumableSafetensors::finish() {
  CARAVAN_CHECK_CODE(current_ == ends_.size(), kInternal, "{}: {} of {} tensors written", path_,
                     current_, ends_.size());
  CARAVAN_CHECK_OS(::fsync(fd_) == 0, "{}: fsync failed", path_);
}

ConvertJournal::ConvertJournal(const FileAt& file, uint64_t key,
                               const boost::json::object& settings)
    : path_(file.path) {
  const std::string first_line =
      fmt::format("{}{} {}", kJournalTitle, kJournalVersion, checksum_text(key));
  first_lines_ = first_line + "\n" + to_json_text(settings) + "\n";
  fd_ = open_own_file(file, O_APPEND);
  std::istringstream text(read_whole(fd_, path_));
  std::string line;
  // A line counts only with its newline: getline() then has not met the end of the text.
  const auto next = [&] { return static_cast<bool>(std::getline(text, line)) && !text.eof(); };
  if (next()) {
    const bool is_same = line == first_line;
    const bool is_this_version =
        line.starts_with(fmt::format("{}{} ", kJournalTitle, kJournalVersion));
    const bool has_settings = next();
    if (!is_same) {
      restart_reason_ = is_this_version && has_settings ? changed_settings(line, settings, path_)
                                                        : "it is another version's";
    }
    int rank = 0;
    size_t tensor = 0;
    unsigned long long hash = 0;
    while (is_same && next() &&
           std::sscanf(line.c_str(), "%d %zu %16llx", &rank, &tensor, &hash) == 3 &&
           tensor == finished_[rank].size()) {
      finished_[rank].push_back(hash);
    }
  }
  rewrite();
}

ConvertJournal::~ConvertJournal() {
  if (fd_ >= 0) ::close(fd_);
}

void ConvertJournal::append(const std::string& text) {
  // One write(): a kill leaves the whole text or none of it; what a crash of the machine tears is
  // found by the hashes.
  const ssize_t n = ::write(fd_, text.data(), text.size());
  CARAVAN_CHECK_OS(n >= 0, "{}: write failed", path_);
  CARAVAN_CHECK_CODE(n == static_cast<ssize_t>(text.size()), kIo,
                     "{}: write failed: only a part was written", path_);
}

void ConvertJournal::rewrite() {
  CARAVAN_CHECK_OS(::ftruncate(fd_, 0) == 0, "{}: cannot empty it", path_);
  std::string text = first_lines_;
  for (const auto& [rank, hashes] : finished_) {
    for (size_t i = 0; i < hashes.size(); ++i) text += journal_line(rank, i, hashes[i]);
  }
  append(text);
}

std::vector<uint64_t> ConvertJournal::finished(int rank) const {
  const auto found = finished_.find(rank);
  return found == finished_.end() ? std::vector<uint64_t>() : found->second;
}

void ConvertJournal::record(int rank, size_t tensor, uint64_t hash) {
  append(journal_line(rank, tensor, hash));
  finished_[rank].push_back(hash);
}

void ConvertJournal::keep(int rank, size_t num_tensors) {
  if (finished(rank).size() <= num_tensors) return;
  finished_[rank].resize(num_tensors);
  rewrite();
}

uint64_t hash_file(const std::string& path, Progress& progress) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  CARAVAN_CHECK_OS(fd >= 0, "{}: cannot open", path);
  std::vector<char> buffer(kReadBytes);
  Xxh3 state;
  try {
    for (uint64_t offset = 0;;) {
      const size_t n = read_some(fd, path, offset, buffer.data(), buffer.size());
      state.update(std::as_bytes(std::span(buffer.data(), n)));
      progress.add(n);
      offset += n;
      if (n < buffer.size()) break;
    }
  } catch (...) {
    ::close(fd);
    throw;
  }
  ::close(fd);
  return state.digest();
}

}  // namespace caravan
