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
  /// Once, after the grace, also when on_trip does not return: end the process, with kWatchdogExit.
  std::function<void()> on_exit;
  std::function<double()> now_ms = {};  // nothing: the steady clock
};

/// How long the engine has had to finish a step: what the clock says without the time in which this
/// process did not run, because it was stopped (SIGSTOP, docker pause) or its machine was frozen.
class StallMeter {
 public:
  /// interval_ms: how often observe() is called, from start_ms on, when the process runs.
  StallMeter(double interval_ms, double start_ms) : interval_ms_(interval_ms), last_ms_(start_ms) {}
  /// stalled_ms: since the last finished step, by the clock.
  double observe(double stalled_ms, double now_ms);

 private:
  const double interval_ms_;
  double last_ms_;      // of the call before
  double lost_ms_ = 0;  // not run since the stall began
  double lost_until_ms_ = 0;
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
  double now_ms() const;

  const WatchdogOptions options_;
  const double start_ms_;
  std::mutex mutex_;
  std::condition_variable wakes_;
  bool is_ending_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace caravan
