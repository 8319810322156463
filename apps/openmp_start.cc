#include "apps/openmp_start.h"

#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <optional>
#include <string>

#include "core/cpu_count.h"
#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace {

constexpr const char* kThreadsVariable = "OMP_NUM_THREADS";
constexpr const char* kMark = "CARAVAN_INTERNAL_RESTARTED";  // so that it starts once only

/// OMP_NUM_THREADS may be a list, one number for each level of nesting; the first one counts.
std::optional<int> wanted_threads(const std::string& text) {
  int value = 0;
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string::npos) return std::nullopt;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data() + begin, end, value);
  const bool is_whole = rest == end || *rest == ',' || *rest == ' ';
  if (error != std::errc() || !is_whole || value <= 0) return std::nullopt;
  return value;
}

/// Sets OMP_NUM_THREADS where it must be set.
bool set_num_threads() {
  const int num_cpus = num_usable_cpus();
  const char* text = std::getenv(kThreadsVariable);
  const std::optional<int> wanted = text == nullptr ? std::nullopt : wanted_threads(text);
  const bool is_absurd = text != nullptr && (!wanted || *wanted > 4 * num_cpus);
  if (is_absurd) {
    log_warning("OMP_NUM_THREADS=\"{}\" is ignored: {} CPU{} can be used", printable(text),
                num_cpus, num_cpus == 1 ? "" : "s");
  }
  const int num_threads = is_absurd || !wanted ? num_cpus : *wanted;
  const int num_started = 1 + num_startable_threads(num_threads - 1);
  if (num_started < num_threads) {
    log_warning("{} of {} threads can be made: the limit of processes is low (ulimit -u)",
                num_started, num_threads);
  }
  if (wanted && !is_absurd && num_started == num_threads) return false;
  ::setenv(kThreadsVariable, std::to_string(num_started).c_str(), 1);
  return true;
}

}  // namespace

void restart_with_openmp_settings(char** argv) {
  if (std::getenv(kMark) != nullptr) {
    ::unsetenv(kMark);
    return;
  }
  bool is_changed = set_num_threads();
  if (std::getenv("OMP_WAIT_POLICY") == nullptr && std::getenv("GOMP_SPINCOUNT") == nullptr) {
    ::setenv("GOMP_SPINCOUNT", "1000", 1);
    is_changed = true;
  }
  if (!is_changed) return;
  ::setenv(kMark, "1", 1);
  ::execv("/proc/self/exe", argv);
  ::unsetenv(kMark);
}

}  // namespace caravan
