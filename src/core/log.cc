#include "core/log.h"

#include <atomic>
#include <cstdio>
#include <string>

namespace caravan {

namespace {

// The one process-wide setting: what a person wants to see on stderr.
std::atomic<LogLevel> g_level{LogLevel::kInfo};

const char* prefix(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug: ";
    case LogLevel::kWarning:
      return "warning: ";
    case LogLevel::kError:
      return "error: ";
    default:
      return "";
  }
}

}  // namespace

void set_log_level(LogLevel level) { g_level.store(level, std::memory_order_relaxed); }
LogLevel log_level() { return g_level.load(std::memory_order_relaxed); }

void log_line(LogLevel level, std::string_view message) {
  if (level < log_level()) return;
  const std::string line = fmt::format("caravan: {}{}\n", prefix(level), message);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace caravan
