#include "eval/numpy_random.h"

#include <bit>
#include <limits>

#include "core/error.h"

namespace caravan {

size_t random_index(std::mt19937& random, size_t n) {
  CARAVAN_CHECK(n > 0 && n - 1 <= std::numeric_limits<uint32_t>::max(),
                "random_index: n is {}, expected 1 to 2^32", n);
  if (n == 1) return 0;
  const uint64_t mask = (uint64_t{1} << std::bit_width(n - 1)) - 1;
  for (;;) {
    const uint64_t index = random() & mask;
    if (index < n) return index;
  }
}

}  // namespace caravan
