#pragma once

#include <csignal>
#include <string_view>

namespace caravan {

/// SIGTERM and SIGINT as values. Construct it before any thread is started: threads inherit that
/// these signals are blocked. Also ignores SIGPIPE.
class TerminationSignals {
 public:
  TerminationSignals();

  /// Waits for the first signal, at most `timeout_ms`; returns its number, or 0.
  int wait(int timeout_ms) const;
  /// From here on the next signal ends the process at once, with status 128 + its number.
  void exit_on_next() const;

 private:
  sigset_t signals_;
};

/// Tells systemd how the service does ("READY=1", "STOPPING=1"): one datagram to $NOTIFY_SOCKET.
/// Returns false when there is none, or it cannot be reached. Source: man sd_notify.
bool notify_systemd(std::string_view state);

/// Raises the limit of open files to what the system allows; returns the limit in force.
long raise_file_limit();

}  // namespace caravan
