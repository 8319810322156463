#pragma once

#include <string>
#include <string_view>

namespace caravan {

/// Server-sent events out of the bytes of a stream, however these are cut. Only `data` fields are
/// handed on, several of one event joined by newlines; comments and other fields are passed over.
/// Source: WHATWG HTML, section 9.2.6.
class SseParser {
 public:
  /// Calls on_data(std::string_view) for each event that is complete with these bytes.
  template <typename OnData>
  void push(std::string_view bytes, const OnData& on_data) {
    for (const char c : bytes) {
      if (c == '\n' && has_return_) {
        has_return_ = false;  // the second half of CR LF
        continue;
      }
      has_return_ = c == '\r';
      if (c != '\n' && c != '\r') {
        line_.push_back(c);
        continue;
      }
      if (line_.empty()) {
        if (has_data_) on_data(std::string_view(data_));
        data_.clear();
        has_data_ = false;
      } else {
        end_line();
      }
      line_.clear();
    }
  }

 private:
  void end_line() {
    const std::string_view line = line_;
    const size_t colon = line.find(':');
    if (line.substr(0, colon) != "data") return;
    std::string_view value = colon == std::string_view::npos ? "" : line.substr(colon + 1);
    if (!value.empty() && value.front() == ' ') value.remove_prefix(1);
    if (has_data_) data_.push_back('\n');
    data_ += value;
    has_data_ = true;
  }

  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool has_return_ = false;
};

}  // namespace caravan
