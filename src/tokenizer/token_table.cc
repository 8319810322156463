#include "tokenizer/token_table.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace caravan {

namespace {

template <typename T>
uint64_t load(const char* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

uint64_t mix(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// The bytes, at most 8, in one number with zeros after them; loads that overlap agree where they
// do.
uint64_t pack(const char* p, size_t n) {
  if (n == 8) return load<uint64_t>(p);
  if (n >= 4) return load<uint32_t>(p) | load<uint32_t>(p + n - 4) << (8 * (n - 4));
  if (n == 0) return 0;
  return load<uint8_t>(p) | load<uint8_t>(p + n / 2) << (8 * (n / 2)) |
         load<uint8_t>(p + n - 1) << (8 * (n - 1));
}

}  // namespace

// Multiply and fold, as wyhash does, with secrets in place of its constants: a vocabulary whose
// tokens share a slot cannot be made. SipHash would take longer than all the rest of a look-up.
TokenTable::Key TokenTable::make_key(std::string_view bytes) const {
  const uint64_t a = hash_key_.low;
  const uint64_t b = hash_key_.high;
  const char* p = bytes.data();
  size_t n = bytes.size();
  uint64_t seed = a ^ n;
  if (n <= 8) {
    const uint64_t packed = pack(p, n);
    return {packed, mix(packed ^ b, seed)};
  }
  for (; n > 16; p += 8, n -= 8) seed = mix(load<uint64_t>(p) ^ a, seed);
  const uint64_t hash = mix(load<uint64_t>(p) ^ b, load<uint64_t>(p + n - 8) ^ seed);
  return {hash, hash};
}

TokenTable::TokenTable(size_t num_tokens)
    : spans_(num_tokens), slots_(std::bit_ceil(2 * num_tokens + 2)) {}

size_t TokenTable::find_slot(std::string_view bytes, const Key& key) const {
  const size_t mask = slots_.size() - 1;
  for (size_t i = key.hash & mask;; i = (i + 1) & mask) {
    const Slot& slot = slots_[i];
    if (slot.id < 0) return i;
    if (slot.key == key.key && slot.length == bytes.size() &&
        (bytes.size() <= 8 || this->bytes(slot.id) == bytes)) {
      return i;
    }
  }
}

void TokenTable::set(int32_t id, std::string_view bytes, bool is_searchable) {
  CARAVAN_CHECK(blob_.size() + bytes.size() <= UINT32_MAX,
                "the tokens of a vocabulary take more than 4 GiB");
  if (is_searchable) {
    const Key key = make_key(bytes);
    Slot& slot = slots_[find_slot(bytes, key)];
    CARAVAN_CHECK(slot.id < 0, "the tokens {} and {} have the same bytes", slot.id, id);
    slot = {key.key, static_cast<uint32_t>(bytes.size()), id};
    max_length_ = std::max(max_length_, bytes.size());
  }
  spans_[static_cast<size_t>(id)] = {static_cast<uint32_t>(blob_.size()),
                                     static_cast<uint32_t>(bytes.size())};
  blob_.append(bytes);
}

int32_t TokenTable::find(std::string_view bytes) const {
  if (bytes.size() > max_length_) return -1;
  return slots_[find_slot(bytes, make_key(bytes))].id;
}

}  // namespace caravan
