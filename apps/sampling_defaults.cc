#include "apps/sampling_defaults.h"

#include "core/log.h"
#include "format/generation_config.h"

namespace caravan {

void apply_generation_defaults(const CLI::App& command, const std::string& model,
                               SamplingParams& sampling) {
  const GenerationDefaults defaults = load_generation_defaults(model);
  const auto apply = [&](const char* flag, const auto& from, auto& to) {
    if (!from || command.count(flag) > 0 || *from == to) return;
    to = *from;
    log_info("{} {}: from the model's generation_config.json", flag, to);
  };
  apply("--temperature", defaults.temperature, sampling.temperature);
  apply("--top-k", defaults.top_k, sampling.top_k);
  apply("--top-p", defaults.top_p, sampling.top_p);
  apply("--min-p", defaults.min_p, sampling.min_p);
  apply("--repetition-penalty", defaults.repetition_penalty, sampling.repetition_penalty);
}

}  // namespace caravan
