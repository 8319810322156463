#include "format/checksum.h"

#include <xxhash.h>
#if __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>  // the same functions with AVX2 or AVX-512 where there is one
#endif

#include <algorithm>
#include <charconv>

#include "core/error.h"

namespace caravan {

struct Xxh3::State {
  XXH3_state_t* xxh;
};

uint64_t xxh3(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

Xxh3::Xxh3() : state_(new State{XXH3_createState()}) { XXH3_64bits_reset(state_->xxh); }

Xxh3::~Xxh3() {
  XXH3_freeState(state_->xxh);
  delete state_;
}

void Xxh3::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_->xxh, bytes.data(), bytes.size());
}

uint64_t Xxh3::digest() const { return XXH3_64bits_digest(state_->xxh); }

void TensorHasher::update(std::span<const std::byte> bytes) {
  whole_.update(bytes);
  while (!bytes.empty()) {
    if (!chunk_) chunk_.emplace();
    const auto count =
        static_cast<size_t>(std::min<uint64_t>(bytes.size(), kChecksumChunk - num_in_chunk_));
    chunk_->update(bytes.first(count));
    num_in_chunk_ += count;
    bytes = bytes.subspan(count);
    if (num_in_chunk_ < kChecksumChunk) continue;
    result_.chunks.push_back(chunk_->digest());
    chunk_.reset();
    num_in_chunk_ = 0;
  }
}

TensorChecksum TensorHasher::finish() {
  if (chunk_) result_.chunks.push_back(chunk_->digest());
  chunk_.reset();
  return std::move(result_);
}

std::string checksum_text(uint64_t checksum) { return fmt::format("{:016x}", checksum); }

std::optional<uint64_t> parse_checksum(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (text.size() != 16 || error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

}  // namespace caravan
