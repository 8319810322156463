#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace caravan {

struct WatchdogOptions {
  double limit_s = 60;                   // without a finished step while there is work
  double grace_s = 2;                    // between on_trip and on_exit: for the clients' answers
  std::function<double()> stalled_ms;    // EngineLoop::stalled_ms
  std::function<std::string()> failure;  // EngineLoop::failure; "" while it works
  /// Once, with the reason: end the requests with 503. Health is red from the engine's own figures.
  std::function<void(const std::string&)> on_trip;
  /// Once, after the grace: end the process, with kWatchdogExit.
  std::function<void()> on_exit;
};

/// What the process exits with, so that a supervisor starts it anew: EX_TEMPFAIL.
inline constexpr int kWatchdogExit = 75;

/// Ends a process whose engine is stuck or dead: a device that hangs cannot be mended from inside.
/// Looks every 100 ms from a thread of its own, which takes no lock of the engine but what
/// `stalled_ms` and `failure` take.
class Watchdog {
 public:
  /// Errors: kInvalidArgument for a limit that is not positive, or a function that is missing.
  explicit Watchdog(WatchdogOptions options);
  /// Stops looking. One that has tripped goes on to on_exit first.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void run();
  bool wait_ms(double ms);

  const WatchdogOptions options_;
  std::mutex mutex_;
  std::condition_variable wakes_;
  bool is_ending_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace caravan
