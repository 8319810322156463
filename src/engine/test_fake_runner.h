#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/error.h"
#include "engine/step_runner.h"
#include "models/batch.h"

namespace caravan::testing {

constexpr int32_t kFakeVocabSize = 64;
constexpr int32_t kFakeEos = 0;

inline uint64_t mix(uint64_t a, uint64_t b) {  // SplitMix64's finalizer
  uint64_t x = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

inline uint64_t hash_of(std::span<const int32_t> tokens) {
  uint64_t h = 0;
  for (const int32_t token : tokens) h = mix(h, static_cast<uint64_t>(token));
  return h;
}

/// The order of the tokens does not matter: what a device keeps for a repetition penalty.
inline uint64_t seen_of(std::span<const int32_t> tokens) {
  uint64_t sum = 0;
  for (const int32_t token : tokens) sum += mix(99, static_cast<uint64_t>(token));
  return sum;
}

/// A request whose seed is a multiple of this has no finite logits after its 3rd output token.
constexpr uint64_t kFakeNotFiniteSeed = 251;

inline ScoredToken fake_score(uint64_t history_hash, int32_t token, int32_t num_top) {
  const auto logprob = [&](int32_t id) {
    return -static_cast<float>(mix(history_hash, static_cast<uint64_t>(id)) % 4096) / 256;
  };
  ScoredToken scored{token, TokenLogprob{token, logprob(token), 1}, {}};
  for (int32_t k = 0; k < num_top; ++k) scored.top_logprobs.push_back({k, logprob(k), k + 1});
  return scored;
}

/// The fake model: what a sequence's next token is, a pure function of its tokens and settings.
/// `seen`: seen_of(history), as the device knows it.
inline StepOutput fake_output(std::span<const int32_t> history, uint64_t seen,
                              int64_t num_prompt_tokens, const SamplingParams& params,
                              std::span<const int32_t> banned) {
  StepOutput output;
  const auto num_output = static_cast<int64_t>(history.size()) - num_prompt_tokens;
  if (params.seed != 0 && params.seed % kFakeNotFiniteSeed == 0 && num_output >= 3) {
    output.token.token_id = StepOutput::kNotFinite;
    return output;
  }
  const uint64_t h = hash_of(history);
  uint64_t draw = mix(h, params.seed);
  if (params.repetition_penalty != 1.0f) draw = mix(draw, seen);
  int32_t token = 0;
  do {
    draw = mix(draw, 1);
    token = static_cast<int32_t>(draw % kFakeVocabSize);
  } while (std::find(banned.begin(), banned.end(), token) != banned.end());
  output.token.token_id = token;
  if (params.num_logprobs >= 0) output.token = fake_score(h, token, params.num_logprobs);
  return output;
}

/// A device without arithmetic. Its paged cache holds the token of each slot; a sequence's history
/// is read back from there, so a wrong block, a stale prefix or a block that was reused too early
/// gives a wrong token. Steps run when they are collected, in order, as on a device that is behind.
/// It checks the contract of StepRunner.
class FakeRunner : public StepRunner {
 public:
  struct Options {
    int64_t block_size = 4;
    int64_t num_blocks = 16;
    int64_t max_batch_size = 4;
    int max_steps_in_flight = 2;
  };
  explicit FakeRunner(const Options& options)
      : options_(options),
        cache_(static_cast<size_t>(options.num_blocks * options.block_size), -1000),
        seen_(static_cast<size_t>(options.max_batch_size)) {}

  /// Called in launch() and collect() with the number of the step; may throw or sleep.
  std::function<void(int64_t step)> on_launch;
  std::function<void(int64_t step)> on_collect;

  int max_steps_in_flight() const override { return options_.max_steps_in_flight; }
  bool needs_host(const SamplingParams& params) const override {
    return params.num_logprobs >= 0 || params.num_prompt_logprobs >= 0 || params.min_output_len > 0;
  }

  void launch(const Batch& batch, std::span<const SampleRequest> requests) override {
    if (on_launch) on_launch(num_launched_);
    require(static_cast<int>(steps_.size()) < options_.max_steps_in_flight, "too many in flight");
    require(static_cast<int64_t>(requests.size()) == batch.num_logits(), "a request a row");
    batch.validate(kFakeVocabSize, 1 << 30, options_.num_blocks,
                   num_launched_ == 0 ? 0 : num_rows_of_last_);
    Step step{batch, {}, {}};
    step.outputs.resize(requests.size());
    bool is_host_step = false;
    for (size_t i = 0; i < requests.size(); ++i) {
      const SampleRequest& r = requests[i];
      require(r.slot >= 0 && r.slot < options_.max_batch_size, "a slot outside the batch");
      for (const Row& other : step.rows) require(other.slot != r.slot, "a slot twice");
      require(r.num_tokens == static_cast<int64_t>(r.history.size()), "the history's length");
      is_host_step = is_host_step || needs_host(*r.params);
      Row row{.params = *r.params,
              .history = {},
              .num_prompt_tokens = r.num_prompt_tokens,
              .slot = r.slot,
              .is_first_output = r.is_first_output,
              .banned = {r.banned.begin(), r.banned.end()},
              .wants_prompt_logprobs = r.wants_prompt_logprobs};
      if (r.is_first_output || r.wants_prompt_logprobs || needs_host(*r.params)) {
        row.history.assign(r.history.begin(), r.history.end());
        for (const int32_t id : row.history) require(id >= 0, "a history with unknown tokens");
      }
      step.rows.push_back(std::move(row));
    }
    require(!(is_host_step || last_is_host_) || steps_.empty(), "a step that needs the host waits");
    last_is_host_ = is_host_step;
    num_rows_of_last_ = batch.num_logits();
    steps_.push_back(std::move(step));
    ++num_launched_;
  }

  std::span<const StepOutput> collect() override {
    require(!steps_.empty(), "a step to collect");
    if (on_collect) on_collect(num_collected_);
    ++num_collected_;
    done_[num_collected_ % 2] = std::move(steps_.front());
    steps_.pop_front();
    Step& step = done_[num_collected_ % 2];
    run(step);
    return step.outputs;
  }

  int64_t num_launched() const { return num_launched_; }
  int64_t num_tokens_computed() const { return num_tokens_computed_; }
  /// What the cache holds; tests spoil it.
  std::vector<int32_t>& cache() { return cache_; }

 protected:
  struct Row {
    SamplingParams params;
    std::vector<int32_t> history;
    int64_t num_prompt_tokens;
    int64_t slot;
    bool is_first_output;
    std::vector<int32_t> banned;
    bool wants_prompt_logprobs;
  };
  struct Step {
    Batch batch{1};
    std::vector<Row> rows;
    std::vector<StepOutput> outputs;
  };

  static void require(bool holds, const char* what) {
    CARAVAN_CHECK_CODE(holds, kInternal, "StepRunner's contract is broken: {}", what);
  }

  /// The write of a token into the cache; tests make it fail.
  virtual void write(int64_t slot, int32_t token) { cache_[static_cast<size_t>(slot)] = token; }

  virtual void begin_step() {}
  virtual void end_writes() {}

  void run(Step& step) {
    begin_step();
    const BatchTensors t = step.batch.tensors();
    const auto* ids = static_cast<const int32_t*>(t.token_ids.data);
    const auto* slots = static_cast<const int64_t*>(t.slot_mapping.data);
    for (int64_t i = 0; i < t.num_tokens(); ++i) {
      const int32_t id = ids[i];
      write(slots[i], id >= 0 ? id : sampled_.at(static_cast<size_t>(-1 - id)));
    }
    end_writes();
    num_tokens_computed_ += t.num_tokens();
    const auto* starts = static_cast<const int32_t*>(t.attention.query_start.data);
    const auto* contexts = static_cast<const int32_t*>(t.attention.context_lens.data);
    const auto* tables = static_cast<const int32_t*>(t.attention.block_tables.data);
    const int64_t width = t.attention.block_tables.shape[1];
    const auto* logits_rows = static_cast<const int32_t*>(t.logits_rows.data);
    std::vector<int32_t> sampled(step.rows.size());
    size_t next_row = 0;
    size_t next_scored = 0;
    for (int64_t s = 0; s < step.batch.num_seqs() && next_row < step.rows.size(); ++s) {
      if (logits_rows[next_row] != starts[s + 1] - 1) continue;  // wants no logits
      std::vector<int32_t> history(static_cast<size_t>(contexts[s]));
      for (int64_t p = 0; p < contexts[s]; ++p) {
        const int64_t block = tables[s * width + p / options_.block_size];
        history[static_cast<size_t>(p)] =
            cache_[static_cast<size_t>(block * options_.block_size + p % options_.block_size)];
      }
      const Row& row = step.rows[next_row];
      StepOutput& output = step.outputs[next_row];
      output = {};
      const auto& scored = step.batch.scored_rows();
      if (next_scored < scored.size() && scored[next_scored].logits_row == next_row) {
        require(row.wants_prompt_logprobs, "rows are scored that nobody wants");
        score_prompt(scored[next_scored++], history, row, output);
      } else {
        require(!row.wants_prompt_logprobs, "scores are wanted of no row");
      }
      // A scored chunk that is not the last of its prompt chooses no token.
      if (row.history.empty() || row.history.size() == history.size()) {
        uint64_t& seen = seen_[static_cast<size_t>(row.slot)];
        if (row.is_first_output) seen = seen_of(row.history);
        const StepOutput chosen =
            fake_output(history, seen, row.num_prompt_tokens, row.params, row.banned);
        output.token = chosen.token;
        if (output.token.token_id >= 0) {
          seen += seen_of(std::span<const int32_t>(&output.token.token_id, 1));
        }
      }
      sampled[next_row] = std::max(output.token.token_id, 0);
      ++next_row;
    }
    require(next_row == step.rows.size(), "a row for each request");
    sampled_ = std::move(sampled);
  }

  void score_prompt(const Batch::ScoredRows& scored, const std::vector<int32_t>& history,
                    const Row& row, StepOutput& output) {
    for (int64_t i = 0; i < scored.num_rows; ++i) {
      const int64_t position = scored.first_position + i;
      if (position + 1 >= row.num_prompt_tokens) break;
      const uint64_t h = hash_of(std::span(history).first(static_cast<size_t>(position + 1)));
      output.prompt_tokens.push_back(fake_score(h, row.history[static_cast<size_t>(position + 1)],
                                                row.params.num_prompt_logprobs));
    }
  }

  Options options_;
  std::vector<int32_t> cache_;    // [num_blocks * block_size] token ids
  std::vector<uint64_t> seen_;    // [max_batch_size]
  std::vector<int32_t> sampled_;  // rows of the step before
  std::deque<Step> steps_;
  Step done_[2];
  int64_t num_launched_ = 0;
  int64_t num_collected_ = 0;
  int64_t num_rows_of_last_ = 0;
  int64_t num_tokens_computed_ = 0;
  bool last_is_host_ = false;
};

}  // namespace caravan::testing
