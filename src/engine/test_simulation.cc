#include "engine/test_simulation.h"

#include <algorithm>
#include <set>
#include <utility>

namespace caravan::testing {

namespace {

constexpr int64_t kRequestsPerSeed = 100;

/// Writes what the step before wrote once more: a device whose steps overlap. Harmless as long as
/// no slot of the older step belongs to another token of the newer one.
class OverlappingRunner : public FakeRunner {
 public:
  using FakeRunner::FakeRunner;

 protected:
  void begin_step() override { late_ = std::exchange(writes_, {}); }
  void end_writes() override {
    for (const auto& [slot, token] : late_) {
      cache()[static_cast<size_t>(slot)] = token;
    }
  }
  void write(int64_t slot, int32_t token) override {
    FakeRunner::write(slot, token);
    writes_.emplace_back(slot, token);
  }

 private:
  std::vector<std::pair<int64_t, int32_t>> writes_;
  std::vector<std::pair<int64_t, int32_t>> late_;
};

bool equal(const std::vector<ScoredToken>& a, const std::vector<ScoredToken>& b) {
  const auto same = [](const TokenLogprob& x, const TokenLogprob& y) {
    return x.token_id == y.token_id && x.logprob == y.logprob && x.rank == y.rank;
  };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const auto& x, const auto& y) {
    return x.token_id == y.token_id && x.logprob.has_value() == y.logprob.has_value() &&
           (!x.logprob || same(*x.logprob, *y.logprob)) &&
           std::equal(x.top_logprobs.begin(), x.top_logprobs.end(), y.top_logprobs.begin(),
                      y.top_logprobs.end(), same);
  });
}

}  // namespace

Simulation::Simulation(uint64_t seed, Planted planted)
    : seed_(seed), planted_(planted), random_(seed) {
  device_.block_size = int64_t{1} << draw(1, 3);
  device_.max_batch_size = draw(1, 8);
  device_.max_steps_in_flight = static_cast<int>(draw(1, 2));
  max_len_ = draw(8, 64);
  // From one longest sequence to room for all; often a quarter of what the batch would like.
  const int64_t one = ceil_div(max_len_, device_.block_size);
  device_.num_blocks = std::max(
      one, chance(3) ? one * device_.max_batch_size : one * device_.max_batch_size / draw(2, 4));
  max_waiting_ = chance(4) ? draw(1, 8) : 1000;
  limits_ = {.vocab_size = kFakeVocabSize,
             .max_seq_len = max_len_,
             .scheduler = {.max_batch_size = device_.max_batch_size,
                           .max_num_batched_tokens = device_.max_batch_size + draw(0, 24),
                           .block_size = device_.block_size,
                           .num_blocks = device_.num_blocks,
                           .enable_prefix_caching = !chance(6),
                           .hash_key = HashKey{seed, ~seed}}};
  if (chance(8)) failing_step_ = draw(1, 120);
  for (int64_t f = draw(1, 4); f > 0; --f) {
    std::vector<int32_t> family(static_cast<size_t>(draw(1, max_len_ - 1)));
    for (int32_t& id : family) id = static_cast<int32_t>(draw(0, kFakeVocabSize - 1));
    families_.push_back(std::move(family));
  }
}

int64_t Simulation::draw(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
}

void Simulation::fail(const std::string& what) {
  if (!result_.failure.empty()) return;
  result_.failure = fmt::format("seed {}, step {}: {}", seed_, result_.num_steps, what);
}

void Simulation::require(bool holds, const char* what) {
  if (!holds) fail(what);
}

void Simulation::open() {
  std::unique_ptr<FakeRunner> runner;
  if (planted_ == Planted::kEarlyReuse) {
    runner = std::make_unique<OverlappingRunner>(device_);
  } else {
    runner = std::make_unique<FakeRunner>(device_);
  }
  const auto break_down = [this](int64_t step) {
    CARAVAN_CHECK_CODE(step != failing_step_, kInternal, "the device failed in step {}", step);
  };
  (chance(2) ? runner->on_launch : runner->on_collect) = break_down;
  LlmEngineOptions options;
  options.eos_token_ids = {kFakeEos};
  engine_ = std::make_unique<LlmEngine>(std::move(runner), limits_, options);
  seen_running_.clear();
}

