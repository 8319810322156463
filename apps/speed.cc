#include "apps/speed.h"

#include <algorithm>

#include "backend/create_backend.h"
#include "core/log.h"

namespace caravan {

namespace {

// Below this the caches of a server processor hold the weights and memory speed says nothing.
constexpr int64_t kLargeWeights = int64_t{1} << 30;

}  // namespace

void report_speed(const Llm& llm, const std::vector<Completion>& completions,
                  const ModelFlags& flags) {
  if (log_level() > LogLevel::kInfo) return;
  int64_t num_output = 0, num_prompt = 0;
  double wall_ms = 0;
  for (const Completion& c : completions) {
    num_prompt += c.timings.num_prompt_tokens;
    num_output += c.timings.num_output_tokens;
    wall_ms = std::max(wall_ms, c.timings.queue_ms + c.timings.prefill_ms + c.timings.decode_ms);
  }
  if (completions.size() > 1) {
    log_info("{} completions, {} prompt and {} output tokens in {:.2f} s: {:.1f} output tok/s · {}",
             completions.size(), num_prompt, num_output, wall_ms / 1000,
             1000.0 * static_cast<double>(num_output) / wall_ms, llm.description());
    return;
  }
  const RequestTimings& t = completions.front().timings;
  std::string line =
      fmt::format("{} prompt tokens in {:.0f} ms ({:.0f} tok/s)", num_prompt, t.prefill_ms,
                  t.prefill_ms > 0 ? 1000.0 * static_cast<double>(num_prompt) / t.prefill_ms : 0.0);
  if (num_output > 1 && t.decode_ms > 0) {
    const double steps = static_cast<double>(num_output - 1);
    const double ms = t.decode_ms / steps;
    const double context = static_cast<double>(num_prompt) + steps / 2;
    const double bytes = static_cast<double>(llm.weight_bytes_per_step()) +
                         context * static_cast<double>(llm.kv_bytes_per_token());
    line += fmt::format(", {} output tokens: {:.1f} tok/s, {:.2f} ms/token, {:.1f} GB/s",
                        num_output, 1000.0 / ms, ms, bytes / ms * 1e-6);
    if (llm.weight_bytes_per_step() >= kLargeWeights) {
      const double ceiling =
          create_backend(flags.backend())->measure_ceilings(std::nullopt).read_gb_per_s;
      if (ceiling > 0) {
        line += fmt::format(", {:.0f} % of the {:.1f} GB/s read bandwidth",
                            bytes / ms * 1e-4 / ceiling, ceiling);
      }
    }
  }
  log_info("{} · {}", line, llm.description());
}

}  // namespace caravan
