#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace caravan {

/// What a model's generation_config.json says about sampling, for requests that do not say; read
/// for `run` and `serve` alike. What the file does not say is not set.
struct GenerationDefaults {
  std::optional<float> temperature;  // 0 where do_sample is false; 1 where it is true and alone
  std::optional<int32_t> top_k;      // 0: all
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
};

/// Of DIR/generation_config.json. A field that is no number of its range is ignored with a warning;
/// a file that is absent or no JSON object sets nothing (load_model_config tells of that).
GenerationDefaults load_generation_defaults(const std::string& directory);

}  // namespace caravan
