#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/siphash.h"

namespace caravan {

/// Bytes of every token by id, and back: two arrays and one open-addressing table, filled once.
class TokenTable {
 public:
  /// For the ids [0, num_tokens), all without bytes at first.
  explicit TokenTable(size_t num_tokens);

  /// Gives a token its non-empty bytes; the caller sets each id once. find() sees the searchable
  /// tokens, whose bytes differ from each other.
  void set(int32_t id, std::string_view bytes, bool is_searchable);

  int32_t size() const { return static_cast<int32_t>(spans_.size()); }
  bool has(int32_t id) const { return spans_[static_cast<size_t>(id)].length > 0; }
  std::string_view bytes(int32_t id) const {
    const Span& span = spans_[static_cast<size_t>(id)];
    return std::string_view(blob_).substr(span.offset, span.length);
  }
  /// Id of the searchable token with these bytes, or -1.
  int32_t find(std::string_view bytes) const;

 private:
  struct Span {
    uint32_t offset = 0;
    uint32_t length = 0;
  };
  // Up to 8 bytes, which most words have, are compared inside the slot: one cache line a lookup.
  struct Slot {
    uint64_t key = 0;  // the bytes themselves up to 8 of them, else their hash
    uint32_t length = 0;
    int32_t id = -1;
  };
  struct Key {
    uint64_t key;
    uint64_t hash;
  };

  Key make_key(std::string_view bytes) const;
  // The slot of these bytes, or the free one where they would go.
  size_t find_slot(std::string_view bytes, const Key& key) const;

  HashKey hash_key_ = process_hash_key();
  std::string blob_;
  std::vector<Span> spans_;
  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t max_length_ = 0;
};

}  // namespace caravan
