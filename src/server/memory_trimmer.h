#pragma once

#include <cstdint>

namespace caravan {

/// Gives the memory that the allocator keeps after a burst back to the system. malloc returns only
/// what lies at the end of a heap, and after many threads' large requests nearly nothing does.
class MemoryTrimmer {
 public:
  /// Growth that makes a trim worth its time: it takes some 0.1 ms a MiB.
  static constexpr int64_t kWorthBytes = int64_t{16} << 20;

  struct Figures {
    int64_t num_free = 0;      // in the allocator's hands
    int64_t num_resident = 0;  // of the process
  };

  /// Once a second or so: trims when there is something to gain. Returns whether it did.
  bool tick();

  /// Whether the figures call for a trim: more is free than at the least since the last one, or the
  /// process has grown and the allocator holds enough.
  bool wants_trim(const Figures& now);
  void note_trimmed(const Figures& after);

 private:
  int64_t least_free_ = 0;
  int64_t last_resident_ = 0;
};

}  // namespace caravan
