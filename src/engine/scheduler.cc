#include "engine/scheduler.h"

#include <algorithm>

#include "core/error.h"
#include "core/tensor.h"

namespace caravan {

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), blocks_(limits.num_blocks) {
  CARAVAN_CHECK(limits.max_batch_size > 0 && limits.max_num_batched_tokens >= limits.max_batch_size,
                "{} tokens a step for {} sequences: every sequence needs at least one",
                limits.max_num_batched_tokens, limits.max_batch_size);
  for (int64_t slot = limits.max_batch_size; slot > 0; --slot) free_slots_.push_back(slot - 1);
}

void Scheduler::check_fits(int64_t max_num_tokens) const {
  const int64_t needed = ceil_div(max_num_tokens, limits_.block_size);
  CARAVAN_CHECK(
      needed <= blocks_.num_blocks(),
      "prompt and output of {} tokens need {} cache blocks, the cache has {}: shorten one "
      "or give the cache more memory",
      max_num_tokens, needed, blocks_.num_blocks());
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  check_fits(sequence->max_num_tokens());
  num_waiting_tokens_ += sequence->num_prompt_tokens;
  waiting_.push_back(std::move(sequence));
}

void Scheduler::admit() {
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < limits_.max_batch_size) {
    const int64_t needed = ceil_div(waiting_.front()->max_num_tokens(), limits_.block_size);
    if (needed > blocks_.num_free()) return;
    waiting_.front()->block_table = blocks_.allocate(needed);
    waiting_.front()->slot = free_slots_.back();
    free_slots_.pop_back();
    waiting_.front()->first_step = Sequence::Clock::now();
    num_waiting_tokens_ -= waiting_.front()->num_prompt_tokens;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

std::vector<Sequence*> Scheduler::schedule(Batch& batch) {
  admit();
  batch.clear();
  // Decoding sequences first: their one token each always fits the budget.
  int64_t budget = limits_.max_num_batched_tokens;
  for (const auto& sequence : running_) {
    if (!sequence->is_complete() && sequence->num_tokens() - sequence->num_computed == 1) --budget;
  }
  std::vector<Sequence*> yields;
  for (const auto& sequence : running_) {
    if (sequence->is_complete()) continue;
    const int64_t missing = sequence->num_tokens() - sequence->num_computed;
    int64_t count = 1;
    if (missing > 1) {
      count = std::min(missing, budget);
      budget -= count;
    }
    if (count <= 0) continue;
    const bool is_complete = count == missing;
    batch.add_sequence(sequence->token_ids.data() + sequence->num_computed, count,
                       sequence->num_computed, sequence->block_table,
                       is_complete ? LogitsWanted::kLast : LogitsWanted::kNone);
    sequence->num_computed += count;
    if (is_complete) yields.push_back(sequence.get());
  }
  return yields;
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence* sequence) {
  const auto is_it = [&](const auto& s) { return s.get() == sequence; };
  std::unique_ptr<Sequence> owned;
  if (const auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    owned = std::move(*it);
    running_.erase(it);
    blocks_.release(owned->block_table);
    free_slots_.push_back(owned->slot);
    return owned;
  }
  const auto it = std::find_if(waiting_.begin(), waiting_.end(), is_it);
  CARAVAN_CHECK_CODE(it != waiting_.end(), kInternal, "sequence {} is not here", sequence->id);
  owned = std::move(*it);
  num_waiting_tokens_ -= owned->num_prompt_tokens;
  waiting_.erase(it);
  return owned;
}

Sequence* Scheduler::find(int64_t id) const {
  const auto is_it = [&](const auto& s) { return s->id == id; };
  if (const auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    return it->get();
  }
  const auto it = std::find_if(waiting_.begin(), waiting_.end(), is_it);
  return it == waiting_.end() ? nullptr : it->get();
}

}  // namespace caravan
