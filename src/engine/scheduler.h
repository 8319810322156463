#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
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
  bool enable_prefix_caching = true;
  std::optional<HashKey> hash_key = std::nullopt;  // of the prefix cache; unset: a random one
};

/// One row of logits of a step, in the order of the batch.
struct ScheduledRow {
  Sequence* sequence = nullptr;
  bool has_token = false;  // it chooses the sequence's next token
  bool is_scored = false;  // prompt tokens of the chunk are scored
  int64_t first_position = 0;
};

struct SchedulerCounters {
  int64_t prefix_queries = 0;
  int64_t prefix_hits = 0;
  int64_t num_prompt_tokens = 0;
  int64_t num_preemptions = 0;
};

/// Continuous batching. Every step takes one token of each sequence that decodes and fills the rest
/// of the token budget with prefill chunks.
///
/// Order: a sequence's is the step it arrived in + kStepsPerPriority x its priority; the least goes
/// first, then the least id. So a priority is a head start of that many steps, of kMaxPriority
/// levels at most, and nobody waits for ever. Nobody is admitted past one that waits before it.
///
/// Blocks: admission takes those of the tokens that there are, of which full ones with the same
/// beginning are shared with other sequences; decoding takes one at a time. When none is left the
/// last sequence of the order gives its own back and waits, to be computed again from its tokens.
/// After kMaxPreemptions times it is admitted only with the blocks of all it may become, and stays.
///
/// Blocks that are given back may be given out for the next step while a step that uses them is in
/// flight: a device runs steps in order, so what the older step writes is there before the newer
/// step writes or reads. Plain host data.
class Scheduler {
 public:
  static constexpr int64_t kStepsPerPriority = 256;
  static constexpr int32_t kMaxPriority = 10;  // either way; what is beyond counts as this
  static constexpr int64_t kMaxPreemptions = 4;
  /// Nobody is admitted beside so many prompts that do not come to their end in the step.
  static constexpr int kMaxCutPrompts = 3;

  explicit Scheduler(const SchedulerLimits& limits);

  /// Errors: kInvalidArgument when the sequence could never fit the cache.
  void add(std::unique_ptr<Sequence> sequence);
  /// The root of the chains of a scope.
  BlockHash root(std::string_view scope) const { return blocks_.root(scope); }
  /// Errors: kInvalidArgument when the cache has no room for a sequence of so many tokens.
  void check_fits(int64_t max_num_tokens) const;

  /// Fills `batch`; returns its rows of logits, valid until the next call. Advances num_computed of
  /// every sequence in the batch. Sequences whose last token is on its way take no part, so the
  /// batch can be empty. With a step in flight no sequence that needs the host is admitted.
  const std::vector<ScheduledRow>& schedule(Batch& batch, bool has_step_in_flight = false);

  /// The step that comes next has, or should have, a sequence that needs the host.
  bool wants_host() const;

  /// Takes a sequence out, running or waiting, and frees its blocks. is_trusted: what it computed
  /// may serve as a prefix.
  std::unique_ptr<Sequence> remove(Sequence* sequence, bool is_trusted = true);

  /// The sequence with this id, running or waiting, or null.
  Sequence* find(int64_t id) const;

  bool is_empty() const { return sequences_.empty(); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_waiting_tokens() const { return num_waiting_tokens_; }  // of their prompts
  int64_t num_free_blocks() const { return blocks_.num_free(); }
  const SchedulerCounters& counters() const { return counters_; }

  // For tests.
  const BlockManager& blocks() const { return blocks_; }
  const std::vector<Sequence*>& running() const { return running_; }
  struct Before {
    bool operator()(const Sequence* a, const Sequence* b) const {
      return a->order != b->order ? a->order < b->order : a->id < b->id;
    }
  };
  const std::set<Sequence*, Before>& waiting() const { return waiting_; }

 private:
  /// Blocks at the beginning of a sequence that the cache has.
  struct Prefix {
    std::vector<int32_t> blocks;
    int64_t num_free = 0;  // of them, without users
  };

  void plan_decodes();
  bool make_room(size_t index);
  void preempt(size_t index);
  void admit(bool has_step_in_flight);
  bool try_admit(Sequence& sequence);
  bool may_grow(const Sequence& sequence) const;
  bool is_shareable(const Sequence& sequence, int64_t index) const;
  void plan_prefills();
  void add_to_batch(Batch& batch, Sequence& sequence, int64_t count);
  const BlockHash& block_hash(Sequence& sequence, int64_t index);
  void find_prefix(Sequence& sequence, Prefix& prefix);
  void remember_blocks(Sequence& sequence);
  void forget_blocks(Sequence& sequence);
  void leave(Sequence& sequence);
  int64_t blocks_for(int64_t num_tokens) const;

  SchedulerLimits limits_;
  BlockManager blocks_;
  std::unordered_map<int64_t, std::unique_ptr<Sequence>> sequences_;  // all, by id
  std::set<Sequence*, Before> waiting_;
  std::vector<Sequence*> running_;  // in their order
  std::vector<int64_t> free_slots_;
  SchedulerCounters counters_;
  int64_t num_waiting_tokens_ = 0;
  int64_t num_host_running_ = 0;
  int64_t num_steps_ = 0;

  // Of one call of schedule().
  int64_t budget_ = 0;
  bool has_preempted_ = false;
  int64_t num_growing_ = 0;               // running ones that may want another block
  std::unordered_set<BlockHash> coming_;  // the next block of each one that prefills
  std::vector<int64_t> counts_;           // tokens of each running one
  std::vector<ScheduledRow> rows_;
  Prefix prefix_;
};

}  // namespace caravan
