#include "server/memory_trimmer.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace caravan {

namespace {

MemoryTrimmer::Figures figures() {
  MemoryTrimmer::Figures now;
  now.num_free = static_cast<int64_t>(mallinfo2().fordblks);
  int64_t num_pages = 0;
  int64_t num_resident_pages = 0;
  std::ifstream statm("/proc/self/statm");
  if (statm >> num_pages >> num_resident_pages) {
    now.num_resident = num_resident_pages * sysconf(_SC_PAGESIZE);
  }
  return now;
}

}  // namespace

bool MemoryTrimmer::wants_trim(const Figures& now) {
  least_free_ = std::min(least_free_, now.num_free);
  return now.num_free > least_free_ + kWorthBytes ||
         (now.num_resident > last_resident_ + kWorthBytes && now.num_free > kWorthBytes);
}

void MemoryTrimmer::note_trimmed(const Figures& after) {
  least_free_ = after.num_free;
  last_resident_ = after.num_resident;
}

bool MemoryTrimmer::tick() {
  if (!wants_trim(figures())) return false;
  malloc_trim(0);
  note_trimmed(figures());
  return true;
}

}  // namespace caravan
