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

  /// Errors: kInvalidArgument when the cache has no room for a sequence of so many tokens.
  void check_fits(int64_t max_num_tokens) const;

  /// Takes a sequence out, running or waiting, and frees its blocks.
  std::unique_ptr<Sequence> remove(Sequence* sequence);

  /// The sequence with this id, running or waiting, or null.
  Sequence* find(int64_t id) const;

  bool is_empty() const { return waiting_.empty() && running_.empty(); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_waiting_tokens() const { return num_waiting_tokens_; }  // of their prompts
  int64_t num_free_blocks() const { return blocks_.num_free(); }

 private:
  void admit();

  SchedulerLimits limits_;
  BlockManager blocks_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  std::vector<int64_t> free_slots_;
  int64_t num_waiting_tokens_ = 0;
};

}  // namespace caravan
