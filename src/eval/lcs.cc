#include "eval/lcs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace caravan {

Lcs::Lcs(std::span<const int32_t> reference, size_t max_kept_words)
    : reference_(reference.begin(), reference.end()),
      num_words_((reference.size() + 63) / 64),
      max_kept_words_(max_kept_words),
      positions_(reference.size()) {
  std::iota(positions_.begin(), positions_.end(), size_t{0});
  std::stable_sort(positions_.begin(), positions_.end(),
                   [&](size_t a, size_t b) { return reference[a] < reference[b]; });
  for (size_t i = 0; i < reference.size(); ++i) {
    const int32_t token = reference[positions_[i]];
    if (places_.empty() || places_.back().token != token) places_.push_back({token, i, i, -1});
    places_.back().end = i + 1;
  }
  // At most 64 tokens stand in the reference num_words_ times or more; a list shorter than that
  // costs no more to write into matches_ than the column costs anyway.
  for (Places& places : places_) {
    if (places.end - places.begin < num_words_) continue;
    places.row = static_cast<int64_t>(rows_.size() / num_words_);
    rows_.resize(rows_.size() + num_words_);
    uint64_t* row = rows_.data() + rows_.size() - num_words_;
    for (size_t i = places.begin; i < places.end; ++i) {
      row[positions_[i] / 64] |= uint64_t{1} << (positions_[i] % 64);
    }
  }
  matches_.resize(num_words_);
}

std::vector<const Lcs::Places*> Lcs::find(std::span<const int32_t> candidate) const {
  std::vector<const Places*> found(candidate.size(), nullptr);
  for (size_t j = 0; j < candidate.size(); ++j) {
    const auto at =
        std::lower_bound(places_.begin(), places_.end(), candidate[j],
                         [](const Places& places, int32_t token) { return places.token < token; });
    if (at != places_.end() && at->token == candidate[j]) found[j] = &*at;
  }
  return found;
}

void Lcs::advance(const Places* places, uint64_t* column) {
  if (places == nullptr) return;
  const uint64_t* matches = matches_.data();
  if (places->row >= 0) {
    matches = rows_.data() + static_cast<size_t>(places->row) * num_words_;
  } else {
    for (size_t i = places->begin; i < places->end; ++i) {
      matches_[positions_[i] / 64] |= uint64_t{1} << (positions_[i] % 64);
    }
  }
  uint64_t carry = 0;
  for (size_t w = 0; w < num_words_; ++w) {
    const uint64_t old = column[w];
    const uint64_t hits = old & matches[w];
    const uint64_t partial = old + hits;
    const uint64_t sum = partial + carry;
    carry = static_cast<uint64_t>(partial < old) | static_cast<uint64_t>(sum < partial);
    column[w] = sum | (old & ~matches[w]);
  }
  if (places->row >= 0) return;
  for (size_t i = places->begin; i < places->end; ++i) matches_[positions_[i] / 64] = 0;
}

int64_t Lcs::length(std::span<const int32_t> candidate) {
  std::vector<uint64_t> column(num_words_, ~uint64_t{0});
  for (const Places* places : find(candidate)) advance(places, column.data());
  int64_t length = 0;
  for (const uint64_t word : column) length += std::popcount(~word);
  return length;
}

void Lcs::mark(std::span<const int32_t> candidate, std::vector<bool>& is_in) {
  const std::vector<const Places*> found = find(candidate);
  if (std::all_of(found.begin(), found.end(), [](const Places* p) { return p == nullptr; })) return;
  // Columns 0..n of the table are needed from the last to the first. All are kept when they are
  // few; else every block_size-th, and those of one block, computed once more.
  const size_t n = candidate.size();
  const size_t block_size = num_words_ * (n + 1) <= max_kept_words_
                                ? n
                                : static_cast<size_t>(std::ceil(std::sqrt(static_cast<double>(n))));
  const size_t num_blocks = (n + block_size - 1) / block_size;
  std::vector<uint64_t> starts(num_blocks * num_words_);
  std::vector<uint64_t> column(num_words_, ~uint64_t{0});
  for (size_t b = 0; b < num_blocks; ++b) {
    std::copy(column.begin(), column.end(), starts.data() + b * num_words_);
    if (b + 1 == num_blocks) break;
    for (size_t j = b * block_size; j < (b + 1) * block_size; ++j) advance(found[j], column.data());
  }

  std::vector<uint64_t> kept(block_size * num_words_);  // columns j + 1 of one block
  size_t i = reference_.size();
  for (size_t b = num_blocks; b-- > 0 && i > 0;) {
    const size_t begin = b * block_size;
    const size_t end = std::min(n, begin + block_size);
    std::copy_n(starts.data() + b * num_words_, num_words_, column.begin());
    for (size_t j = begin; j < end; ++j) {
      advance(found[j], column.data());
      std::copy(column.begin(), column.end(), kept.data() + (j - begin) * num_words_);
    }
    for (size_t j = end; j > begin && i > 0;) {
      const uint64_t* at = kept.data() + (j - 1 - begin) * num_words_;
      if (reference_[i - 1] == candidate[j - 1]) {
        is_in[--i] = true;
        --j;
      } else if ((at[(i - 1) / 64] >> ((i - 1) % 64) & 1) == 0) {
        --j;  // table[i][j] > table[i - 1][j], so table[i][j - 1] is the larger neighbour
      } else {
        --i;
      }
    }
  }
}

}  // namespace caravan