void Simulation::add_requests() {
  const auto& family = families_[static_cast<size_t>(draw(0, families_.size() - 1))];
  std::vector<int32_t> prompt = family;
  prompt.resize(static_cast<size_t>(draw(1, static_cast<int64_t>(family.size()))));
  const int64_t num_prompt_tokens =
      std::min(max_len_ - 1, static_cast<int64_t>(prompt.size()) + draw(0, 12));
  while (static_cast<int64_t>(prompt.size()) < num_prompt_tokens) {
    prompt.push_back(static_cast<int32_t>(draw(0, kFakeVocabSize - 1)));
  }
  SamplingParams p;
  p.max_output_len = draw(1, max_len_ - static_cast<int64_t>(prompt.size()));
  p.ignore_eos = chance(2);
  if (chance(3)) p.stop_token_ids = {static_cast<int32_t>(draw(1, kFakeVocabSize - 1))};
  if (chance(4)) p.repetition_penalty = 1.5f;
  // A few need the host, whole seeds long or now and then.
  const bool is_host_seed = seed_ % 5 == 0;
  if (is_host_seed && chance(4)) p.num_logprobs = static_cast<int32_t>(draw(0, 3));
  if (is_host_seed && chance(5)) p.min_output_len = draw(1, p.max_output_len);
  if (is_host_seed && chance(5)) {
    p.num_prompt_logprobs = static_cast<int32_t>(draw(0, 2));
    if (chance(3)) p.max_output_len = p.min_output_len = 0;
  }
  const int32_t priority = chance(3) ? static_cast<int32_t>(draw(-2, 2)) : 0;
  const int64_t num_copies = chance(6) ? draw(2, 4) : 1;
  const char* scopes[] = {"", "", "salt", "other salt"};
  const std::string scope = scopes[draw(0, 3)];
  for (int64_t copy = 0; copy < num_copies; ++copy) {
    ++result_.num_requests;
    if (engine_->stats().num_waiting >= max_waiting_) {
      ++result_.num_refused;
      note(1);
      continue;
    }
    p.seed = static_cast<uint64_t>(draw(1, 4000));
    Request request{.history = prompt,
                    .num_prompt_tokens = static_cast<int64_t>(prompt.size()),
                    .params = p,
                    .banned = {},
                    .scored = {},
                    .scope = scope};
    if (p.min_output_len > 0) {
      request.banned = p.stop_token_ids;
      if (!p.ignore_eos) request.banned.push_back(kFakeEos);
    }
    const std::string& told = planted_ == Planted::kWrongScope && chance(4) ? scopes[0] : scope;
    const int64_t id = engine_->add_request(prompt, p, priority, Sequence::Clock::now(), told);
    note(static_cast<uint64_t>(id));
    for (size_t length = 1; length <= prompt.size(); ++length) know_prefix(id, request, length);
    requests_.emplace(id, std::move(request));
  }
}

void Simulation::know_prefix(int64_t id, const Request& request, size_t num_tokens) {
  if (num_tokens % static_cast<size_t>(device_.block_size) != 0) return;
  const uint64_t hash = hash_of(std::span(request.history).first(num_tokens));
  std::vector<int64_t>& ids = prefixes_[{request.scope, hash}];
  if (ids.size() < 2 && (ids.empty() || ids[0] != id)) ids.push_back(id);
}

/// What the prefix cache spared was computed for another request of the same scope.
void Simulation::check_prefix(const Sequence& sequence, const Request& request) {
  const auto num_cached = static_cast<size_t>(sequence.num_cached_tokens);
  if (num_cached == 0) return;
  const uint64_t hash = hash_of(std::span(request.history).first(num_cached));
  const auto it = prefixes_.find({request.scope, hash});
  const bool is_known =
      it != prefixes_.end() && (it->second.size() > 1 || it->second[0] != sequence.id);
  require(is_known, "a prefix of another scope was found");
}

