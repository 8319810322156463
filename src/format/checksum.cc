#include "format/checksum.h"

#include <xxhash.h>

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
