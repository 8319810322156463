#include "server/watchdog.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace {

constexpr double kIntervalMs = 100;
constexpr double kLateMs = 1000;  // a busy machine may wake the thread so much later

double steady_ms() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

double StallMeter::observe(double stalled_ms, double now_ms) {
  const double not_run_ms = now_ms - last_ms_ - interval_ms_;
  last_ms_ = now_ms;
  if (not_run_ms > kLateMs) {
    lost_ms_ += not_run_ms;
    lost_until_ms_ = now_ms;
  }
  if (now_ms - stalled_ms >= lost_until_ms_) lost_ms_ = 0;  // it began after that
  return std::max(0.0, stalled_ms - lost_ms_);
}

Watchdog::Watchdog(WatchdogOptions options) : options_(std::move(options)), start_ms_(now_ms()) {
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

double Watchdog::now_ms() const { return options_.now_ms ? options_.now_ms() : steady_ms(); }

void Watchdog::run() {
  StallMeter meter(kIntervalMs, start_ms_);
  while (wait_ms(kIntervalMs)) {
    std::string reason = options_.failure();
    if (reason.empty()) {
      const double stalled_ms = meter.observe(options_.stalled_ms(), now_ms());
      if (stalled_ms <= options_.limit_s * 1000) continue;
      reason = fmt::format("no step finished for {:.1f} s", stalled_ms / 1000);
    }
    log_warning("watchdog: {}; the process ends with status {}", reason, kWatchdogExit);
    // on_exit must come whatever the engine's other threads hold, and even while the process is
    // being torn down.
    std::thread trip;
    try {
      trip = std::thread([&] { options_.on_trip(reason); });
    } catch (const std::system_error&) {
      // No thread can be made: the exit comes without a word to the clients.
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(options_.grace_s));
    options_.on_exit();
    if (trip.joinable()) trip.join();
    return;
  }
}

}  // namespace caravan