void Simulation::cancel_some() {
  if (requests_.empty()) return;
  auto it = requests_.begin();
  std::advance(it, draw(0, static_cast<int64_t>(requests_.size()) - 1));
  it->second.is_cancelled = true;
  const std::unique_ptr<Sequence> sequence = engine_->cancel(it->first);
  if (sequence == nullptr) return fail("a request that did not end is not there");
  check_end(*sequence);
  check_books();
}

ScoredToken Simulation::wanted_token(const Request& request) const {
  const auto num_output = static_cast<int64_t>(request.history.size()) - request.num_prompt_tokens;
  const bool is_banned = num_output < request.params.min_output_len;
  return fake_output(
             request.history, seen_of(request.history), request.num_prompt_tokens, request.params,
             is_banned ? std::span<const int32_t>(request.banned) : std::span<const int32_t>())
      .token;
}

bool Simulation::take_token(const Sequence& sequence, int32_t token) {
  Request& request = requests_.at(sequence.id);
  const ScoredToken wanted = wanted_token(request);
  if (token != wanted.token_id) {
    fail(fmt::format("request {}: output token {} is {}, alone it is {}", sequence.id,
                     request.history.size() - static_cast<size_t>(request.num_prompt_tokens), token,
                     wanted.token_id));
  }
  request.history.push_back(token);
  know_prefix(sequence.id, request, request.history.size());
  if (request.params.num_logprobs >= 0) request.scored.push_back(wanted);
  ++result_.num_tokens;
  note(static_cast<uint64_t>(token) << 32 | static_cast<uint64_t>(sequence.id));
  return request.params.seed % 17 == 0 && sequence.id % 2 == 0 && token % 8 == 3;  // a stop string
}

void Simulation::check_end(const Sequence& sequence) {
  auto node = requests_.extract(sequence.id);
  if (node.empty()) return fail("a request ended twice");
  const Request& request = node.mapped();
  const SamplingParams& p = request.params;
  require(sequence.token_ids == request.history, "the tokens are not those that were told");
  require(equal(sequence.scored, request.scored), "the log probabilities are not those alone");
  check_prefix(sequence, request);
  require(sequence.block_table.empty() && sequence.slot == -1, "it left and kept something");
  require(sequence.num_preemptions <= Scheduler::kMaxPreemptions, "preempted too often");
  result_.max_preemptions = std::max(result_.max_preemptions, sequence.num_preemptions);
  const int64_t num_output =
      static_cast<int64_t>(request.history.size()) - request.num_prompt_tokens;
  const int32_t last = num_output > 0 ? request.history.back() : -1;
  if (p.num_prompt_logprobs >= 0 && sequence.finish_reason != FinishReason::kAbort &&
      sequence.finish_reason != FinishReason::kError) {
    std::vector<ScoredToken> wanted{{request.history[0], {}, {}}};
    for (int64_t i = 1; i < request.num_prompt_tokens; ++i) {
      wanted.push_back(fake_score(hash_of(std::span(request.history).first(static_cast<size_t>(i))),
                                  request.history[static_cast<size_t>(i)], p.num_prompt_logprobs));
    }
    require(equal(sequence.prompt_scored, wanted), "the prompt's scores are not those alone");
  }
  note(static_cast<uint64_t>(sequence.finish_reason));
  switch (sequence.finish_reason) {
    case FinishReason::kAbort:
      ++result_.num_cancelled;
      return require(request.is_cancelled, "it was cancelled by nobody");
    case FinishReason::kError:
      ++result_.num_not_finite;
      return require(wanted_token(request).token_id == StepOutput::kNotFinite,
                     "its numbers were finite");
    case FinishReason::kLength:
      require(num_output == p.max_output_len, "too short");
      break;
    case FinishReason::kStop: {
      const bool is_eos = !p.ignore_eos && last == kFakeEos;
      const bool is_stop_id = std::find(p.stop_token_ids.begin(), p.stop_token_ids.end(), last) !=
                              p.stop_token_ids.end();
      const bool is_text = p.seed % 17 == 0 && sequence.id % 2 == 0 && last % 8 == 3;
      require(is_eos || is_stop_id || is_text, "it stopped without a reason");
      require(num_output >= p.min_output_len || is_text, "it stopped before min_output_len");
      break;
    }
    case FinishReason::kNone:
      fail("it ended without a reason");
  }
  ++result_.num_whole;
}

