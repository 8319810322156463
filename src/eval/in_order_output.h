#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace caravan {

/// Gives texts that are finished in any order out in the order of their places, each as soon as all
/// before it are out.
class InOrderOutput {
 public:
  using Write = std::function<void(std::string_view text)>;
  explicit InOrderOutput(Write write) : write_(std::move(write)) {}

  /// The next place: 0, 1, 2, ...
  int64_t reserve() { return num_reserved_++; }
  /// Once for each place; may write this text and those that waited for it. What `write` throws
  /// comes out of it.
  void finish(int64_t place, std::string text);

  /// Places that are not out.
  int64_t num_waiting() const { return num_reserved_ - num_out_; }
  /// Bytes of finished texts that wait for one before them.
  size_t num_held_bytes() const { return num_held_bytes_; }

 private:
  Write write_;
  int64_t num_reserved_ = 0;
  int64_t num_out_ = 0;
  size_t num_held_bytes_ = 0;
  std::map<int64_t, std::string> held_;
};

}  // namespace caravan
