#pragma once

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <string>

#include "core/error.h"

namespace caravan {

/// A flag's number in [least, most]; neither NaN nor infinite, which CLI11's own ranges let pass.
inline CLI::Validator number_between(double least, double most) {
  return CLI::Validator(
      [least, most](const std::string& text) {
        double value = 0;
        const bool is_number = CLI::detail::lexical_cast(text, value) && std::isfinite(value);
        if (is_number && value >= least && value <= most) return std::string();
        return fmt::format("got {}, expected a number from {} to {}", printable(text, 64), least,
                           most);
      },
      fmt::format("in [{} - {}]", least, most));
}

}  // namespace caravan
