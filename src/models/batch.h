#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "ops/ops.h"

namespace caravan {

/// One batch as the operators read it, in memory of the backend.
struct BatchTensors {
  ConstTensor token_ids;     // [T] int32
  ConstTensor positions;     // [T] int32
  ConstTensor slot_mapping;  // [T] int64
  ConstTensor logits_rows;   // [number of sequences that want logits] int32
  ConstTensor sampled;  // tokens of the step before, int32; data null when no id refers to them
  AttentionBatch attention;

  int64_t num_tokens() const { return token_ids.shape[0]; }
};

/// Which rows of a sequence of a batch want logits. kAll: its last token and, to score a prompt,
/// all of its tokens.
enum class LogitsWanted : uint8_t { kNone, kLast, kAll };

/// The tokens of one step: prefill chunks and decode tokens of any number of sequences, one after
/// the other. Built by the scheduler with add_sequence(); plain host data.
class Batch {
 public:
  explicit Batch(int64_t block_size) : block_size_(block_size) {}

  /// Tokens of a sequence that wants logits of all of them.
  struct ScoredRows {
    size_t logits_row;  // of its last token, in [0, num_logits())
    int64_t first_row;  // in [0, num_tokens())
    int64_t num_rows;
    int64_t first_position;
  };

  /// Appends the tokens [first_position, first_position + num_tokens) of a sequence whose cache
  /// blocks are `block_table`. An id of -1 - r stands for the token that row r of the step before
  /// this one will turn out to be.
  void add_sequence(const int32_t* token_ids, int64_t num_tokens, int64_t first_position,
                    const std::vector<int32_t>& block_table, LogitsWanted wanted);
  void clear();

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids_.size()); }
  int64_t num_seqs() const { return static_cast<int64_t>(context_lens_.size()); }
  /// Sequences that want logits, kLast and kAll alike: one row each, that of its last token.
  int64_t num_logits() const { return static_cast<int64_t>(logits_rows_.size()); }
  /// Position of the token whose logits are row `logits_row`.
  int64_t logits_position(size_t logits_row) const {
    return positions_[static_cast<size_t>(logits_rows_[logits_row])];
  }
  /// The sequences with kAll.
  const std::vector<ScoredRows>& scored_rows() const { return scored_rows_; }
  int64_t max_context_len() const;
  /// Every sequence has one token here and wants its logits.
  bool is_decode() const;

  /// Checks what the operators cannot: ids below vocab_size (or one of num_sampled tokens of the
  /// step before), positions below max_seq_len, slots inside num_blocks. Errors: kInternal, because
  /// the scheduler promised it.
  void validate(int64_t vocab_size, int64_t max_seq_len, int64_t num_blocks,
                int64_t num_sampled = 0) const;

  /// Views of this batch for operators that read host memory, valid until it changes; block tables
  /// are padded to the longest one.
  BatchTensors tensors() const;

 private:
  friend class DeviceBatch;

  int64_t block_size_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<int64_t> slot_mapping_;
  std::vector<int32_t> query_start_{0};
  std::vector<int32_t> context_lens_;
  std::vector<int32_t> logits_rows_;
  std::vector<ScoredRows> scored_rows_;
  std::vector<int32_t> flat_blocks_;  // every sequence's blocks, ragged
  std::vector<size_t> first_block_{0};
  mutable std::vector<int32_t> block_tables_;  // flat_blocks_ padded to a rectangle
};

}  // namespace caravan
