#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace caravan {

/// "7 s", "3 min 20 s", "2 h 05 min".
std::string format_duration(double seconds);

/// A number of things, or a rate of them, with three digits where it is small: "0.12", "1.5",
/// "340".
std::string format_amount(double value);

/// Progress of one long job on stderr: a bar with rate and time left on a terminal (redrawn at most
/// ten times a second, never wider than the terminal), one line for each tenth elsewhere. Silent in
/// the first second and when log_level() > kInfo.
class Progress {
 public:
  /// total: units of work, e.g. bytes or tensors; 0 when nobody knows, which shows no share and a
  /// line every ten seconds. unit: "B" prints GB and GB/s, anything else is
  /// printed as it is.
  Progress(std::string label, uint64_t total, std::string unit);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();

  void add(uint64_t amount);
  void finish();

 private:
  void draw(bool final);

  std::string label_;
  std::string unit_;
  uint64_t total_;
  uint64_t done_ = 0;
  int last_tenth_ = 0;
  bool is_terminal_;
  bool is_silent_;
  bool finished_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_draw_;
};

}  // namespace caravan
