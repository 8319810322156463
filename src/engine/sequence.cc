#include "engine/sequence.h"

namespace caravan {

namespace {

using Clock = Sequence::Clock;

double milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

}  // namespace

RequestTimings timings_of(const Sequence& s) {
  RequestTimings timings{.num_prompt_tokens = s.num_prompt_tokens,
                         .num_output_tokens = s.num_output_tokens()};
  const Clock::time_point now = Clock::now();
  const auto or_now = [&](Clock::time_point t) { return t == Clock::time_point{} ? now : t; };
  const Clock::time_point first_step = or_now(s.first_step);
  const Clock::time_point first_token = or_now(s.first_token);
  timings.queue_ms = milliseconds(s.arrival, first_step);
  if (s.first_step == Clock::time_point{}) return timings;
  timings.prefill_ms = milliseconds(first_step, first_token);
  if (s.first_token == Clock::time_point{}) return timings;
  timings.decode_ms = milliseconds(first_token, or_now(s.last_token));
  return timings;
}

}  // namespace caravan