/// Every block is where exactly its owners say.
void Simulation::check_books() {
  const Scheduler& scheduler = engine_->scheduler();
  const BlockManager& blocks = scheduler.blocks();
  std::vector<int32_t> owners(static_cast<size_t>(device_.num_blocks), 0);
  std::set<int64_t> slots;
  std::map<int32_t, const std::string*> scopes;
  for (const Sequence* s : scheduler.running()) {
    require(slots.insert(s->slot).second, "two sequences in one slot");
    require(s->slot >= 0 && s->slot < device_.max_batch_size, "a slot outside the batch");
    const auto num_blocks = static_cast<int64_t>(s->block_table.size());
    require(num_blocks * device_.block_size >= s->num_computed, "tokens without a block");
    require(num_blocks <= ceil_div(s->max_num_tokens(), device_.block_size), "blocks too many");
    const auto request = requests_.find(s->id);
    std::set<int32_t> own;
    for (const int32_t block : s->block_table) {
      require(own.insert(block).second, "a block twice in a table");
      ++owners[static_cast<size_t>(block)];
      if (request == requests_.end()) continue;
      const auto scope = scopes.emplace(block, &request->second.scope).first;
      require(*scope->second == request->second.scope, "two scopes share a block");
    }
  }
  require(
      std::is_sorted(scheduler.running().begin(), scheduler.running().end(), Scheduler::Before{}),
      "the running ones are out of order");
  for (const Sequence* s : scheduler.waiting()) {
    require(s->slot == -1 && s->block_table.empty() && s->num_computed == 0,
            "a waiting sequence holds something");
  }
  int64_t num_free = 0;
  for (int64_t b = 0; b < device_.num_blocks; ++b) {
    const auto block = static_cast<int32_t>(b);
    require(blocks.ref_count(block) == owners[static_cast<size_t>(b)],
            "a block's count is not that of its owners");
    num_free += blocks.ref_count(block) == 0 ? 1 : 0;
  }
  require(blocks.num_free() == num_free, "the free blocks are not those without owners");
  require(blocks.num_cached() <= device_.num_blocks, "more cached blocks than there are");
  require(scheduler.num_running() <= device_.max_batch_size, "too many run");
  require(
      static_cast<int64_t>(requests_.size()) == scheduler.num_running() + scheduler.num_waiting(),
      "a request is nowhere");
}

/// Who was admitted came before all who still wait, but for those who just had to give way.
void Simulation::check_order() {
  const Scheduler& scheduler = engine_->scheduler();
  const Sequence* first_waiting = nullptr;
  for (const Sequence* s : scheduler.waiting()) {
    const auto it = seen_running_.find(s->id);
    if (it != seen_running_.end() && it->second != s->num_preemptions) continue;
    first_waiting = s;
    break;
  }
  std::map<int64_t, int64_t> now;
  for (const Sequence* s : scheduler.running()) {
    const auto it = seen_running_.find(s->id);
    const bool is_new = it == seen_running_.end() || it->second != s->num_preemptions;
    if (is_new && first_waiting != nullptr) {
      require(Scheduler::Before{}(s, first_waiting), "somebody was passed over");
    }
    now.emplace(s->id, s->num_preemptions);
  }
  for (const Sequence* s : scheduler.waiting()) {
    if (s->num_preemptions > 0) now.emplace(s->id, s->num_preemptions);
  }
  seen_running_ = std::move(now);
}

