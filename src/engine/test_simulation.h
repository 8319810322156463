#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/llm_engine.h"
#include "engine/test_fake_runner.h"

namespace caravan::testing {

/// Faults that a simulation must notice.
enum class Planted { kNothing, kLeak, kEarlyReuse, kWrongPrefix, kAlteredPrompt, kWrongScope };

struct SimulationResult {
  std::string failure;  // empty: every invariant held; else the first that did not
  uint64_t trace = 0;   // hash of all that happened
  int64_t num_requests = 0;
  int64_t num_whole = 0;  // ended by themselves, every token compared
  int64_t num_tokens = 0;
  int64_t num_cancelled = 0;
  int64_t num_refused = 0;
  int64_t num_not_finite = 0;
  int64_t num_device_failures = 0;
  int64_t num_preemptions = 0;
  int64_t max_preemptions = 0;  // of one request
  int64_t num_prefix_hits = 0;  // tokens
  int64_t num_steps = 0;
};

/// One engine over a fake device, with sizes, requests, cancels and faults that are all functions
/// of the seed. Every token is compared with that of the request alone, and the books of the
/// scheduler are checked after every step.
class Simulation {
 public:
  explicit Simulation(uint64_t seed, Planted planted = Planted::kNothing);
  SimulationResult run();

 private:
  struct Request {
    std::vector<int32_t> history;  // prompt, then the tokens that were told
    int64_t num_prompt_tokens = 0;
    SamplingParams params;
    std::vector<int32_t> banned;
    std::vector<ScoredToken> scored;
    std::string scope;
    bool is_cancelled = false;
  };

  int64_t draw(int64_t low, int64_t high);
  bool chance(int64_t one_in) { return draw(1, one_in) == 1; }
  void note(uint64_t event) { result_.trace = mix(result_.trace, event); }
  void fail(const std::string& what);
  void require(bool holds, const char* what);

  void open();
  void add_requests();
  void cancel_some();
  void step();
  bool take_token(const Sequence& sequence, int32_t token);
  void check_end(const Sequence& sequence);
  void check_books();
  void check_order();
  void plant();
  void end_after_failure();
  ScoredToken wanted_token(const Request& request) const;
  void know_prefix(int64_t id, const Request& request, size_t num_tokens);
  void check_prefix(const Sequence& sequence, const Request& request);

  uint64_t seed_;
  Planted planted_;
  std::mt19937_64 random_;
  FakeRunner::Options device_;
  EngineLimits limits_;
  int64_t max_len_ = 0;
  int64_t max_waiting_ = 0;
  int64_t failing_step_ = -1;
  std::vector<std::vector<int32_t>> families_;  // beginnings that prompts share
  std::unique_ptr<LlmEngine> engine_;
  std::map<int64_t, Request> requests_;
  /// The first two requests of a scope that began with these tokens.
  std::map<std::pair<std::string, uint64_t>, std::vector<int64_t>> prefixes_;
  std::map<int64_t, int64_t> seen_running_;  // id -> preemptions, at the last check
  std::vector<int32_t> stolen_;
  SimulationResult result_;
};

}  // namespace caravan::testing
