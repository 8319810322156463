#include "engine/scheduler.h"

#include <algorithm>

#include "core/error.h"
#include "core/tensor.h"

namespace caravan {

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits),
      blocks_(limits.num_blocks, limits.block_size,
              limits.hash_key ? *limits.hash_key : random_hash_key()) {
  CARAVAN_CHECK(limits.max_batch_size > 0 && limits.max_num_batched_tokens >= limits.max_batch_size,
                "{} tokens a step for {} sequences: every sequence needs at least one",
                limits.max_num_batched_tokens, limits.max_batch_size);
  for (int64_t slot = limits.max_batch_size; slot > 0; --slot) free_slots_.push_back(slot - 1);
}

int64_t Scheduler::blocks_for(int64_t num_tokens) const {
  return ceil_div(num_tokens, limits_.block_size);
}

void Scheduler::check_fits(int64_t max_num_tokens) const {
  const int64_t needed = blocks_for(max_num_tokens);
  CARAVAN_CHECK(
      needed <= blocks_.num_blocks(),
      "prompt and output of {} tokens need {} cache blocks, the cache has {}: shorten one "
      "or give the cache more memory",
      max_num_tokens, needed, blocks_.num_blocks());
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  check_fits(sequence->max_num_tokens());
  Sequence* s = sequence.get();
  s->order = num_steps_ + kStepsPerPriority * std::clamp(s->priority, -kMaxPriority, kMaxPriority);
  const bool is_new = sequences_.emplace(s->id, std::move(sequence)).second;
  CARAVAN_CHECK_CODE(is_new, kInternal, "two sequences with the id {}", s->id);
  waiting_.insert(s);
  num_waiting_tokens_ += s->num_prompt_tokens;
}

Sequence* Scheduler::find(int64_t id) const {
  const auto it = sequences_.find(id);
  return it == sequences_.end() ? nullptr : it->second.get();
}

bool Scheduler::wants_host() const {
  return num_host_running_ > 0 || (!waiting_.empty() && (*waiting_.begin())->needs_host &&
                                   num_running() < limits_.max_batch_size);
}

const std::vector<ScheduledRow>& Scheduler::schedule(Batch& batch, bool has_step_in_flight) {
  ++num_steps_;
  batch.clear();
  rows_.clear();
  budget_ = limits_.max_num_batched_tokens;
  has_preempted_ = false;
  plan_decodes();
  // What was just taken from one is not for another.
  if (!has_preempted_) admit(has_step_in_flight);
  plan_prefills();
  for (size_t i = 0; i < running_.size(); ++i) {
    if (counts_[i] > 0) add_to_batch(batch, *running_[i], counts_[i]);
  }
  return rows_;
}

/// One token each, which always fits the budget, and the block it needs.
void Scheduler::plan_decodes() {
  counts_.assign(running_.size(), 0);
  for (size_t i = 0; i < running_.size();) {
    const Sequence& s = *running_[i];
    if (s.num_missing() == 1) {
      if (!make_room(i)) continue;  // it had to go itself
      counts_[i] = 1;
      --budget_;
    }
    ++i;
  }
}

/// A block for the next token of running sequence `index`. Those behind it in the order have to
/// give way, then it has to itself: false.
bool Scheduler::make_room(size_t index) {
  Sequence& sequence = *running_[index];
  if (blocks_for(sequence.num_computed + 1) <= static_cast<int64_t>(sequence.block_table.size())) {
    return true;
  }
  while (blocks_.num_free() == 0) {
    size_t victim = running_.size() - 1;
    while (victim > index && running_[victim]->num_preemptions >= kMaxPreemptions) --victim;
    preempt(victim);
    if (victim == index) return false;
  }
  blocks_.allocate(1, sequence.block_table);
  return true;
}

void Scheduler::preempt(size_t index) {
  Sequence& sequence = *running_[index];
  CARAVAN_CHECK_CODE(sequence.num_preemptions < kMaxPreemptions, kInternal,
                     "sequence {} has its blocks reserved and needs more", sequence.id);
  ++sequence.num_preemptions;
  ++counters_.num_preemptions;
  has_preempted_ = true;
  remember_blocks(sequence);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  counts_.erase(counts_.begin() + static_cast<std::ptrdiff_t>(index));
  leave(sequence);
  waiting_.insert(&sequence);
  num_waiting_tokens_ += sequence.num_prompt_tokens;
}

/// Gives back what a running sequence has.
void Scheduler::leave(Sequence& sequence) {
  blocks_.release(sequence.block_table);
  free_slots_.push_back(sequence.slot);
  if (sequence.needs_host) --num_host_running_;
  sequence.slot = -1;
  sequence.num_computed = 0;
  sequence.num_remembered = 0;
  sequence.has_device_state = false;
}

