#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace caravan {

/// Longest common subsequences of one fixed sequence, the reference, with others. Bit-parallel: 64
/// cells of the table of dynamic programming in one step.
/// Time: |reference| * |candidate| / 64 steps. Memory: 64 bytes a token of the reference, and what
/// `mark` says.
/// Source: Hyyro 2004, "Bit-parallel LCS-length computation revisited".
class Lcs {
 public:
  /// Token values are free; equal values are equal tokens. max_kept_words: how many words of 64
  /// cells `mark` keeps before it computes columns twice to keep fewer.
  explicit Lcs(std::span<const int32_t> reference, size_t max_kept_words = size_t{1} << 20);

  /// Length of a longest common subsequence.
  int64_t length(std::span<const int32_t> candidate);

  /// Sets is_in[i] for each reference token of one longest common subsequence and leaves the rest
  /// alone, so that calls unite. Where there are several, it is the one that rouge-score finds on
  /// its way back from the ends: take equal tokens; else step back in the candidate if the table is
  /// larger there; else in the reference.
  /// Memory: 8 MiB or 2 * sqrt(|candidate|) * |reference| / 8 bytes, whichever is more; 88 MB for
  /// two sequences of 500,000.
  void mark(std::span<const int32_t> candidate, std::vector<bool>& is_in);

 private:
  /// Where a token stands in the reference: a row of bits when it is frequent, else a list.
  struct Places {
    int32_t token;
    size_t begin, end;  // in positions_
    int64_t row;        // of rows_, -1 without
  };

  /// For each token of the candidate its places, nullptr without any.
  std::vector<const Places*> find(std::span<const int32_t> candidate) const;
  /// column [num_words_]: the table's next column, for one more token of the candidate. Bit i is 0
  /// where the table grows from reference row i to i + 1.
  void advance(const Places* places, uint64_t* column);

  std::vector<int32_t> reference_;
  size_t num_words_;  // of a column
  size_t max_kept_words_;
  std::vector<size_t> positions_;  // in the reference, by token
  std::vector<Places> places_;     // by token
  std::vector<uint64_t> rows_;     // [frequent tokens, num_words_]
  std::vector<uint64_t> matches_;  // [num_words_], zero between calls
};

}  // namespace caravan
