#include "models/batch.h"

#include <algorithm>

#include "core/error.h"

namespace caravan {

namespace {

template <typename T>
ConstTensor view(const std::vector<T>& values, DType dtype) {
  return {values.data(), dtype, Shape{static_cast<int64_t>(values.size())}};
}

}  // namespace

void Batch::add_sequence(const int32_t* token_ids, int64_t num_tokens, int64_t first_position,
                         const std::vector<int32_t>& block_table, LogitsWanted wanted) {
  const int64_t context_len = first_position + num_tokens;
  const int64_t num_blocks = ceil_div(context_len, block_size_);
  CARAVAN_CHECK_CODE(num_tokens > 0 && num_blocks <= static_cast<int64_t>(block_table.size()),
                     kInternal, "a sequence of {} tokens has {} cache blocks of {}", context_len,
                     block_table.size(), block_size_);
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int64_t position = first_position + i;
    token_ids_.push_back(token_ids[i]);
    positions_.push_back(static_cast<int32_t>(position));
    slot_mapping_.push_back(int64_t{block_table[static_cast<size_t>(position / block_size_)]} *
                                block_size_ +
                            position % block_size_);
  }
  query_start_.push_back(static_cast<int32_t>(token_ids_.size()));
  context_lens_.push_back(static_cast<int32_t>(context_len));
  flat_blocks_.insert(flat_blocks_.end(), block_table.begin(), block_table.begin() + num_blocks);
  first_block_.push_back(flat_blocks_.size());
  if (wanted == LogitsWanted::kAll) {
    scored_rows_.push_back(
        {logits_rows_.size(), this->num_tokens() - num_tokens, num_tokens, first_position});
  }
  if (wanted != LogitsWanted::kNone) {
    logits_rows_.push_back(static_cast<int32_t>(token_ids_.size()) - 1);
  }
}

void Batch::clear() {
  token_ids_.clear();
  positions_.clear();
  slot_mapping_.clear();
  query_start_.assign(1, 0);
  context_lens_.clear();
  logits_rows_.clear();
  scored_rows_.clear();
  flat_blocks_.clear();
  first_block_.assign(1, 0);
}

int64_t Batch::max_context_len() const {
  return context_lens_.empty() ? 0 : *std::max_element(context_lens_.begin(), context_lens_.end());
}

bool Batch::is_decode() const {
  return !token_ids_.empty() && num_tokens() == num_seqs() && num_logits() == num_seqs();
}

void Batch::validate(int64_t vocab_size, int64_t max_seq_len, int64_t num_blocks,
                     int64_t num_sampled) const {
  for (size_t t = 0; t < token_ids_.size(); ++t) {
    CARAVAN_CHECK_CODE(token_ids_[t] >= -num_sampled && token_ids_[t] < vocab_size, kInternal,
                       "token id {} is outside the vocabulary of {}", token_ids_[t], vocab_size);
    CARAVAN_CHECK_CODE(positions_[t] >= 0 && positions_[t] < max_seq_len, kInternal,
                       "position {} is outside the model's {}", positions_[t], max_seq_len);
    CARAVAN_CHECK_CODE(slot_mapping_[t] >= 0 && slot_mapping_[t] < num_blocks * block_size_,
                       kInternal, "cache slot {} is outside the cache of {} blocks",
                       slot_mapping_[t], num_blocks);
  }
  for (const int32_t block : flat_blocks_) {
    CARAVAN_CHECK_CODE(block >= 0 && block < num_blocks, kInternal,
                       "cache block {} is outside the cache of {} blocks", block, num_blocks);
  }
}

BatchTensors Batch::tensors() const {
  size_t width = 1;
  for (size_t s = 0; s + 1 < first_block_.size(); ++s) {
    width = std::max(width, first_block_[s + 1] - first_block_[s]);
  }
  block_tables_.assign(context_lens_.size() * width, 0);
  for (size_t s = 0; s + 1 < first_block_.size(); ++s) {
    std::copy(flat_blocks_.begin() + static_cast<std::ptrdiff_t>(first_block_[s]),
              flat_blocks_.begin() + static_cast<std::ptrdiff_t>(first_block_[s + 1]),
              block_tables_.begin() + static_cast<std::ptrdiff_t>(s * width));
  }
  BatchTensors t;
  t.token_ids = view(token_ids_, DType::kI32);
  t.positions = view(positions_, DType::kI32);
  t.slot_mapping = view(slot_mapping_, DType::kI64);
  t.logits_rows = view(logits_rows_, DType::kI32);
  t.attention.query_start = view(query_start_, DType::kI32);
  t.attention.context_lens = view(context_lens_, DType::kI32);
  t.attention.block_tables = {block_tables_.data(), DType::kI32,
                              Shape{num_seqs(), static_cast<int64_t>(width)}};
  t.attention.is_decode = is_decode();
  t.attention.max_context_len = max_context_len();
  return t;
}

}  // namespace caravan