void Simulation::plant() {
  auto& blocks = const_cast<BlockManager&>(engine_->scheduler().blocks());
  if (planted_ == Planted::kLeak && result_.num_steps == 20 && blocks.num_free() > 0) {
    blocks.allocate(1, stolen_);
  }
  if (planted_ == Planted::kWrongPrefix) {
    // A block in use is filed under the beginning of a family that it does not hold.
    for (const Sequence* s : engine_->scheduler().running()) {
      const auto& family = families_[static_cast<size_t>(s->id) % families_.size()];
      const auto size = static_cast<size_t>(device_.block_size);
      if (family.size() < size || s->num_remembered == 0 ||
          std::equal(family.begin(), family.begin() + device_.block_size, s->token_ids.begin())) {
        continue;
      }
      const auto tokens = std::span<const int32_t>(family).first(size);
      const BlockHash hash = blocks.hash(s->root, tokens);
      if (blocks.find(hash, s->root, tokens)) continue;
      blocks.forget(s->block_table[0]);
      blocks.remember(s->block_table[0], hash, s->root, tokens);
    }
  }
  if (planted_ == Planted::kAlteredPrompt && result_.num_steps % 10 == 5) {
    for (Sequence* s : engine_->scheduler().waiting()) {
      std::swap(s->token_ids.front(), s->token_ids.back());  // not the request's prompt any more
      break;
    }
  }
}

/// As EngineLoop does it: everything is taken out, then a new engine starts.
void Simulation::end_after_failure() {
  ++result_.num_device_failures;
  note(3);
  while (!requests_.empty()) {
    const int64_t id = requests_.begin()->first;
    const std::unique_ptr<Sequence> sequence = engine_->cancel(id);
    requests_.erase(id);
    require(sequence != nullptr, "a request is lost in the failure");
  }
  check_books();
  require(engine_->stats().num_free_blocks == device_.num_blocks, "a failure leaks blocks");
  failing_step_ = -1;
  open();
}

void Simulation::step() {
  plant();
  std::vector<std::unique_ptr<Sequence>> finished;
  try {
    finished = engine_->step(
        [this](const Sequence& sequence, int32_t token) { return take_token(sequence, token); });
  } catch (const Error& error) {
    if (std::string(error.what()).find("the device failed") == std::string::npos) {
      return fail(error.what());
    }
    return end_after_failure();
  }
  ++result_.num_steps;
  require(engine_->last_step().num_tokens > 0, "nothing can run");
  require(engine_->last_step().num_tokens <= limits_.scheduler.max_num_batched_tokens,
          "more tokens than the budget");
  for (const auto& sequence : finished) check_end(*sequence);
  check_books();
  check_order();
}

SimulationResult Simulation::run() {
  open();
  const int64_t pace = draw(1, 4);
  int64_t num_steps_left = 200000;
  int64_t num_preemptions = 0, num_hits = 0;
  const auto count = [&] {
    num_preemptions = engine_->stats().num_preemptions;
    num_hits = engine_->stats().prefix_hits;
  };
  while (result_.failure.empty()) {
    if (result_.num_requests < kRequestsPerSeed && chance(pace)) add_requests();
    if (chance(40)) cancel_some();
    if (chance(10)) continue;  // the host is late
    if (!engine_->has_unfinished()) {
      if (result_.num_requests >= kRequestsPerSeed) break;
      continue;
    }
    const int64_t failures = result_.num_device_failures;
    step();
    if (failures != result_.num_device_failures) {
      result_.num_preemptions += num_preemptions;
      result_.num_prefix_hits += num_hits;
    }
    count();
    if (--num_steps_left == 0) fail("it does not come to an end");
  }
  result_.num_preemptions += num_preemptions;
  result_.num_prefix_hits += num_hits;
  if (result_.failure.empty()) {
    require(requests_.empty(), "requests are left");
    require(engine_->stats().num_free_blocks == device_.num_blocks, "blocks are left");
  }
  return result_;
}

}  // namespace caravan::testing
