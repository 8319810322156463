#include "server/watchdog.h"

#include <fmt/core.h>

#include <chrono>
#include <utility>

#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace {

constexpr double kIntervalMs = 100;

}  // namespace

Watchdog::Watchdog(WatchdogOptions options) : options_(std::move(options)) {
  CARAVAN_CHECK(options_.limit_s > 0 && options_.grace_s >= 0,
                "watchdog: got {} s, expected more than 0", options_.limit_s);
  CARAVAN_CHECK(options_.stalled_ms && options_.failure && options_.on_trip && options_.on_exit,
                "watchdog: a function is missing");
  thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  wakes_.notify_all();
  thread_.join();
}

/// False when the watchdog ends.
bool Watchdog::wait_ms(double ms) {
  std::unique_lock lock(mutex_);
  return !wakes_.wait_for(lock, std::chrono::duration<double, std::milli>(ms),
                          [this] { return is_ending_; });
}

void Watchdog::run() {
  while (wait_ms(kIntervalMs)) {
    std::string reason = options_.failure();
    if (reason.empty()) {
      const double stalled_ms = options_.stalled_ms();
      if (stalled_ms <= options_.limit_s * 1000) continue;
      reason = fmt::format("no step finished for {:.1f} s", stalled_ms / 1000);
    }
    log_warning("watchdog: {}; the process ends with status {}", reason, kWatchdogExit);
    options_.on_trip(reason);
    // on_exit must come even while the process is being torn down.
    std::this_thread::sleep_for(std::chrono::duration<double>(options_.grace_s));
    options_.on_exit();
    return;
  }
}

}  // namespace caravan
