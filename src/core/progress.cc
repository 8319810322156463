#include "core/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/log.h"

namespace caravan {

namespace {

// A job that is over sooner shows nothing.
constexpr std::chrono::seconds kQuickJob{1};
constexpr std::chrono::milliseconds kRedraw{100};
constexpr std::chrono::milliseconds kLineOfUnknownTotal{10'000};

std::string amount(double value, const std::string& unit) {
  if (unit == "B") return fmt::format("{:.2f} GB", value / 1e9);
  return fmt::format("{} {}", format_amount(value), unit);
}

/// Columns of the terminal behind stderr.
size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string format_duration(double seconds) {
  if (!(seconds < 1e9)) return "a long time";
  const auto whole = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

std::string format_amount(double value) {
  if (value == std::floor(value) || value >= 100) return fmt::format("{:.0f}", value);
  return value >= 10 ? fmt::format("{:.1f}", value) : fmt::format("{:.2f}", value);
}

Progress::Progress(std::string label, uint64_t total, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      is_terminal_(::isatty(STDERR_FILENO) == 1),
      is_silent_(log_level() > LogLevel::kInfo),
      start_(std::chrono::steady_clock::now()),
      last_draw_(start_) {}

Progress::~Progress() {
  // The job failed: leave the bar as it stands, on a line of its own.
  if (!finished_ && !is_silent_ && is_terminal_ && last_draw_ != start_) std::fputc('\n', stderr);
}

void Progress::add(uint64_t n) {
  done_ += n;
  if (total_ > 0) done_ = std::min(done_, total_);
  if (is_silent_) return;
  const auto now = std::chrono::steady_clock::now();
  if (done_ == total_ && is_terminal_) return finish();
  if (now - start_ < kQuickJob) return;
  if (total_ == 0) {
    if (now - last_draw_ < (is_terminal_ ? kRedraw : kLineOfUnknownTotal)) return;
    last_draw_ = now;
    return draw(false);
  }
  const int tenth = static_cast<int>(10 * done_ / total_);
  if (is_terminal_ ? now - last_draw_ >= kRedraw : tenth > last_tenth_) {
    last_draw_ = now;
    last_tenth_ = tenth;
    draw(false);
  }
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  if (!is_silent_ && is_terminal_ && last_draw_ != start_) draw(true);
}

void Progress::draw(bool final) {
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  if (total_ == 0) {
    const double done = static_cast<double>(done_);
    const std::string line = fmt::format("{}  {}  {}/s", label_, amount(done, unit_),
                                         amount(seconds > 0 ? done / seconds : 0, unit_));
    if (!is_terminal_) return log_line(LogLevel::kInfo, line);
    fmt::print(stderr, "\r\x1b[K{}{}", line, final ? "\n" : "");
    std::fflush(stderr);
    return;
  }
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  const double rate = seconds > 0 ? static_cast<double>(done_) / seconds : 0;
  const double left = rate > 0 ? static_cast<double>(total_ - done_) / rate : 0;
  std::string line = fmt::format("{} {:3.0f} %  {} of {}  {}/s  {} left", label_, 100 * share,
                                 amount(static_cast<double>(done_), unit_),
                                 amount(static_cast<double>(total_), unit_), amount(rate, unit_),
                                 rate > 0 ? format_duration(left) : "?");
  if (is_terminal_) {
    // The text before the bar: a line that wraps is not drawn over by the next one. The last column
    // stays free, since some terminals wrap at it.
    const size_t width = terminal_width() - 1;
    line = line.substr(0, width);
    const size_t left_over = width - line.size();
    std::string bar;
    if (left_over >= 7) {
      const size_t size = std::min<size_t>(24, left_over - 3);
      const auto filled = static_cast<size_t>(share * static_cast<double>(size));
      bar = "[" + std::string(filled, '#') + std::string(size - filled, '.') + "] ";
    }
    line = fmt::format("\r\x1b[K{}{}{}", bar, line, final ? "\n" : "");
    std::fwrite(line.data(), 1, line.size(), stderr);
    std::fflush(stderr);
  } else {
    log_line(LogLevel::kInfo, line);
  }
}

}  // namespace caravan
