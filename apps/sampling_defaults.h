#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "caravan/sampling_params.h"

namespace caravan {

/// Gives the sampling flags that `command` was not given the values of the model's
/// generation_config.json, where that has them: --temperature --top-k --top-p --min-p
/// --repetition-penalty.
void apply_generation_defaults(const CLI::App& command, const std::string& model,
                               SamplingParams& sampling);

}  // namespace caravan
