#pragma once

#include <fmt/core.h>

#include <string_view>

namespace caravan {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

/// Lowest level that is written to stderr; kInfo by default. Set once at start by apps/main.cc.
void set_log_level(LogLevel level);
LogLevel log_level();

/// One event, one line, to stderr: "caravan: warning: message". Thread safe.
void log_line(LogLevel level, std::string_view message);

template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  if (log_level() <= LogLevel::kInfo) {
    log_line(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
  }
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  if (log_level() <= LogLevel::kWarning) {
    log_line(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
  }
}

}  // namespace caravan
