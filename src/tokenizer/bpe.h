#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "core/siphash.h"
#include "tokenizer/token_table.h"

namespace caravan {

/// The merges in order of rank, and an open-addressing table from (left, right) to them.
class MergeTable {
 public:
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t merged;
  };

  /// Room for num_merges.
  explicit MergeTable(size_t num_merges);
  /// Adds the merge of the next rank, 0 first. A pair that is there already gets the new rank, as
  /// in `tokenizers`.
  void add(const Merge& merge);
  /// Rank of a pair, lower goes first; -1 when it does not merge.
  int32_t find(int32_t left, int32_t right) const {
    const Key key = make_key(left, right);
    for (size_t i = key.start & mask_;; i = (i + 1) & mask_) {
      const Slot& slot = slots_[i];
      if (slot.rank < 0) return -1;
      if (slot.tag != key.tag) continue;
      const Merge& merge = merges_[static_cast<size_t>(slot.rank)];
      if (merge.left == left && merge.right == right) return slot.rank;
    }
  }
  const Merge& at(int32_t rank) const { return merges_[static_cast<size_t>(rank)]; }

 private:
  struct Slot {
    uint32_t tag = 0;
    int32_t rank = -1;
  };
  struct Key {
    uint64_t start;
    uint32_t tag;
  };

  // Multiply and fold with secrets: merges whose pairs share a slot cannot be made.
  Key make_key(int32_t left, int32_t right) const {
    const uint64_t pair =
        static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    const unsigned __int128 product =
        static_cast<unsigned __int128>(pair ^ hash_key_.low) * (hash_key_.high | 1);
    const uint64_t hash = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
    return {hash >> 32, static_cast<uint32_t>(hash >> 8)};
  }

  HashKey hash_key_ = process_hash_key();
  std::vector<Merge> merges_;
  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t mask_;
};

/// How a piece of text becomes its first symbols, and when it is not merged at all.
struct BpeOptions {
  std::array<int32_t, 256> byte_ids{};  // tokens of the single bytes; -1: the byte has none
  int32_t unk_id = -1;                  // stands for a byte without a token; -1: it is dropped
  bool fuses_unk = false;               // one unk_id stands for a run of such bytes
  /// A piece that is a token becomes that token, whatever the merges say; but for those of
  /// never_whole, which text must not give.
  bool ignores_merges = false;
  std::vector<int32_t> never_whole = {};
};

/// Byte-pair encoding of one piece of text: of all neighbours that merge, the pair of lowest rank
/// (the leftmost of equals) is merged first. Immutable and thread safe.
/// Source: BPE of Hugging Face `tokenizers`.
class Bpe {
 public:
  Bpe(TokenTable tokens, MergeTable merges, const BpeOptions& options);

  /// Working memory of one thread, reused from piece to piece.
  class Scratch {
   public:
    /// Pairs that long pieces looked up: the cost of those pieces, at most 3 a byte.
    uint64_t num_lookups() const { return num_lookups_; }

   private:
    friend class Bpe;
    struct Symbol {
      int32_t id;  // -1: merged into its left neighbour
      int32_t prev;
      int32_t next;
    };
    struct Candidate {
      int32_t rank;
      int32_t position;  // of the left symbol
    };
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
    uint64_t num_lookups_ = 0;
  };

  /// Appends the ids of `piece`. Errors: kInvalidArgument for a piece of 2 GiB or more.
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

  const TokenTable& tokens() const { return tokens_; }

 private:
  // Whether merging the bytes of a token gives that token. Almost always, but merge lists may leave
  // tokens that nothing leads to; found out at the first use, the same for every thread.
  enum class WholeState : uint8_t { kUnknown, kWhole, kUnreachable };

  // Calls add(id) for each of the symbols that `piece` starts as.
  template <typename Add>
  void start(std::string_view piece, const Add& add) const;
  void merge(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;
  void merge_short(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_long(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

  TokenTable tokens_;
  MergeTable merges_;
  std::array<int32_t, 256> byte_ids_;
  bool lacks_bytes_;
  int32_t unk_id_;
  bool fuses_unk_;
  std::unique_ptr<std::atomic<WholeState>[]> whole_states_;  // [tokens.size()]
};

}  // namespace caravan
