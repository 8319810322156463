#include "sampling/stop_strings.h"

#include <algorithm>

namespace caravan {

std::string StopStrings::push(std::string_view text) {
  if (found_) return {};
  held_ += text;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at >= first) continue;
    first = at;
    matched_ = stop;
  }
  if (first != std::string::npos) {
    found_ = true;
    std::string shown = held_.substr(0, first);
    held_.clear();
    return shown;
  }
  // The longest suffix that is the beginning of some stop string must wait.
  size_t waiting = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(held_.size(), stop.size() - 1); n > waiting; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) waiting = n;
    }
  }
  std::string shown = held_.substr(0, held_.size() - waiting);
  held_.erase(0, held_.size() - waiting);
  return shown;
}

std::string StopStrings::flush() {
  std::string rest;
  if (!found_) rest.swap(held_);
  return rest;
}

}  // namespace caravan
