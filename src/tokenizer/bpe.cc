#include "tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <climits>

#include "core/error.h"

namespace caravan {

namespace {

// Up to here a quadratic scan over an array on the stack beats the heap.
constexpr size_t kMaxShortPiece = 48;
constexpr int32_t kNoMerge = INT32_MAX;

}  // namespace

MergeTable::MergeTable(size_t num_merges)
    : slots_(std::bit_ceil(2 * num_merges + 2)), mask_(slots_.size() - 1) {
  merges_.reserve(num_merges);
}

void MergeTable::add(const Merge& merge) {
  const int32_t earlier = find(merge.left, merge.right);
  const Key key = make_key(merge.left, merge.right);
  size_t i = key.start & mask_;
  while (slots_[i].rank >= 0 && slots_[i].rank != earlier) i = (i + 1) & mask_;
  slots_[i] = {key.tag, static_cast<int32_t>(merges_.size())};
  merges_.push_back(merge);
}

Bpe::Bpe(TokenTable tokens, MergeTable merges, const BpeOptions& options)
    : tokens_(std::move(tokens)),
      merges_(std::move(merges)),
      byte_ids_(options.byte_ids),
      lacks_bytes_(*std::min_element(byte_ids_.begin(), byte_ids_.end()) < 0),
      unk_id_(options.unk_id),
      fuses_unk_(options.fuses_unk),
      whole_states_(new std::atomic<WholeState>[static_cast<size_t>(tokens_.size())]()) {
  if (!options.ignores_merges) return;
  for (int32_t id = 0; id < tokens_.size(); ++id)
    whole_states_[static_cast<size_t>(id)] = WholeState::kWhole;
  for (const int32_t id : options.never_whole)
    whole_states_[static_cast<size_t>(id)] = WholeState::kUnreachable;
}

template <typename Add>
void Bpe::start(std::string_view piece, const Add& add) const {
  if (!lacks_bytes_) {
    for (const char c : piece) add(byte_ids_[static_cast<uint8_t>(c)]);
    return;
  }
  bool was_unknown = false;
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id >= 0) {
      add(id);
    } else if (unk_id_ >= 0 && !(was_unknown && fuses_unk_)) {
      add(unk_id_);
    }
    was_unknown = id < 0;
  }
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (piece.size() == 1) return start(piece, [&](int32_t byte_id) { ids.push_back(byte_id); });
  const int32_t id = tokens_.find(piece);
  if (id < 0) return merge(piece, scratch, ids);
  std::atomic<WholeState>& state = whole_states_[static_cast<size_t>(id)];
  if (state.load(std::memory_order_relaxed) == WholeState::kWhole) {
    ids.push_back(id);
    return;
  }
  const size_t first = ids.size();
  merge(piece, scratch, ids);
  const bool is_whole = ids.size() == first + 1 && ids[first] == id;
  state.store(is_whole ? WholeState::kWhole : WholeState::kUnreachable, std::memory_order_relaxed);
}

void Bpe::merge(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (piece.size() <= kMaxShortPiece) {
    merge_short(piece, ids);
  } else {
    merge_long(piece, scratch, ids);
  }
}

void Bpe::merge_short(std::string_view piece, std::vector<int32_t>& ids) const {
  struct Symbol {
    int32_t id;
    int32_t rank;  // of the merge with the next symbol, or kNoMerge
  };
  std::array<Symbol, kMaxShortPiece> symbols;
  size_t size = 0;
  start(piece, [&](int32_t id) { symbols[size++].id = id; });
  if (size == 0) return;
  const auto update = [&](size_t i) {
    const int32_t rank = i + 1 < size ? merges_.find(symbols[i].id, symbols[i + 1].id) : -1;
    symbols[i].rank = rank >= 0 ? rank : kNoMerge;
  };
  for (size_t i = 0; i < size; ++i) update(i);
  for (;;) {
    size_t best = 0;
    for (size_t i = 1; i < size; ++i) {
      if (symbols[i].rank < symbols[best].rank) best = i;
    }
    if (symbols[best].rank == kNoMerge) break;
    symbols[best].id = merges_.at(symbols[best].rank).merged;
    std::copy(symbols.begin() + best + 2, symbols.begin() + size, symbols.begin() + best + 1);
    --size;
    update(best);
    if (best > 0) update(best - 1);
  }
  for (size_t i = 0; i < size; ++i) ids.push_back(symbols[i].id);
}

void Bpe::merge_long(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  CARAVAN_CHECK(piece.size() <= INT32_MAX,
                "a piece of text without a break has {} bytes, at most {}", piece.size(),
                INT32_MAX);
  std::vector<Scratch::Symbol>& symbols = scratch.symbols_;
  std::vector<Scratch::Candidate>& heap = scratch.heap_;
  symbols.clear();
  heap.clear();
  start(piece, [&](int32_t id) {
    const auto i = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, i - 1, i + 1});
  });
  const auto size = static_cast<int32_t>(symbols.size());
  const auto symbol = [&](int32_t i) -> Scratch::Symbol& {
    return symbols[static_cast<size_t>(i)];
  };
  // std::*_heap keep the greatest in front: the lowest rank, then the leftmost, counts as greatest.
  const auto is_later = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto add_candidate = [&](int32_t left) {
    const int32_t right = symbol(left).next;
    if (right == size) return false;
    ++scratch.num_lookups_;
    const int32_t rank = merges_.find(symbol(left).id, symbol(right).id);
    if (rank < 0) return false;
    heap.push_back({rank, left});
    return true;
  };

  for (int32_t i = 0; i < size; ++i) add_candidate(i);
  std::make_heap(heap.begin(), heap.end(), is_later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), is_later);
    const Scratch::Candidate candidate = heap.back();
    heap.pop_back();
    // A candidate is stale when a merge has since taken one of its two symbols.
    Scratch::Symbol& left = symbol(candidate.position);
    const MergeTable::Merge& merge = merges_.at(candidate.rank);
    if (left.id != merge.left || left.next == size) continue;
    Scratch::Symbol& right = symbol(left.next);
    if (right.id != merge.right) continue;
    left.id = merge.merged;
    right.id = -1;
    left.next = right.next;
    if (left.next < size) symbol(left.next).prev = candidate.position;
    if (add_candidate(candidate.position)) std::push_heap(heap.begin(), heap.end(), is_later);
    if (left.prev >= 0 && add_candidate(left.prev)) {
      std::push_heap(heap.begin(), heap.end(), is_later);
    }
  }
  for (int32_t i = 0; i < size; i = symbol(i).next) ids.push_back(symbol(i).id);
}

}  // namespace caravan
