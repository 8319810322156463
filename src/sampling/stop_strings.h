#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace caravan {

/// Finds stop strings in a stream of text and holds back what could still become one, so that no
/// part of a stop string is ever shown.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// Text that may be shown now. Nothing after a stop string ever is.
  std::string push(std::string_view text);
  /// The rest, when the stream ended for another reason.
  std::string flush();
  bool found() const { return found_; }
  /// The stop string that was found, of several at one place the first given; "" before.
  const std::string& matched() const { return matched_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  std::string matched_;
  bool found_ = false;
};

}  // namespace caravan
