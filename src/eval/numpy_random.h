#pragma once

#include <cstddef>
#include <random>

namespace caravan {

// NumPy's legacy generator (np.random.seed, np.random.choice) is std::mt19937: the same seeding by
// a whole number and the same 32-bit outputs. What differs is how an index is made of them.

/// One index below n, 0 < n <= 2^32: what np.random.choice(n, size=...) draws for each element.
/// The low bits of 32-bit outputs, drawn again while they are not below n; none is drawn for n = 1.
/// Source: NumPy, random/src/distributions/distributions.c, buffered_bounded_masked_uint32.
size_t random_index(std::mt19937& random, size_t n);

}  // namespace caravan