bool Scheduler::may_grow(const Sequence& sequence) const {
  return static_cast<int64_t>(sequence.block_table.size()) < blocks_for(sequence.max_num_tokens());
}

/// Block `index` of the sequence, which it is about to compute, may serve others or be theirs.
bool Scheduler::is_shareable(const Sequence& sequence, int64_t index) const {
  return limits_.enable_prefix_caching && !sequence.wants_prompt_scores() &&
         (index + 1) * limits_.block_size < sequence.num_tokens();
}

void Scheduler::admit(bool has_step_in_flight) {
  if (waiting_.empty()) return;
  coming_.clear();
  num_growing_ = std::count_if(running_.begin(), running_.end(),
                               [this](const Sequence* s) { return may_grow(*s); });
  // As plan_prefills() will share it out; one that would get next to nothing is not admitted.
  int64_t budget = budget_;
  int num_cut = 0;
  const auto take = [&](int64_t missing) {
    if (missing > budget) ++num_cut;
    budget -= missing > budget ? ceil_div(budget, int64_t{2}) : missing;
  };
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& s = *running_[i];
    if (counts_[i] > 0 || s.num_missing() <= 0) continue;
    take(s.num_missing());
    const int64_t block = s.num_computed / limits_.block_size;
    if (is_shareable(s, block)) coming_.insert(block_hash(s, block));
  }
  while (!waiting_.empty() && budget > 0 && num_cut < kMaxCutPrompts &&
         num_running() < limits_.max_batch_size) {
    Sequence& sequence = **waiting_.begin();
    if (sequence.needs_host && has_step_in_flight) return;
    if (sequence.token_ids.back() < 0 || !try_admit(sequence)) return;
    take(sequence.num_missing());
  }
}

bool Scheduler::try_admit(Sequence& sequence) {
  const bool is_first_time = sequence.num_preemptions == 0;
  const bool is_pinned = sequence.num_preemptions >= kMaxPreemptions;
  find_prefix(sequence, prefix_);
  const int64_t num_wanted =
      blocks_for(is_pinned ? sequence.max_num_tokens() : sequence.num_tokens());
  const auto num_found = static_cast<int64_t>(prefix_.blocks.size());
  // Copies of a prompt (n, best_of) come together: the first computes, in as many steps as it
  // takes, the others find it then.
  const bool may_share = is_shareable(sequence, num_found);
  if (may_share && coming_.contains(block_hash(sequence, num_found))) return false;
  // Room for a block of each running one that may want more, so that the newcomer is not thrown out
  // at once.
  const int64_t reserve = is_pinned ? 0 : num_growing_;
  if (num_wanted - num_found + reserve > blocks_.num_free() - prefix_.num_free) return false;
  if (may_share) coming_.insert(block_hash(sequence, num_found));
  for (const int32_t block : prefix_.blocks) blocks_.share(block);
  sequence.block_table.assign(prefix_.blocks.begin(), prefix_.blocks.end());
  blocks_.allocate(num_wanted - num_found, sequence.block_table);
  sequence.num_computed = num_found * limits_.block_size;
  sequence.num_remembered = num_found;
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  if (sequence.needs_host) ++num_host_running_;
  if (may_grow(sequence)) ++num_growing_;
  waiting_.erase(waiting_.begin());
  num_waiting_tokens_ -= sequence.num_prompt_tokens;
  const auto place = std::lower_bound(running_.begin(), running_.end(), &sequence, Before{});
  counts_.insert(counts_.begin() + (place - running_.begin()), 0);
  running_.insert(place, &sequence);
  if (is_first_time) {
    sequence.first_step = Sequence::Clock::now();
    sequence.num_cached_tokens = sequence.num_computed;
    counters_.num_prompt_tokens += sequence.num_prompt_tokens;
    if (limits_.enable_prefix_caching) {
      counters_.prefix_queries += sequence.num_prompt_tokens;
      counters_.prefix_hits += sequence.num_computed;
    }
  }
  return true;
}

/// Oldest first. One that does not come to its end in this step leaves half of what there is to
/// those behind it, so that short prompts do not wait for the whole of a long one; it gets what
/// they leave.
void Scheduler::plan_prefills() {
  size_t first_cut = running_.size();
  for (size_t i = 0; i < running_.size() && budget_ > 0; ++i) {
    const int64_t missing = running_[i]->num_missing();
    if (counts_[i] > 0 || missing <= 0) continue;
    int64_t count = missing;
    if (missing > budget_) {
      count = ceil_div(budget_, int64_t{2});
      first_cut = std::min(first_cut, i);
    }
    counts_[i] = count;
    budget_ -= count;
  }
  if (first_cut < running_.size() && budget_ > 0) {
    const int64_t more = std::min(budget_, running_[first_cut]->num_missing() - counts_[first_cut]);
    counts_[first_cut] += more;
    budget_ -= more;
  }
}

