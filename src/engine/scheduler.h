#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/block_manager.h"
#include "engine/sequence.h"
#include "models/batch.h"

namespace caravan {

struct SchedulerLimits {
  int64_t max_batch_size = 0;          // sequences that run at once
  int64_t max_num_batched_tokens = 0;  // tokens of one step, at least max_batch_size
  int64_t block_size = 0;              // tokens of one cache block
  int64_t num_blocks = 0;
};

/// Continuous batching, first come first served: every step takes one token of each sequence that
/// decodes and fills the rest of the token budget with prefill chunks, oldest first. A sequence is
/// admitted when the blocks for all it may become are free, so none ever has to give way.
/// Plain host data.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  /// Errors: kInvalidArgument when the sequence could never fit the cache.
  void add(std::unique_ptr<Sequence> sequence);

  /// Fills `batch`; returns the sequences of which the step yields a new token, in the order of the
  /// batch's logits rows. Advances num_computed of every sequence in the batch. Sequences whose
  /// last token is on its way take no part, so the batch can be empty.
  std::vector<Sequence*> schedule(Batch& batch);

  /// Takes a finished sequence out and frees its blocks.
  std::unique_ptr<Sequence> remove(Sequence* sequence);

  /// The running sequence with this id, or null.
  Sequence* find(int64_t id) const;

  bool is_empty() const { return waiting_.empty() && running_.empty(); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_free_blocks() const { return blocks_.num_free(); }

 private:
  void admit();

  SchedulerLimits limits_;
  BlockManager blocks_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  std::vector<int64_t> free_slots_;
};

}  // namespace caravan