void Scheduler::add_to_batch(Batch& batch, Sequence& sequence, int64_t count) {
  const int64_t first = sequence.num_computed;
  const bool is_last = count == sequence.num_missing();
  // The row of a token scores the one after it.
  const bool is_scored = sequence.wants_prompt_scores() && first + 1 < sequence.num_prompt_tokens;
  batch.add_sequence(sequence.token_ids.data() + first, count, first, sequence.block_table,
                     is_scored ? LogitsWanted::kAll
                     : is_last ? LogitsWanted::kLast
                               : LogitsWanted::kNone);
  sequence.num_computed += count;
  remember_blocks(sequence);
  if (!is_scored && !is_last) return;
  rows_.push_back({.sequence = &sequence,
                   .has_token = is_last,
                   .is_scored = is_scored,
                   .first_position = first});
}

const BlockHash& Scheduler::block_hash(Sequence& sequence, int64_t index) {
  const auto block_size = static_cast<size_t>(limits_.block_size);
  std::vector<BlockHash>& hashes = sequence.block_hashes;
  while (static_cast<int64_t>(hashes.size()) <= index) {
    const std::span<const int32_t> tokens(sequence.token_ids);
    hashes.push_back(blocks_.hash(hashes.empty() ? sequence.root : hashes.back(),
                                  tokens.subspan(hashes.size() * block_size, block_size)));
  }
  return hashes[static_cast<size_t>(index)];
}

void Scheduler::find_prefix(Sequence& sequence, Prefix& prefix) {
  prefix.blocks.clear();
  prefix.num_free = 0;
  if (!limits_.enable_prefix_caching || sequence.wants_prompt_scores()) return;
  // At least one token is computed, for its logits.
  const int64_t limit = (sequence.num_tokens() - 1) / limits_.block_size;
  BlockHash parent = sequence.root;
  for (int64_t i = 0; i < limit; ++i) {
    const BlockHash hash = block_hash(sequence, i);
    const std::optional<int32_t> block =
        blocks_.find(hash, parent,
                     std::span(sequence.token_ids)
                         .subspan(static_cast<size_t>(i * limits_.block_size),
                                  static_cast<size_t>(limits_.block_size)));
    if (!block) return;
    prefix.blocks.push_back(*block);
    if (blocks_.ref_count(*block) == 0) ++prefix.num_free;
    parent = hash;
  }
}

/// Full blocks whose tokens are known serve the steps after the one that computes them.
void Scheduler::remember_blocks(Sequence& sequence) {
  if (!limits_.enable_prefix_caching) return;
  const int64_t num_computed = std::min(sequence.num_computed, sequence.num_known_tokens());
  for (; (sequence.num_remembered + 1) * limits_.block_size <= num_computed;
       ++sequence.num_remembered) {
    const int64_t i = sequence.num_remembered;
    const BlockHash hash = block_hash(sequence, i);
    const BlockHash parent = i == 0 ? sequence.root : block_hash(sequence, i - 1);
    blocks_.remember(sequence.block_table[static_cast<size_t>(i)], hash, parent,
                     std::span(sequence.token_ids)
                         .subspan(static_cast<size_t>(i * limits_.block_size),
                                  static_cast<size_t>(limits_.block_size)));
  }
}

/// Of a waiting one: it was preempted, and a step that was in flight then told that its numbers are
/// bad.
void Scheduler::forget_blocks(Sequence& sequence) {
  const auto block_size = static_cast<size_t>(limits_.block_size);
  BlockHash parent = sequence.root;
  for (size_t i = 0; i < sequence.block_hashes.size(); ++i) {
    const BlockHash& hash = sequence.block_hashes[i];
    const std::optional<int32_t> block = blocks_.find(
        hash, parent, std::span(sequence.token_ids).subspan(i * block_size, block_size));
    if (block) blocks_.forget(*block);
    parent = hash;
  }
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence* sequence, bool is_trusted) {
  const auto owner = sequences_.find(sequence->id);
  CARAVAN_CHECK_CODE(owner != sequences_.end(), kInternal, "sequence {} is not here", sequence->id);
  if (sequence->slot >= 0) {
    if (is_trusted) {
      remember_blocks(*sequence);
    } else {
      for (const int32_t block : sequence->block_table) blocks_.forget(block);
    }
    const auto place = std::lower_bound(running_.begin(), running_.end(), sequence, Before{});
    CARAVAN_CHECK_CODE(place != running_.end() && *place == sequence, kInternal,
                       "sequence {} is not running", sequence->id);
    running_.erase(place);
    leave(*sequence);
  } else {
    if (!is_trusted) forget_blocks(*sequence);
    waiting_.erase(sequence);
    num_waiting_tokens_ -= sequence->num_prompt_tokens;
  }
  std::unique_ptr<Sequence> owned = std::move(owner->second);
  sequences_.erase(owner);
  return owned;
}

}  // namespace caravan
